"""Making a cache at a URL: a folder of this machine is where shards are finished, the store is what counts.

The folder is laid out as a cache (`pipeline.schema`): plan and done records are copies of the store's, and it holds the
tar of a shard only until the store has it. A shard is done when the store has its tar, put whole, with the right size,
and then its record. Killed at any moment the same command goes on, from whatever the folder still holds.

A shard that is made again is finished in the folder while the store keeps the old one; then manifest and record go, the
tar is put, and the new record. So no record ever stands beside a tar that it does not describe; in between the shard is
not done, and when this machine is lost at that moment, another one makes it anew. Processes of one machine share the
folder: what one of them has a lease of, no other takes in from the store.
"""

import contextlib
import secrets
from collections.abc import Collection
from pathlib import Path

from pipeline.schema import Manifest
from pipeline.shards import done_path, shard_path
from pipeline.storage.places import Remote, Stored
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import atomic_write_bytes, ensure_dir, locked
from teacher_cache.building.lease import holders
from teacher_cache.building.manifest import FOLDERS, finalize


class RemoteCache:
    """A cache at a URL, in the making, and its folder on this machine."""

    def __init__(self, store: Remote, local: Path) -> None:
        """Name both; nothing is read or written yet."""
        self.store = store
        self.folder = local / "making" / store.identity
        self.done: frozenset[str] = frozenset()
        """Names of the shards whose records the store has, as far as was looked, without those that are made again."""
        self._seen: dict[str, Stored] = {}
        self._again: set[str] = set()

    def begin(self) -> None:
        """Bring the folder up to what the store holds.

        Raises:
            DtkdError: the store, the way to it or the folder failed.
        """
        for name in FOLDERS:
            ensure_dir(self.folder / name)
        try:
            atomic_write_bytes(self.folder / "plan.json", self.store.read("plan.json"))
        except FileNotFoundError:  # of a cache that the store has no more
            (self.folder / "plan.json").unlink(missing_ok=True)
        self._seen = {}
        self.look()

    def look(self) -> bool:
        """Take in the records that others have written since the last look; whether there was anything to take in.

        Shards that a process of this machine has a lease of are left to it, and not done.
        """
        with self._locked():
            busy = {holder.shard for holder in holders(self.folder / "leases") if not holder.stale}
            stored = sorted(self.store.listing("done").items())
            self.store.refresh()  # afterwards: a tar is there before its record
            names = ((path.removesuffix(".json"), state) for path, state in stored if path.endswith(".json"))
            listed = {name: state for name, state in names if name not in busy}
            new = {f"done/{name}.json": name for name, state in listed.items() if self._seen.get(name) != state}
            read = self.store.read_all(list(new))
            for path, name in new.items():
                if path in read:
                    atomic_write_bytes(done_path(self.folder, name), read[path])
                    shard_path(self.folder, name).unlink(missing_ok=True)  # made here too, but not given to the store
                else:  # made again by another machine just now
                    del listed[name]
        changed, self._seen, self.done = listed != self._seen, listed, frozenset(listed)
        return changed

    def make_again(self, name: str) -> None:
        """Count a shard as not done, though the store has it; its good samples are taken over."""
        self.done -= {name}
        self._again.add(name)

    def take_back(self, name: str) -> None:
        """Get ready to make a shard, whose lease the caller has: fetch its tar where it is to be made again."""
        with self._locked():
            pass  # a look that began before there was this lease is over; later ones leave the shard alone
        if name not in self._again or shard_path(self.folder, name).exists():
            return
        aside = self.folder / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            self.store.fetch(f"{name}.tar", aside)
            aside.replace(shard_path(self.folder, name))  # whole or not: each sample that is taken over is checked
        except FileNotFoundError:
            return  # nothing to take over
        finally:
            aside.unlink(missing_ok=True)

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

        The store may hold another shard of this name: nobody may trust it while it is replaced.
        """
        record = f"done/{name}.json"
        if self.store.holds(record):
            self.store.remove("manifest.json")
            self.store.remove(record)
        self.store.put(f"{name}.tar", shard_path(self.folder, name))
        self.store.put(record, done_path(self.folder, name))
        self.done |= {name}
        self._seen.pop(name, None)
        self._again.discard(name)
        shard_path(self.folder, name).unlink(missing_ok=True)

    def finalize(self, shards: Collection[str]) -> Manifest:
        """Merge the records of all `shards`, and give manifest and index to the store; any process, the same bytes.

        Raises:
            DtkdError: another process has set one of them back meanwhile; or the store failed.
        """
        while True:
            if missing := sorted({*shards} - self.done):
                raise DtkdError(
                    f"{self.store}: {missing[0]} is being made again elsewhere: run the command again later"
                )
            manifest = finalize(self.folder, self.store)
            for name in ("manifest.index", "manifest.json"):  # the index means nothing without the other
                self.store.put(name, self.folder / name)
            if not self.look():
                return manifest
            self.store.remove("manifest.json")  # a shard was made again meanwhile: this may tell of its old tar

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / ".lock")


def refuse_leases(store: Remote, shards: str | None) -> None:
    """Refuse what needs a folder.

    Raises:
        UsageError: no static share.
    """
    if shards is None:
        raise UsageError(
            f"{store}: an object store has no leases for processes to share the work by: give each its part with "
            "--shards A-B, or all to one with --shards 0-"
        )
