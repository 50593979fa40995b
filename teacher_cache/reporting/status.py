"""How a cache stands: what is done, who is at work, what failed, what is damaged, what it cost. Nothing is written.

Neither corpus nor teacher is needed, and it may be asked at any moment, of a cache in work, begun or damaged. Of one at
a URL, who is at work and what is in unfinished shards is known to those who make it alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus import Skipped
from pipeline.schema import REPAIR, SampleError
from pipeline.storage.places import Folder, Place, is_url, place_of
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text, rate_text
from pipeline.system.results import plain
from pipeline.system.words import bytes_text, plural
from teacher_cache.building.lease import Holder, holders
from teacher_cache.building.plan import Outline, load_outline
from teacher_cache.building.tally import skipped_lines
from teacher_cache.reporting.ledger import PRESENTATIONS, Ledger
from teacher_cache.reporting.records import Damaged, Finished, InWork, Records, in_work

REFRESH = 2.0
"""Seconds between two looks at a cache that is watched."""
REFRESH_REMOTE = 10.0
"""The same at a URL, where a look costs a request for every thousand shards, twice."""
_RECENT = 64  # finished shards that the pace is taken from
_NAMED = 10  # holders, damaged shards, photos of a kind of failure that the text names


@dataclass(frozen=True)
class Kind:
    """Failed samples of one kind."""

    stage: str
    type: str
    count: int
    photo: str
    """Of one of them."""
    message: str
    """Of that one."""
    others: tuple[str, ...]
    """All other photos."""


@dataclass(frozen=True)
class Status:
    """How a cache stands. Samples are counted in tiles, `done` and `failed` ones and those of shards in work."""

    cache: str  # folder or URL
    corpus: str
    teacher: str
    shards: int
    shards_done: int
    planned: int
    done: int
    """Of finished shards, failed ones included."""
    in_work: int
    """Of other shards, made already."""
    failed: int
    """Of both."""
    kinds: tuple[Kind, ...]
    """Of failures, the most frequent first."""
    skipped: tuple[Skipped, ...]
    """Files of the corpus that could not be used at all."""
    rate: float | None
    """Tiles a second, all processes together; None while there is nothing to go by, and where all is done."""
    seconds_left: float | None
    """At that rate."""
    holders: tuple[Holder, ...]
    damaged: tuple[Damaged, ...]
    bytes: int
    """Of finished shards."""
    ledger: Ledger | None
    """None where no teacher has worked: its pictures were made elsewhere, or nothing is done yet."""
    manifest: bool
    """Whether manifest.json is there, which stage two reads."""

    @property
    def complete(self) -> bool:
        """Whether stage two can begin."""
        return self.shards_done == self.shards and self.manifest

    @property
    def at_work(self) -> list[Holder]:
        """Who is making a shard."""
        return [holder for holder in self.holders if not holder.stale]

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        what = plural(len(self.damaged), "damaged shard")
        return f"{what}: {REPAIR.replace('CACHE', self.cache)}" if self.damaged else None

    def event(self) -> ProgressEvent:
        """The status as progress."""
        notes = [] if is_url(self.cache) else [plural(len(self.at_work), "shard") + " in work"]
        notes += [f"{self.failed} failed"] if self.failed else []
        notes += [f"{len(self.damaged)} damaged"] if self.damaged else []
        notes += [f"teacher {clock_text(self.ledger.so_far)}"] if self.ledger else []
        return ProgressEvent(self.done + self.in_work, self.planned, "tiles", ", ".join(notes))

    def lines(self) -> list[str]:
        """For people."""
        made = self.done + self.in_work
        share = f"{made} of {plural(self.planned, 'tile')} ({made / max(self.planned, 1):.0%})"
        parts = [share, f"{self.shards_done} of {plural(self.shards, 'shard')}"]
        parts += [f"{self.in_work} of the tiles in unfinished shards"] if self.in_work else []
        parts += [f"{self.failed} failed"] if self.failed else []
        lines = [f"{self.cache}: corpus {self.corpus}, teacher {self.teacher}", ", ".join(parts), *self._pace()]
        lines += [*skipped_lines(self.skipped), *map(_kind_text, self.kinds)]
        lines += _first([f"damaged: {item.reason}" for item in self.damaged], "damaged shard")
        size = f"size: {bytes_text(self.bytes)}"
        if 0 < self.done < self.planned:
            size += f", about {bytes_text(self.bytes / self.done * self.planned)} in the end"
        return [*lines, size, *(self.ledger.lines() if self.ledger else [])]

    def _pace(self) -> list[str]:
        """Speed and time left, then the shards in work."""
        if self.complete:
            return ["complete"]
        parts = []
        if self.rate and self.seconds_left is not None:
            parts += [rate_text(self.rate, "tiles"), f"about {clock_text(self.seconds_left)} left"]
        if is_url(self.cache):
            parts.append(
                "who is at work cannot be seen at a URL: where nobody is, the same `dtkd teacher-cache` goes on"
            )
        elif not self.at_work:
            parts.append("nobody is at work: the same `dtkd teacher-cache` goes on")
        lines = [", ".join(parts)] if parts else []
        return lines + _first([_holder_text(holder) for holder in self.holders], "shard in work")

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, whether it is complete, and what to do."""
        ledger = self.ledger and self.ledger.to_json()
        told = [{"shard": item.shard, "reason": item.reason} for item in self.damaged]
        held = [holder._asdict() for holder in self.holders]
        more = {"ledger": ledger, "damaged": told, "holders": held, "complete": self.complete}
        return {**plain(self), **more, "advice": self.failure}


