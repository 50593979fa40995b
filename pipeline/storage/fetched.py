"""Whole shards of a remote cache in a local folder of bounded size, for any number of processes of this machine."""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.storage.places import Remote
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir, locked

_LOCKS = 16
"""Lock files in the folder: as many shards are fetched at once."""
_threads = [threading.Lock() for _ in range(_LOCKS)]
"""The same for the threads of this process, which its file locks do not tell apart."""


def _forget_threads() -> None:
    _threads[:] = [threading.Lock() for _ in range(_LOCKS)]


os.register_at_fork(after_in_child=_forget_threads)  # whoever held one is not in the child


@dataclass(frozen=True)
class LocalFolder:
    """Room on this machine for files of remote caches."""

    folder: str = ""
    """Empty: dtkd in the user's cache folder."""
    gigabytes: float = 50.0
    """Most that fetched shards take, those of all caches together."""

    @property
    def path(self) -> Path:
        """The folder."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(self.folder).expanduser() if self.folder else Path(home) / "dtkd"


class StoredShard(NamedTuple):
    """A shard of a remote cache."""

    size: int
    """Bytes."""
    content: str
    """Hash of what is in it, part of the local name: a cache that was made anew is fetched anew."""


class _Shard(NamedTuple):
    file: str
    size: int


class FetchedShards:
    """Shards of one remote cache, fetched when they are needed and removed when others need the room.

    The least recently opened ones go first. A file is there whole or not at all; removing one does not hurt whoever has
    it open.
    """

    def __init__(self, remote: Remote, shards: Mapping[str, StoredShard], local: LocalFolder) -> None:
        """Nothing is fetched yet."""
        self._remote, self._limit = remote, round(local.gigabytes * 1e9)
        self._all = local.path / "fetched"
        self._folder = self._all / remote.identity
        self._shards = {name: _Shard(f"{name}-{shard.content}.tar", shard.size) for name, shard in shards.items()}

    def open(self, name: str) -> int:
        """A descriptor of a shard's tar, which is fetched where it is not there.

        Raises:
            DtkdError: the store or the way to it failed, or the shard is larger than the folder may be.
        """
        while True:
            descriptor = self._opened(name)
            if descriptor is not None:
                return descriptor
            self.fetch(name)  # another process may need the room before we open it: look again

    def fetch(self, name: str) -> None:
        """Make sure that a shard is there; raises as `open` does."""
        shard = self._shards[name]
        ensure_dir(self._folder)
        number = sum(name.encode()) % _LOCKS
        with _threads[number], locked(self._folder / f".lock-{number}"):
            if self._sound(shard):
                return
            self._make_room(shard)
            temporary = self._folder / f".{shard.file}.{secrets.token_hex(4)}.tmp"
            try:
                self._remote.fetch(f"{name}.tar", temporary)
                size = temporary.stat().st_size
                if size != shard.size:
                    again = "if its failed samples were made again meanwhile, begin again; `dtkd verify` lists damage"
                    raise DtkdError(f"{self._remote}/{name}.tar came with {size} bytes, expected {shard.size}: {again}")
                os.replace(temporary, self._folder / shard.file)
            except FileNotFoundError:
                raise DtkdError(f"{self._remote}/{name}.tar is missing; `dtkd verify` lists the damage") from None
            finally:
                temporary.unlink(missing_ok=True)

    def forget(self, name: str) -> bool:
        """Remove a copy whose bytes are wrong, so that it is fetched anew; True: it may be better then."""
        (self._folder / self._shards[name].file).unlink(missing_ok=True)
        return True

    def _opened(self, name: str) -> int | None:
        shard = self._shards[name]
        if not self._sound(shard):
            return None
        with contextlib.suppress(FileNotFoundError):
            path = self._folder / shard.file
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.utime(descriptor, ns=(now := time.time_ns(), now))  # finer than the kernel's own clock for files
            return descriptor
        return None

    def _sound(self, shard: _Shard) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / shard.file).stat().st_size == shard.size
        return False

    def _make_room(self, shard: _Shard) -> None:
        """Remove the least recently used shards of all remote caches until one more fits."""
        if shard.size > self._limit:
            raise DtkdError(
                f"{shard.file} has {shard.size / 1e9:.3g} GB, but fetched shards may take {self._limit / 1e9:.3g} GB: "
                "raise data.local_gigabytes"
            )
        with locked(self._all / ".lock"):
            found = []
            for path in self._all.glob("*/[!.]*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total + shard.size <= self._limit:
                    return
                path.unlink(missing_ok=True)
                total -= size


class FetchAhead:
    """A thread that fetches shards before they are needed; in a `with` block. For no `shards` it does nothing."""

    def __init__(self, shards: FetchedShards | None) -> None:
        """Nothing is fetched yet."""
        self._shards, self._expected = shards, set[str]()
        self._pool = ThreadPoolExecutor(1, "fetch")

    def __enter__(self) -> "FetchAhead":
        """Nothing to do: the thread starts with the first shard."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what was not begun, and wait for what was: Python would at its end."""
        self._pool.shutdown(cancel_futures=True)

    def expect(self, names: Set[str]) -> None:
        """Fetch those of the shards that were not expected the last time."""
        if self._shards is not None:
            for name in sorted(names - self._expected):
                self._pool.submit(self._shards.fetch, name)  # what fails here is told by the reader, which needs it
            self._expected = set(names)
