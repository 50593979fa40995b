"""Making a cache at a URL: a folder of this machine is where shards are finished, the store is what counts.

The folder is laid out as a cache (`pipeline.schema`): plan and done records are copies of the store's, and it holds the
tar of a shard only until the store has it. A shard is done when the store has its tar, put whole, with the right size,
and then its record. Killed at any moment the same command goes on, from whatever the folder still holds.
"""

import contextlib
from pathlib import Path

from pipeline.schema import Manifest
from pipeline.shards import done_path, shard_path
from pipeline.storage.places import Remote
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import atomic_write_bytes, ensure_dir
from teacher_cache.building.manifest import FOLDERS, finalize


class RemoteCache:
    """A cache at a URL, in the making, and its folder on this machine."""

    def __init__(self, store: Remote, local: Path) -> None:
        """Name both; nothing is read or written yet."""
        self.store = store
        self.folder = local / "making" / store.identity
        self.done: frozenset[str] = frozenset()
        """Names of the shards whose records the store has, as far as was looked."""

    def begin(self) -> None:
        """Bring the folder up to what the store holds.

        Raises:
            DtkdError: the store, the way to it or the folder failed.
        """
        for name in FOLDERS:
            ensure_dir(self.folder / name)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "plan.json").unlink()  # of a cache that the store has no more
        with contextlib.suppress(FileNotFoundError):
            atomic_write_bytes(self.folder / "plan.json", self.store.read("plan.json"))
        self.done = frozenset()
        self.look()

    def look(self) -> None:
        """Take in the records that others have written since the last look."""
        listed = {name.removesuffix(".json") for name in self.store.listing("done") if name.endswith(".json")}
        self.store.refresh()  # afterwards: a tar is there before its record
        new = {f"done/{name}.json": name for name in sorted(listed - self.done)}
        for path, data in self.store.read_all(list(new)).items():
            atomic_write_bytes(done_path(self.folder, new[path]), data)
            shard_path(self.folder, new[path]).unlink(missing_ok=True)  # made here too, but never given to the store
        self.done = frozenset(listed)

    def put_plan(self) -> None:
        """Give the frozen plan to the store, and check that it keeps this one.

        Raises:
            DtkdError: another process has begun the cache with another plan at the same moment.
        """
        ours = (self.folder / "plan.json").read_bytes()
        if not self.store.holds("plan.json"):
            self.store.put("plan.json", self.folder / "plan.json")
        if self.store.read("plan.json") != ours:
            raise DtkdError(f"{self.store} was begun by another process, and differently: give both the same settings")

    def put_shard(self, name: str) -> None:
        """Give a finished shard to the store: the tar, then the record; then the folder needs the tar no more.

        The store may hold a damaged shard of this name: nobody may trust it while it is replaced.
        """
        record = f"done/{name}.json"
        if self.store.holds(record):
            self.store.remove("manifest.json")
            self.store.remove(record)
        self.store.put(f"{name}.tar", shard_path(self.folder, name))
        self.store.put(record, done_path(self.folder, name))
        self.done |= {name}
        shard_path(self.folder, name).unlink(missing_ok=True)

    def finalize(self) -> Manifest:
        """Merge the records of all shards, and give manifest and index to the store; any process, the same bytes."""
        manifest = finalize(self.folder, self.store)
        for name in ("manifest.index", "manifest.json"):  # the index means nothing without the other
            self.store.put(name, self.folder / name)
        return manifest


def refuse_leases(store: Remote, shards: str | None, retry_errors: bool) -> None:
    """Refuse what needs a folder.

    Raises:
        UsageError: no static share, or failed samples are to be made again.
    """
    if shards is None:
        raise UsageError(
            f"{store}: an object store has no leases for processes to share the work by: give each its part with "
            "--shards A-B, or all to one with --shards 0-"
        )
    if retry_errors:
        raise UsageError(f"{store}: --retry-errors works on a folder: copy the cache, and copy it back afterwards")