class Watcher:
    """Looks at a cache again and again."""

    def __init__(self, cache: str | Path | Place, presentations: int = PRESENTATIONS) -> None:
        """Read the plan.

        Raises:
            DtkdError: no cache, a lost or damaged plan, or another schema.
        """
        self.cache, self._presentations = place_of(cache), presentations
        self._outline = load_outline(self.cache)
        self._records = Records(self.cache, self._outline)

    def look(self) -> Status:
        """How the cache stands now.

        Raises:
            StoreError: the store of a URL, or the way to it, failed.
        """
        found = self._records.look()
        finished = {name: item for name, item in found.items() if isinstance(item, Finished)}
        work = in_work(self.cache, self._outline, set(finished))
        leases = holders(self.cache.path / "leases") if isinstance(self.cache, Folder) else []
        held = tuple(holder for holder in leases if holder.shard not in finished)
        done = sum(item.samples for item in finished.values())
        kinds = _kinds(self._outline, finished, work)
        ledger = _ledger(self._outline, list(finished.values()), work, self._presentations)
        complete = len(finished) == len(self._outline.shards)
        rate = None if complete else _rate(list(finished.values()), ledger, held, self._outline.plan.outputs)
        return Status(
            cache=str(self.cache),
            corpus=self._outline.plan.corpus,
            teacher=self._outline.plan.teacher_title,
            shards=len(self._outline.shards),
            shards_done=len(finished),
            planned=self._outline.planned,
            done=done,
            in_work=work.samples,
            failed=sum(kind.count for kind in kinds),
            kinds=kinds,
            skipped=self._outline.plan.skipped,
            rate=rate,
            seconds_left=(self._outline.planned - done - work.samples) / rate if rate else None,
            holders=held,
            damaged=tuple(item for item in found.values() if isinstance(item, Damaged)),
            bytes=sum(item.record.bytes for item in finished.values()),
            ledger=ledger,
            manifest=self.cache.holds("manifest.json"),
        )


