"""What stage one is about to do: photos, tiles, what is done already; known and checked before a teacher is loaded."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus import Skipped, scan
from pipeline.schema import ShardRecord
from pipeline.shards import done_path
from pipeline.storage.fetched import LocalFolder
from pipeline.storage.places import Place, Remote, place_of
from pipeline.system.errors import DtkdError
from pipeline.system.files import read_json
from pipeline.system.progress import ProgressEvent, clock_text
from pipeline.system.words import bytes_text, plural
from teacher_cache.building.frozen import check_layout
from teacher_cache.building.plan import Layout, lay_out, load_plan
from teacher_cache.building.settings import BuildSettings
from teacher_cache.building.tally import skipped_lines
from teacher_cache.known_files import KnownFiles
from teacher_cache.remote import RemoteCache, refuse_leases

_OURS = re.compile(r"done|leases|parts|scans|manifest\.(?:json|index)|plan\.json")
_SHARD = re.compile(r"((?:shard|val)-\d{8})\.tar")
_BYTES_A_PIXEL = 1.39  # of photos as lossless WebP, as the cache has it (LOG.md)


@dataclass(frozen=True)
class Survey:
    """A cache before the work on it."""

    cache: Path
    """Its folder; of a cache at a URL, the one on this machine where its shards are finished."""
    remote: RemoteCache | None
    settings: BuildSettings
    layout: Layout
    files: KnownFiles
    """What is known of the corpus now."""
    held_out: int
    """Photos, of those that are used."""
    planned: int
    """Samples."""
    done: int
    """Samples of shards that are finished already."""
    seconds_left: float | None
    """For one process at the pace of the finished shards; None while there is none to go by."""
    bytes: int
    """That the finished cache will have, about."""

    @property
    def place(self) -> Place:
        """Where the cache will be read from."""
        return self.remote.store if self.remote else place_of(self.cache)

    @property
    def photos(self) -> int:
        """Photos that are used."""
        return len(self.layout.sources)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that cannot be used."""
        return self.layout.corpus.skipped

    def begin(self, teacher: str) -> ProgressEvent:
        """The first event of the work, which tells what will be done with the teacher of this name."""
        how = self.settings
        outputs = plural(how.samples, "output") + " a tile"
        made = f"LR images: {how.degradation.kind}, x{how.degradation.scale}; teacher: {teacher}, {outputs}"
        what = f"{made}; seed {how.seed}; about {bytes_text(self.bytes)} in {self.place}"
        return ProgressEvent(self.done, self.planned, "tiles", summary="\n".join([*self.lines, what]))

    @property
    def lines(self) -> list[str]:
        """The survey as text: a line for each skipped file, then one for the work."""
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        work = f"{plural(self.photos, 'photo')} ({self.held_out} held out){left_out}: {plural(self.planned, 'tile')}"
        if self.settings.samples > 1:
            work += f", {self.settings.samples} outputs of each"
        if self.done:
            work += f", {self.done} done already"
        if self.settings.shards:
            share = self.settings.share(len(self.layout.shards))
            work += f", in shards 0-{len(self.layout.shards) - 1}: {share[0]}-{share[-1]} here"
        if self.seconds_left:
            work += f"; about {clock_text(self.seconds_left)} left at the pace so far"
        return [*skipped_lines(self.skipped), work]


def survey(corpus: str | Path, cache: str | Path, settings: BuildSettings | None = None) -> Survey:
    """Look at a corpus and at the cache that is to be made of it, or gone on with; nothing is written there.

    Args:
        corpus: folder of photos, or `sample` (see `pipeline.corpus.scan`).
        cache: folder or URL of the cache; new, empty, or begun with the same corpus and settings.
        settings: what to make and how; defaults where None.

    Raises:
        DtkdError: no usable photo, or a folder that is no such cache.
    """
    settings = settings or BuildSettings()
    place = place_of(cache)
    if isinstance(place, Remote):
        refuse_leases(place, settings.shards)
    remote = RemoteCache(place, LocalFolder(settings.local_folder).path) if isinstance(place, Remote) else None
    if remote:
        remote.begin()
    cache = remote.folder if remote else Path(cache)
    refuse_strangers(cache)
    files = KnownFiles(cache, Path(corpus))
    layout = _lay_out(corpus, cache, settings, files)
    settings.share(len(layout.shards))  # refuses one behind the last shard
    planned = sum(len(shard.samples) for shard in layout.shards)
    records = [record for shard in layout.shards if (record := _record(cache, shard.name))]
    if remote:
        records = [record for record in records if record.name in remote.done]
    done, seconds = sum(len(record.samples) for record in records), sum(record.seconds for record in records)
    left = seconds / done * (planned - done) if done else None
    size = sum(record.bytes for record in records) / done * planned if done else _bytes(layout, settings)
    return Survey(cache, remote, settings, layout, files, settings.hold_out, planned, done, left, round(size))


def _lay_out(corpus: str | Path, cache: Path, settings: BuildSettings, files: KnownFiles) -> Layout:
    """What plan.json says of tiles and shards, once the photos are seen to be its photos; else made of them."""
    degradation = settings.degradation
    begun = load_plan(cache) if (cache / "plan.json").exists() else None
    found = scan(
        corpus,
        paired=degradation.kind == "paired",
        scale=degradation.scale,
        min_side=settings.tile,
        size_of=files.size,
    )
    layout = lay_out(found, settings, files.identity, begun)
    if begun:
        check_layout(cache, begun, layout)
    return layout


def refuse_strangers(cache: Path) -> None:
    """Check that the folder, if it is there, holds nothing but a cache.

    Raises:
        DtkdError: it holds other files.
    """
    if not cache.is_dir() or (cache / "plan.json").exists():
        return
    strange = sorted(path.name for path in cache.iterdir() if not path.name.startswith(".") and not _is_ours(path))
    if strange and not (cache / "plan.json").exists():  # looked again: another process may have begun the cache
        raise DtkdError(f"{cache} holds other files ({', '.join(strange[:3])}): give a new or an empty folder")


def _is_ours(path: Path) -> bool:
    """Whether a cache that lost its plan.json would have this file; a tar counts by its done record."""
    shard = _SHARD.fullmatch(path.name)
    return bool(_OURS.fullmatch(path.name)) or bool(shard and done_path(path.parent, shard[1]).exists())


def _bytes(layout: Layout, settings: BuildSettings) -> float:
    """What a cache takes whose pictures are as photos are: GT, outputs, LR image, and this with its surroundings."""
    pixels = sum(sample.tile.width * sample.tile.height for shard in layout.shards for sample in shard.samples)
    return pixels * (1 + settings.samples + 2 / settings.degradation.scale**2) * _BYTES_A_PIXEL


def _record(cache: Path, name: str) -> ShardRecord | None:
    """The done record as far as it tells of time; whether its shard is sound, the work itself finds out."""
    try:
        return ShardRecord.from_json(read_json(done_path(cache, name)))
    except (DtkdError, FileNotFoundError, NotADirectoryError):
        return None
