"""Files that are either whole or absent: atomic writes, directory syncs, hashes.

`OSError` for a full disk (`ENOSPC`, `EDQUOT`) passes through: the caller knows what to leave intact.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.system.errors import DtkdError

MAX_JSON = 2**32
"""Largest JSON file that is read, in bytes: a manifest of some ten million samples."""
_CHUNK = 1 << 20  # bytes
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What a file system without hard links says, or one that has run out of them."""
_UMASK = os.umask(0o022)  # read once, at import: setting it is the only way to read it, and not safe with threads
os.umask(_UMASK)
_MODE = 0o666 & ~_UMASK


def expand_home(value: Any) -> Any:
    """`~` expanded in a path, a list of them, or text that is one, also behind a kind: `import:~/outputs`."""
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    if isinstance(value, str):
        kind, colon, where = value.rpartition(":")
        return f"{kind}{colon}{Path(where).expanduser()}" if where.startswith("~") else value
    return value.expanduser() if isinstance(value, Path) else value


def ensure_dir(path: str | Path) -> Path:
    """Create `path` and its parents where missing, and make sure that files can be made in it.

    Raises:
        DtkdError: it is a file, or the user may not write there.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor, probe = tempfile.mkstemp(prefix=".probe-", dir=path)
    except (FileExistsError, NotADirectoryError) as error:
        raise DtkdError(f"{path} must be a folder, but a file is in the way; choose another folder") from error
    except OSError as error:
        if isinstance(error, PermissionError) or error.strerror == "Read-only file system":
            raise DtkdError(f"cannot write into {path} ({error.strerror}); choose another folder") from error
        raise
    os.close(descriptor)
    os.unlink(probe)
    return path


def fsync_dir(path: str | Path) -> None:
    """Make renames and creations inside the folder `path` durable (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_synced(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if hasattr(os, "fchmod"):  # Windows has none, and no such modes
            os.fchmod(file.fileno(), _MODE)  # mkstemp made it private
        os.fsync(file.fileno())


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Put `data` under the name `path` at once: readers see the old file or the new one, also after a power cut."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        _write_synced(descriptor, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_dir(path.parent)


def create_exclusive(path: str | Path, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; of several processes exactly one gets True, and nobody sees half."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        _write_synced(descriptor, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_plain(path, data)  # exclusive too, but readers may see it empty for a moment
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    fsync_dir(path.parent)
    return True


def _create_plain(path: Path, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        _write_synced(descriptor, data)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of the block, where the system has locks (not on Windows); `path` stays, empty."""
    with open(path, "w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX)  # not flock: a forked reader would hold it as well
        yield


def atomic_write_json(path: str | Path, obj: object) -> None:
    """Write `obj` as JSON, atomically; the same object gives the same bytes. NaN is refused (`ValueError`)."""
    atomic_write_bytes(path, json_bytes(obj))


def json_bytes(obj: object) -> bytes:
    """JSON as this project's files hold it: readable, one line at the end, the same bytes for the same object."""
    return json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        FileNotFoundError: it does not exist.
        DtkdError: it is not JSON, or larger than MAX_JSON.
    """
    path = Path(path)
    with open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_JSON:
            raise DtkdError(f"{path} is damaged: {size} bytes, at most {MAX_JSON} are read as JSON")
        return parse_json(file.read(), path)


def parse_json(data: bytes, name: object) -> Any:
    """Parse JSON of anybody's making; `name` says in errors where it stood.

    Raises:
        DtkdError: it is not JSON, has NaN, a number of thousands of digits, or hundreds of brackets within each other.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # both kinds of decoding error are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DtkdError(f"{name} is damaged: not JSON ({reason})") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_file(path: str | Path, whole_up_to: int = _CHUNK, windows: int = 8, window: int = 1 << 16) -> str:
    """A cheap identity of a file: its size, and a hash of all bytes or, above `whole_up_to`, of `windows` pieces.

    The pieces of `window` bytes are spread evenly from the first byte to the last, so a picture that was compressed
    again is noticed for the price of a few reads, however large it is; a few pixels of an uncompressed one may not be.
    """
    size = os.stat(path).st_size
    digest = hashlib.blake2b(digest_size=12)
    with open(path, "rb") as file:
        if size <= whole_up_to:
            digest.update(file.read())
        else:
            for index in range(windows):
                file.seek((size - window) * index // (windows - 1))
                digest.update(file.read(window))
    return f"{size}:{digest.hexdigest()}"