def read_status(
    cache: str | Path, presentations: int = PRESENTATIONS, watch: bool = False, on_progress: OnProgress | None = None
) -> Status:
    """How a cache stands.

    Args:
        cache: folder or URL of the cache.
        presentations: samples that a training is shown, for `Ledger.in_the_loop`.
        watch: look again every few seconds until it is complete, or Ctrl-C; then it is the last status.
        on_progress: called after every look, where it is watched.

    Raises:
        DtkdError: no cache, a lost or damaged plan, or another schema; or the store of a URL failed.
    """
    watcher = Watcher(cache, presentations)
    pause = REFRESH if isinstance(watcher.cache, Folder) else REFRESH_REMOTE
    status = watcher.look()
    try:
        while watch and not status.complete:
            if on_progress:
                on_progress(status.event())
            time.sleep(pause)
            status = watcher.look()
    except KeyboardInterrupt:  # the way to end it: what was seen last is told
        return status
    if watch and on_progress:
        on_progress(status.event())
    return status


def _first(lines: Sequence[str], what: str) -> list[str]:
    more = len(lines) - _NAMED
    return [*lines[:_NAMED], f"and {plural(more, f'more {what}')}"] if more > 0 else list(lines)


def _kind_text(kind: Kind) -> str:
    count, others = plural(kind.count, "tile"), ", ".join(kind.others[:_NAMED])
    text = f"failed in {kind.stage}, {kind.type}: {count}, for example {kind.photo}: {kind.message}"
    more = len(kind.others[_NAMED:])
    return text + (f"; also {others}" if others else "") + (f" and {plural(more, 'more photo')}" if more else "")


def _holder_text(holder: Holder) -> str:
    who = f"process {holder.pid} on {holder.host}" if holder.pid is not None else "an unknown process"
    if holder.stale:
        said = f"dead or silent for {clock_text(holder.silent)}"
        return f"stale lease: {holder.shard}, {who}, {said}; the next process takes it over"
    return f"in work: {holder.shard}, {who}, a sign {clock_text(holder.silent)} ago"


def _kinds(outline: Outline, finished: dict[str, Finished], work: InWork) -> tuple[Kind, ...]:
    failed = [(shard, sample) for shard in outline.shards if shard.name in finished
              for sample in finished[shard.name].record.samples]  # fmt: skip
    groups: dict[tuple[str, str], list[tuple[str, SampleError]]] = {}
    for shard, sample in (*failed, *work.failed):
        assert sample.error is not None
        photo = outline.photo(shard, sample.key)
        groups.setdefault((sample.error.stage, sample.error.type), []).append((photo, sample.error))
    kinds = []
    for kind, items in groups.items():
        photo, error = items[0]
        others = sorted({name for name, _ in items} - {photo})
        kinds.append(Kind(*kind, len(items), photo, error.message, tuple(others)))
    return tuple(sorted(kinds, key=lambda kind: (-kind.count, kind.stage, kind.type)))


def _ledger(outline: Outline, finished: Sequence[Finished], work: InWork, presentations: int) -> Ledger | None:
    seconds = sum(item.record.teacher_seconds for item in finished) + work.teacher_seconds
    images = sum(item.record.teacher_images for item in finished) + work.images
    if not images or not seconds:
        return None
    return Ledger(round(seconds, 3), seconds / images, outline.planned * outline.plan.outputs, presentations)


def _rate(finished: Sequence[Finished], ledger: Ledger | None, held: Sequence[Holder], outputs: int) -> float | None:
    """Tiles a second while somebody was at work on the shards finished last; before the first, as the teacher goes."""
    timed = sorted(((item.at, item) for item in finished if item.at is not None), key=lambda one: one[0])[-_RECENT:]
    busy = _busy_seconds([(at - item.record.seconds, at) for at, item in timed])
    if busy > 0:
        return sum(item.samples for _, item in timed) / busy
    at_work = sum(not holder.stale for holder in held)
    return at_work / (ledger.an_image * outputs) if ledger and at_work else None


def _busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that any of the spans (begin, end) covers: pauses, and several at once, do not count."""
    seconds, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        seconds += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return seconds
