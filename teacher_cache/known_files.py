"""What earlier processes have read of a corpus, so that others need not read every photo again to know it.

A process that starts must know size and identity of every photo, to see whether they fit plan.json. Both are functions
of the file's bytes, so they are kept with the state that the file had, in `CACHE/scans`: bytes, and the times of its
last change. Who changes a file changes these; what has another state is read again, and nothing else depends on the
record: without it all is read, as the first process does.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.images import ImageError, Size, probe
from pipeline.schema import canonical_bytes, digest
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, ensure_dir, parse_json, sample_file

FOLDER = "scans"
"""Of the records in a cache, until it is finished."""
MAX_RECORD = 2**28
"""Largest record that is written or read, in bytes: about two million photos; a larger corpus is read by everybody."""
SETTLED = 2.0
"""Seconds that a file must have been left alone before the scan began. One that changed later may change once more
without another time: file systems count in steps, of 2 seconds at worst."""

_KIND = b"known files 1"  # another number where `probe` or `sample_file` find something else than they did


class _State(NamedTuple):
    """Of a file, before anything was read of it."""

    size: int
    modified: int
    """Nanoseconds since 1970, as `changed`: the time that no program can set, of the bytes, the name or the rights."""
    changed: int


class _Known(NamedTuple):
    """What was read of it."""

    state: _State
    width: int
    height: int
    identity: str | None
    """None where nobody has asked for it."""


class KnownFiles:
    """Sizes and identities of a corpus's photos, from the record where it has them, else from the files.

    Hosts that see the same folder share a record; each copy of the corpus has its own, by path and inode.
    """

    def __init__(self, cache: Path, corpus: Path) -> None:
        """Take in the record that `cache` has of `corpus`, if there is one; nothing is written."""
        self._began = time.time_ns()
        self._within = f"{corpus}{os.sep}"
        self._path = cache / FOLDER / f"{_copy_of(corpus)}.json"
        self._old, self._now = _read(self._path), dict[str, _Known]()

    def size(self, path: Path) -> Size:
        """Width and height of a photo; raises as `probe` does."""
        known = self._look(path)
        return Size(known.width, known.height)

    def identity(self, path: Path) -> str:
        """See `sample_file`; of a photo whose size was asked for before."""
        known = self._look(path)
        if known.identity is None:
            known = known._replace(identity=sample_file(path))
            self._now[self._name(path)] = known
        assert known.identity is not None
        return known.identity

    def save(self) -> None:
        """Write what was learned where that is news, and forget it; a disk that refuses it costs others time only."""
        settled = self._began - SETTLED * 1e9
        keep = {name: known for name, known in self._now.items() if max(known.state[1:]) < settled}
        news = any(self._old.get(name) != known for name, known in keep.items())
        self._old, self._now = {}, {}
        if not news:
            return
        body = canonical_bytes({name: [*known.state, *known[1:]] for name, known in keep.items()})
        if len(body) <= MAX_RECORD:
            with contextlib.suppress(OSError, DtkdError):
                ensure_dir(self._path.parent)
                atomic_write_bytes(self._path, _seal(body) + b"\n" + body)

    def _look(self, path: Path) -> _Known:
        name = self._name(path)
        if name not in self._now:
            try:
                found = os.stat(path)  # before the file is read: a change after that has a later time
            except OSError as error:
                raise ImageError(path, f"cannot be read ({error.strerror})") from error
            state, old = _State(found.st_size, found.st_mtime_ns, found.st_ctime_ns), self._old.get(name)
            self._now[name] = old if old and old.state == state else _Known(state, *probe(path), None)
        return self._now[name]

    def _name(self, path: Path) -> str:
        return str(path).removeprefix(self._within)


def _copy_of(corpus: Path) -> str:
    """Name of this copy of a corpus: other hosts may have others under the same path."""
    with contextlib.suppress(OSError):
        return digest([os.path.realpath(corpus), os.stat(corpus).st_ino])
    return digest([str(corpus)])


def _seal(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16, person=_KIND).hexdigest().encode()


def _read(path: Path) -> dict[str, _Known]:
    """A record that is whole and of this kind; else nothing is known."""
    with contextlib.suppress(OSError, DtkdError, AttributeError, TypeError, ValueError):
        with open(path, "rb") as file:
            seal, body = file.readline(64).rstrip(b"\n"), file.read(MAX_RECORD + 1)
        if len(body) <= MAX_RECORD and seal == _seal(body):
            return {str(name): _known(*entry) for name, entry in parse_json(body, path).items()}
    return {}


def _known(size: int, modified: int, changed: int, width: int, height: int, identity: str | None) -> _Known:
    state = _State(int(size), int(modified), int(changed))
    return _Known(state, int(width), int(height), None if identity is None else str(identity))
