"""The two places where a cache can be: a folder, or a URL that fsspec knows, such as `s3://bucket/cache`.

An object store has neither exclusive create nor rename: no leases, and nothing is appended to. What it has is a put of
a whole object that is there at once or not at all. Credentials and endpoints come from the environment, as the store's
own tools read them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pipeline.schema import digest
from pipeline.system import files
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import parse_json

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.+)", re.DOTALL)
_PACKAGES = {"s3": "dtkd[remote]", "s3a": "dtkd[remote]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")  # as stores call it: s3, abfs, gs, memory


class StoreError(DtkdError):
    """The store, or the way to it, failed: what was asked for may be sound."""


class Stored(NamedTuple):
    """What a listing tells of a file; it differs when the file was written anew."""

    size: int
    """Bytes."""
    modified: float | None
    """Seconds since 1970; None where the store does not tell."""
    version: str
    """What else tells two states apart."""


class Folder:
    """A cache in a folder."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened."""
        self.path = path

    def __str__(self) -> str:
        """For people."""
        return str(self.path)

    @property
    def name(self) -> str:
        """Without the folders that it is in."""
        return self.path.name

    def read(self, name: str) -> bytes:
        """Bytes of a file; `FileNotFoundError` or `NotADirectoryError` where there is none."""
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        """Bytes of a file; `FileNotFoundError` where there is none."""
        return (self.path / name).stat().st_size

    def holds(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return (self.path / name).exists()

    def listing(self, folder: str = "") -> dict[str, Stored]:
        """The files that lie directly in a folder, by name; nothing where it is none."""
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    if entry.is_file():
                        state = entry.stat()
                        version = f"{state.st_mtime_ns} {state.st_ino}"
                        found[entry.name] = Stored(state.st_size, state.st_mtime, version)
        return found

    def refresh(self) -> None:
        """Nothing: a folder is asked anew every time."""


class Remote:
    """A cache under a URL. Any number of processes may use it; a fork takes a connection of its own."""

    def __init__(self, url: str) -> None:
        """Name the place; nothing is asked of the store yet."""
        self.url = url.rstrip("/")
        self._sizes: dict[str, int] | None = None

    def __str__(self) -> str:
        """For people."""
        return self.url

    @property
    def name(self) -> str:
        """Without the folders that it is in."""
        return self.url.rpartition("/")[2]

    @property
    def identity(self) -> str:
        """Name of the folder that holds local files of this place."""
        return digest(self.url)

    def read(self, name: str) -> bytes:
        """Bytes of an object; `FileNotFoundError` where there is none."""
        with self._told(f"reading {name}"):
            return self._fs().cat_file(f"{self.url}/{name}")

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Bytes of many small objects, read together, of those that are there."""
        if not names:
            return {}
        with self._told(f"reading {len(names)} objects"):
            fs = self._fs()
            paths = {name: fs._strip_protocol(f"{self.url}/{name}") for name in names}
            found = fs.cat(list(paths.values()), on_error="return")
            there = {name: found[path] for name, path in paths.items()
                     if not isinstance(found[path], FileNotFoundError)}  # fmt: skip
            for data in there.values():
                if isinstance(data, Exception):
                    raise data
        return there

    def size(self, name: str) -> int:
        """Bytes of an object, by one listing that is kept (`refresh`); `FileNotFoundError` where there is none."""
        if self._sizes is None:
            self.refresh()
        assert self._sizes is not None
        if name not in self._sizes:
            raise FileNotFoundError(f"{self}/{name}")
        return self._sizes[name]

    def refresh(self) -> None:
        """List the sizes anew: others may have written meanwhile."""
        self._sizes = {name: item.size for name, item in self.listing().items()}

    def holds(self, name: str) -> bool:
        """Whether there is an object or a folder of objects of this name."""
        with self._told(f"looking for {name}"):
            return self._fs().exists(f"{self.url}/{name}")

    def listing(self, folder: str = "") -> dict[str, Stored]:
        """The objects that lie directly in a folder, by name."""
        with self._told("listing"):
            fs = self._fs()
            fs.invalidate_cache()
            try:
                found = fs.ls(f"{self.url}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        return {item["name"].rpartition("/")[2]: _stored(item) for item in found if item["type"] == "file"}

    def fetch(self, name: str, to: Path) -> None:
        """Copy an object into the local file `to`, which may be cut short: the caller checks its size."""
        with self._told(f"reading {name}"):
            self._fs().get_file(f"{self.url}/{name}", str(to))

    def put(self, name: str, path: Path) -> None:
        """Store a local file, whole, in one put, and check the size that the store has then.

        Raises:
            StoreError: the store or the way to it failed; what was there under that name before may still be.
        """
        with self._told(f"writing {name}"):
            fs = self._fs()
            fs.put_file(str(path), f"{self.url}/{name}")
            fs.invalidate_cache()
            size, expected = int(fs.info(f"{self.url}/{name}")["size"]), path.stat().st_size
        if size != expected:
            raise StoreError(
                f"{self}/{name} has {size} bytes after writing, expected {expected}; run the command again"
            )
        if self._sizes is not None and "/" not in name:
            self._sizes[name] = size

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._told(f"removing {name}"), contextlib.suppress(FileNotFoundError):
            self._fs().rm_file(f"{self.url}/{name}")
        if self._sizes is not None:
            self._sizes.pop(name, None)

    def _fs(self) -> Any:
        """The store's file system, fsspec's own one for this process."""
        from fsspec.core import url_to_fs

        fs, _ = url_to_fs(self.url)
        return fs

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Trouble with the store in one line; each store has exceptions of its own kind."""
        try:
            yield
        except (FileNotFoundError, DtkdError):
            raise
        except ImportError as error:
            package = _PACKAGES.get(self.url.partition(":")[0], "the package that fsspec names")
            raise DtkdError(f"{self} needs {package}: pip install '{package}' ({error})") from error
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise StoreError(
                f"{self}: {what} failed ({type(error).__name__}: {reason}); what is finished is kept: see to the "
                "network, the address and the credentials, and run the same command again"
            ) from error


Place: TypeAlias = Folder | Remote


def _stored(item: Mapping[str, Any]) -> Stored:
    """What fsspec's `ls` says of an object, which each store says in words of its own."""
    when: Any = next((item[name] for name in _TIMES if item.get(name) is not None), None)
    modified: float | None = None
    with contextlib.suppress(TypeError, ValueError):  # said in a way that is not known: as if it were not
        when = datetime.fromisoformat(when) if isinstance(when, str) else when
        modified = when.timestamp() if isinstance(when, datetime) else float(when)
    return Stored(int(item["size"]), modified, str(item.get("ETag") or item.get("etag") or ""))


def is_url(cache: str | Path) -> bool:
    """Whether a cache is named by a URL."""
    return isinstance(cache, str) and bool(_URL.fullmatch(cache))


def place_of(cache: "str | Path | Place") -> Place:
    """The place that a user names.

    Raises:
        UsageError: a URL of a folder, or one that has become a path.
    """
    if isinstance(cache, Folder | Remote):
        return cache
    if not is_url(cache):
        if re.match(r"[a-z0-9]{2,}:/", str(cache)):
            raise UsageError(f"{cache} is no folder: this command works on a copy of the cache in a folder only")
        return Folder(Path(cache))
    if str(cache).startswith(("file:", "local:")):
        raise UsageError(f"{cache}: name a folder by its path, not by a URL")
    return Remote(str(cache))


def read_json(place: Place, name: str) -> Any:
    """A JSON file of a cache; `FileNotFoundError` where there is none, `DtkdError` where it is damaged."""
    if isinstance(place, Folder):
        return files.read_json(place.path / name)
    return parse_json(place.read(name), f"{place}/{name}")


@contextlib.contextmanager
def whole_file(place: Place, name: str) -> Iterator[Path]:
    """A file of a cache as a local one, inside the block; what lies at a URL is read anew for it."""
    if isinstance(place, Folder):
        yield place.path / name
        return
    with tempfile.TemporaryDirectory(prefix="dtkd-") as folder:
        path = Path(folder) / name
        place.fetch(name, path)
        yield path
