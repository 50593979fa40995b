"""Counting while a cache is made: progress for people, whether too much fails to go on, and what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.corpus import Skipped
from pipeline.schema import Drift, Sample, ShardRecord
from pipeline.system.errors import DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text
from pipeline.system.results import plain
from pipeline.system.words import plural
from teacher_cache.building.plan import Plan

FAILURES = 20
"""Failures that a result lists, and skipped files that are named."""
DRIFT_LEVELS = 2.0
"""Mean colour drift of a cache, 8-bit levels, that is a warning: about the least step in tone that one sees on a plain
surface, 1 % of the brightness."""
_SETTLED = 50  # samples after which a share of failures means something


@dataclass(frozen=True)
class Failure:
    """Why samples of a photo failed."""

    source: str  # id of the photo
    stage: str
    message: str
    samples: int  # that failed for this reason


@dataclass(frozen=True)
class BuildResult:
    """What a run of stage one achieved."""

    cache: str  # folder or URL
    complete: bool  # False: shards are left to other processes, and `wait` was off or `shards` a part of them
    shards: int  # of the plan
    shards_done: int  # by all processes
    share: tuple[int, int] | None  # first and last shard of this process where `shards` gave it a part of them
    share_done: bool  # whether all of these are done
    planned: int  # samples
    ok: int
    errors: int
    reused: int  # samples of shards that were finished before this run
    computed: int  # samples of shards that this process finished
    skipped: tuple[Skipped, ...]  # photos that could not be used at all
    failures: tuple[Failure, ...]  # the first ones
    failures_left_out: int  # failed samples that `failures` does not tell of
    seconds: float
    teacher_seconds_per_image: float | None
    drift: Drift | None
    warnings: tuple[str, ...]  # what may be wrong with the pictures that were made

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        if self.share_done:
            return None
        return f"{self.cache} is not complete yet: run the same command again later"

    def lines(self) -> list[str]:
        """For people: what was skipped and what failed, then how the cache stands."""
        lines = failure_lines(self.skipped, self.failures, self.failures_left_out)
        made = "all reused, nothing was left to do" if not self.computed else f"{self.computed} made now"
        parts = [f"{self.ok} of {plural(self.planned, 'sample')}", made]
        parts += [f"{self.errors} failed"] if self.errors else []
        parts += [f"teacher {self.teacher_seconds_per_image:.2f} s an image"] if self.teacher_seconds_per_image else []
        lines += [f"{self.cache}: {', '.join(parts)}", *(f"warning: {text}" for text in self.warnings)]
        if self.share:
            mine = f"shards {self.share[0]}-{self.share[1]}"
            stand = f"{self.shards_done} of {plural(self.shards, 'shard')} are done by all"
            lines.append(f"{mine} {'are done' if self.share_done else 'are not all done'}, {stand}")
        elif not self.complete:
            lines.append("other processes are still at work on the rest")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain(self)


class Tally:
    """What is done by all processes, as far as this one has seen."""

    def __init__(self, plan: Plan, max_failure_fraction: float, on_progress: OnProgress | None) -> None:
        """Start with nothing seen."""
        self._plan, self._allowed, self._on_progress = plan, max_failure_fraction, on_progress
        self._current: Sequence[Sample] = ()
        self._processed, self._errors, self._teacher_seconds = 0, 0, 0.0  # of finished shards
        self._example: Sample | None = None
        self.records: dict[str, ShardRecord] = {}
        self.computed = 0  # samples of shards that this process finished

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return len(self.records) == len(self._plan.shards)

    @property
    def errors(self) -> int:
        """Failed samples, the shard in work included."""
        return self._errors + sum(sample.status == "error" for sample in self._current)

    @property
    def processed(self) -> int:
        """Samples with an outcome, the shard in work included."""
        return self._processed + len(self._current)

    def samples_done(self, samples: Sequence[Sample]) -> None:
        """Take in the samples so far of the shard in work.

        Raises:
            DtkdError: too many samples have failed.
        """
        self._current = samples
        self.report()
        self.check()

    def shard_left(self, record: ShardRecord | None) -> None:
        """Take in a finished shard, or that the one in work was lost to another process (None)."""
        if record is not None:
            self.records[record.name] = record
            self._processed += len(record.samples)
            self._errors += len(record.errors)
            self._teacher_seconds += record.teacher_seconds
            self._example = self._example or next(iter(record.errors), None)
            self.computed += len(self._current)
        self._current = ()
        if record is not None:
            self.report()

    def report(self, note: str = "") -> None:
        """Tell the caller's progress callback; the teacher's time is that of finished shards, of all processes."""
        if self._on_progress:
            failed = f"{self.errors} failed" if self.errors else ""
            taught = f"teacher {clock_text(self._teacher_seconds)}" if self._teacher_seconds else ""
            text = ", ".join(part for part in (failed, taught, note) if part)
            self._on_progress(ProgressEvent(self.processed, self._plan.planned, "tiles", text))

    def check(self) -> None:
        """Stop the run when more than the allowed share fails: of all seen, or of the first 50 while they are few."""
        errors, processed = self.errors, self.processed
        if errors > self._allowed * max(processed, min(self._plan.planned, _SETTLED)):
            raise DtkdError(
                f"{errors} of {processed} samples failed, more than --max-failures {self._allowed:g} allows; "
                f"for example {self._describe()}; damaged photos or imported pictures: remove or repair them and take "
                "a new cache folder, or go on without them with a larger --max-failures; another cause: mend it and "
                "run again with --retry-errors"
            )

    def _describe(self) -> str:
        sample = self._example or next(sample for sample in self._current if sample.error)
        assert sample.error is not None
        source = _sources(self._plan)[sample.key]
        return f"{source}: {sample.error.stage}: {sample.error.type}: {sample.error.message}"


def failures(plan: Plan, records: Iterable[ShardRecord]) -> tuple[Failure, ...]:
    """The failed samples of finished shards, those of one photo with one reason together; sorted by photo."""
    found: dict[tuple[str, str, str], int] = {}
    sources = _sources(plan)
    for record in records:
        for sample in record.errors:
            assert sample.error is not None
            reason = (sources[sample.key], sample.error.stage, sample.error.message or sample.error.type)
            found[reason] = found.get(reason, 0) + 1
    return tuple(Failure(*reason, count) for reason, count in sorted(found.items()))


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Files of the corpus that cannot be used, for people."""
    lines = [f"skipped {item.id}: {item.reason}" for item in skipped[:FAILURES]]
    more = len(skipped[FAILURES:])
    return [*lines, f"and {plural(more, 'more skipped file')}"] if more else lines


def failure_lines(skipped: Sequence[Skipped], failures: Sequence[Failure], left_out: int) -> list[str]:
    """Skipped files, then failed samples, of which `left_out` more are not among `failures`; for people."""
    lines = skipped_lines(skipped)
    for item in failures:
        what = "skipped" if item.stage == "load" else f"failed in {item.stage}"
        lines.append(f"{what} {item.source} ({plural(item.samples, 'sample')}): {item.message}")
    return [*lines, f"and {plural(left_out, 'more failed sample')}"] if left_out else lines


def drift_warning(drift: Drift | None) -> str | None:
    """What to say of a cache's colour drift; None where it is not seen."""
    if drift is None or drift.mean <= DRIFT_LEVELS:
        return None
    return (
        f"the teacher shifts the tone: its tiles differ from their LR images by {drift.mean:.1f} of 255 on average, by "
        f"{drift.worst:.1f} in {drift.worst_key}; a student would learn that"
    )


def _sources(plan: Plan) -> dict[str, str]:
    """Photo of every sample, by key."""
    return {sample.key: sample.tile.source for shard in plan.shards for sample in shard.samples}
