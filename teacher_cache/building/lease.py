"""Leases: who works on which shard, for any number of processes on any number of machines with one folder in common.

A lease is a file that exactly one process manages to create. Its holder renews the file's time from a thread; a lease
whose process is dead (same machine, same boot) or that was not renewed for `ttl` seconds is taken over, by a rename
that one process wins. Leases save work, correctness does not rest on them: a shard that two processes make after all
has the same bytes both times, and each writes under names of its own until the final rename.
"""

import contextlib
import json
import os
import platform
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.system.files import create_exclusive, json_bytes

TTL = 120.0  # seconds


class Lease:
    """A lease that is held; made by `acquire`. As a context manager it renews itself inside the block."""

    def __init__(self, path: Path, nonce: str, ttl: float) -> None:
        """Describe the lease file `path`, which this process has created with `nonce` inside."""
        self.path, self.nonce = path, nonce
        self._ttl = ttl
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {path.stem}", daemon=True)

    def __enter__(self) -> "Lease":
        """Start to renew."""
        try:
            self._thread.start()
        except BaseException:  # an interrupt, or no thread to be had: nobody would call `__exit__`
            self._give_back()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to renew and give the lease back."""
        try:
            self._give_back()
        except KeyboardInterrupt:  # the wish to stop came just now; others should not wait for this shard
            self._give_back()
            raise

    def _give_back(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.held():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def held(self) -> bool:
        """Whether the file is still ours: False after another process took it over (we were away for too long).

        True where the file cannot be read just now: a network file system may hiccup, and work is not lost for it.
        """
        try:
            return json.loads(self.path.read_bytes())["nonce"] == self.nonce
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False
        except OSError:
            return True

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl / 6):
            if not self.held():
                return
            with contextlib.suppress(OSError):  # the next turn tries again
                os.utime(self.path)


def acquire(folder: Path, name: str, ttl: float = TTL) -> Lease | None:
    """Lease `name` in `folder`, or None while a live process holds it.

    Args:
        folder: where the leases of a cache live; it exists.
        name: of the shard.
        ttl: seconds without renewal after which a lease is taken over; the same for all processes of a cache.
    """
    path, nonce = folder / f"{name}.json", secrets.token_hex(8)
    data = json_bytes({"nonce": nonce, **_identity(os.getpid())})
    try:
        taken = _is_free(path, nonce, ttl) and create_exclusive(path, data)
    except BaseException:  # an interrupt, when the file may be there already
        if _read_owner(path).get("nonce") == nonce:
            path.unlink(missing_ok=True)
        raise
    return Lease(path, nonce, ttl) if taken else None


class Holder(NamedTuple):
    """Who has a lease."""

    shard: str
    host: str
    """Empty where the lease is damaged, or was just created; `pid` is then None."""
    pid: int | None
    silent: float
    """Seconds since it was renewed, by the clock of this machine."""
    stale: bool
    """Dead, or silent for too long: the next process that wants the shard takes it over."""


def holders(folder: Path, ttl: float = TTL) -> list[Holder]:
    """The leases in a folder, by name. Nothing is written, and a folder that is not there has none."""
    found = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            silent = max(time.time() - path.stat().st_mtime, 0.0)
        except FileNotFoundError:  # given back meanwhile
            continue
        owner = _read_owner(path)
        host, pid = owner.get("host"), owner.get("pid")
        stale = silent > ttl or _is_dead(owner)
        found.append(Holder(path.stem, str(host or ""), pid if isinstance(pid, int) else None, round(silent, 1), stale))
    return found


def _is_free(path: Path, nonce: str, ttl: float) -> bool:
    """Whether there is no lease, after a stale one was removed."""
    try:
        age = now(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return True
    owner = _read_owner(path)
    if age <= ttl and not _is_dead(owner):
        return False
    aside = path.with_name(f".{path.stem}.{nonce}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another process was faster
        return True
    if _read_owner(aside) != owner:  # it was faster and already works on it: what we took is its new lease
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink()
    return True


def _read_owner(path: Path) -> dict[str, object]:
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def now(folder: Path) -> float:
    """Time by the clock of the file system that the leases are on: machines' clocks differ."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.utime(probe.fileno())
        return os.fstat(probe.fileno()).st_mtime


def _identity(pid: int) -> dict[str, object]:
    """What tells a process of this machine from all others, also after its number is used again."""
    return {**_machine(), "pid": pid, "started": _started(pid)}


def _machine() -> dict[str, object]:
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # containers on one machine count their processes separately
    return {"host": platform.node(), "boot": boot, "namespace": namespace}


def _started(pid: int) -> str:
    """Start time of a process in the kernel's ticks; empty when it is not running, or cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_dead(owner: dict[str, object]) -> bool:
    """Whether the owner certainly runs no more: it was a process of this machine since its last boot."""
    here = _machine()
    pid = owner.get("pid")
    if not here["boot"] or not isinstance(pid, int) or {name: owner.get(name) for name in here} != here:
        return False
    return owner.get("started") != _started(pid)
