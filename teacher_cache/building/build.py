"""Stage one: run the teacher once over a corpus and keep (LR, GT, teacher) as WebDataset shards.

`build_cache` surveys, plans, makes the shards that are left, and writes the manifest; `survey` and `build` are its two
halves, before and after the teacher is there. Any number of processes may run it on one
cache at the same time (`accelerate launch`, a SLURM array, several terminals): each takes the next free shard. Killed
at any moment, the same command goes on where it stopped. `process_shard` is the unit of work for other schedulers.
"""

import errno
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus import Skipped
from pipeline.schema import Drift, Sample, ShardRecord
from pipeline.system.device import out_of_memory, processors
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import ensure_dir
from pipeline.system.progress import OnProgress
from pipeline.system.results import plain
from pipeline.system.words import plural
from pipeline.teacher import Teacher
from teacher_cache.building.frozen import freeze
from teacher_cache.building.lease import Lease, acquire
from teacher_cache.building.manifest import FOLDERS, finalize
from teacher_cache.building.plan import Plan, PlannedShard, make_plan, refuse_seen
from teacher_cache.building.samples import DeviceError, Photos, SampleMaker, outcomes
from teacher_cache.building.settings import MOST_THREADS, BuildSettings
from teacher_cache.building.survey import Survey, refuse_strangers, survey
from teacher_cache.building.tally import FAILURES, Failure, Tally, drift_warning, failure_lines, failures
from teacher_cache.building.writer import Adoptable, LostLeaseError, Outcome, ShardWriter, read_record, reopen
from teacher_cache.remote import RemoteCache

__all__ = ["Build", "BuildResult", "BuildSettings", "build", "build_cache", "finalize", "prepare", "process_shard"]

_POLL = 1.0  # seconds between looks at the shards of other processes
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

OnSamples = Callable[[Sequence[Sample]], None]
"""Called with the samples so far of the shard in work, after every micro-batch."""


@dataclass(frozen=True)
class Build:
    """All that it takes to make any shard of a plan."""

    cache: Path
    plan: Plan
    maker: SampleMaker
    settings: BuildSettings
    remote: RemoteCache | None = None
    """Where the cache is, when that is not `cache`, the folder in which its shards are finished."""


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


def build_cache(
    corpus: str | Path,
    cache: str | Path,
    teacher: Teacher,
    settings: BuildSettings | None = None,
    on_progress: OnProgress | None = None,
) -> BuildResult:
    """Make the teacher cache of a corpus, or go on with it.

    Args:
        corpus: folder of photos, or `sample` (see `pipeline.corpus.scan`).
        cache: folder or URL of the cache; new, empty, or begun with the same corpus, teacher and settings.
        teacher: see `teacher_cache.teachers.load`.
        settings: what to make and how; defaults where None.
        on_progress: called after every micro-batch; counts the samples of all processes.

    Raises:
        DtkdError: nothing to do it with, another fingerprint, too many failures, a full disk, a failing device.
    """
    return build(survey(corpus, cache, settings), teacher, on_progress)


def build(surveyed: Survey, teacher: Teacher, on_progress: OnProgress | None = None) -> BuildResult:
    """`build_cache` of what was surveyed, and may have been shown to the user, before the teacher was loaded."""
    began = time.monotonic()
    share = surveyed.settings.share(len(surveyed.layout.shards))
    work = _prepare(surveyed, teacher)
    tally = Tally(work.plan, work.settings.max_failure_fraction, on_progress)
    reused = _look(work, tally, share)
    _make_all(work, tally, share)
    manifest = None
    if tally.complete:
        tally.check()
        manifest = work.remote.finalize() if work.remote else finalize(work.cache)
    images = manifest.teacher_images if manifest else 0
    told = failures(work.plan, tally.records.values())
    drift = manifest.drift if manifest else None
    warnings = (teacher.unsuited(work.settings.degradation.kind), drift_warning(drift))
    return BuildResult(
        cache=str(work.remote.store if work.remote else work.cache),
        complete=tally.complete,
        shards=len(work.plan.shards),
        shards_done=len(tally.records),
        share=(share[0], share[-1]) if work.settings.shards else None,
        share_done=all(work.plan.shards[index].name in tally.records for index in share),
        planned=work.plan.planned,
        ok=tally.processed - tally.errors,
        errors=tally.errors,
        reused=reused,
        computed=tally.computed,
        skipped=work.plan.skipped,
        failures=told[:FAILURES],
        failures_left_out=sum(failure.samples for failure in told[FAILURES:]),
        seconds=round(time.monotonic() - began, 3),
        teacher_seconds_per_image=manifest.teacher_seconds / images if manifest and images else None,
        drift=drift,
        warnings=tuple(warning for warning in warnings if warning),
    )


def prepare(corpus: str | Path, cache: str | Path, teacher: Teacher, settings: BuildSettings) -> Build:
    """Plan the cache and freeze the plan, or check it against the frozen one; then `process_shard` can do the work."""
    return _prepare(survey(corpus, cache, settings), teacher)


def plan_for(surveyed: Survey, teacher: Teacher) -> Plan:
    """The plan of a cache; nothing is written.

    Raises:
        DtkdError: the teacher does not suit the settings or the photos.
    """
    settings, layout = surveyed.settings, surveyed.layout
    scale = settings.degradation.scale
    if teacher.scale != scale:
        raise UsageError(f"the teacher {teacher.name} makes x{teacher.scale}, expected x{scale} (scale)")
    if settings.samples > 1 and not teacher.steps:
        one = f"{teacher.name} has one picture for each photo"
        raise UsageError(f"{one}, nothing that is drawn with a seed: expected --samples 1, got {settings.samples}")
    teacher.check_photos(source.id for source in layout.sources)
    refuse_seen(layout, teacher, settings.hold_out)
    return make_plan(layout, teacher, settings)


def work_on(cache: Path, plan: Plan, surveyed: Survey, teacher: Teacher, remote: RemoteCache | None = None) -> Build:
    """All that `process_shard` takes, once the folders of the cache are there; `remote` is given what is finished."""
    settings = surveyed.settings
    photos = Photos({source.id: source for source in surveyed.layout.sources})
    maker = SampleMaker(photos, teacher, settings.degradation, settings.seed, plan.context, plan.outputs)
    return Build(cache, plan, maker, settings, remote)


def _prepare(surveyed: Survey, teacher: Teacher) -> Build:
    cache, plan = surveyed.cache, plan_for(surveyed, teacher)
    with _explained(cache, "the plan"):
        ensure_dir(cache)
        refuse_strangers(cache)
        freeze(cache, plan)
        for name in FOLDERS:
            ensure_dir(cache / name)
    if surveyed.remote:
        surveyed.remote.put_plan()
    return work_on(cache, plan, surveyed, teacher, surveyed.remote)


def process_shard(work: Build, index: int, on_samples: OnSamples | None = None) -> ShardRecord | None:
    """Make shard number `index` of the plan, whole; None while another live process is at it.

    Idempotent, without any communication but files: a done shard returns its record at once, a killed attempt's samples
    are taken over, and the bytes do not depend on who made them, when, or in how many attempts.

    Raises:
        DtkdError: disk or device trouble; whatever is finished stays.
    """
    shard = work.plan.shards[index]
    if (record := _done(work, shard)) is not None:
        return record
    with _explained(work.cache, shard.name):
        lease = acquire(work.cache / "leases", shard.name, work.settings.lease_seconds)
        if lease is None:
            return None
        with lease:
            if (record := _done(work, shard)) is not None:  # finished between the two looks
                return record
            reopen(work.cache, shard, work.plan.fingerprint_digest)  # in case of a damaged record or a missing tar
            with suppress(LostLeaseError):
                record = _make(work, shard, lease, on_samples)
                if work.remote:
                    work.remote.put_shard(shard.name)
                return record
    return None


def _make(work: Build, shard: PlannedShard, lease: Lease, on_samples: OnSamples | None) -> ShardRecord:
    digest = work.plan.fingerprint_digest
    adoptable = Adoptable(work.cache, shard, digest, with_errors=not work.settings.retry_errors)
    with ShardWriter(work.cache, shard, digest, lease) as writer, closing(_outcomes(work, shard, adoptable)) as batches:
        for outcomes in batches:
            if not lease.held():
                raise LostLeaseError
            for outcome in outcomes:
                writer.add(outcome)
            if on_samples:
                on_samples(writer.samples)
        return writer.commit()


def _outcomes(work: Build, shard: PlannedShard, adoptable: Adoptable) -> Generator[list[Outcome]]:
    """Outcomes of a shard, one micro-batch at a time."""
    size = work.plan.batch(shard)
    batches = [shard.samples[start : start + size] for start in range(0, len(shard.samples), size)]
    return outcomes(work.maker, batches, size, adoptable, work.settings.threads or min(processors(), MOST_THREADS))


def _look(work: Build, tally: Tally, share: range) -> int:
    """Take in the shards that are done already; returns their number of samples.

    Reopens the failed ones of `share` where asked to.
    """
    for index, shard in enumerate(work.plan.shards):
        record = _done(work, shard)
        if record and record.errors and work.settings.retry_errors and index in share:
            with _explained(work.cache, shard.name):
                lease = acquire(work.cache / "leases", shard.name, work.settings.lease_seconds)
                if lease is not None:
                    with lease:
                        reopen(work.cache, shard, work.plan.fingerprint_digest)
        elif record:
            tally.shard_left(record)
    return tally.processed


def _make_all(work: Build, tally: Tally, share: range) -> None:
    """Make the shards of `share` that are left, and wait for those that others are making; a static share waits not.

    Looks at the rest at the end of a static share: of processes that end together, the last one sees all shards done.
    """
    static = work.settings.shards is not None
    _make_share(work, tally, share, wait=work.settings.wait and not static)
    if static:
        if work.remote:
            work.remote.look()
        for index, shard in enumerate(work.plan.shards):
            if shard.name not in tally.records:
                _taken_in(work, index, tally)


def _make_share(work: Build, tally: Tally, share: range, *, wait: bool) -> None:
    pending = [index for index in share if work.plan.shards[index].name not in tally.records]
    while pending:
        busy: list[int] = []
        for index in pending:
            record = process_shard(work, index, tally.samples_done)
            tally.shard_left(record)
            busy = [other for other in busy if not _taken_in(work, other, tally)]  # so that the time left is true
            if record is None:
                busy.append(index)
        if busy and not wait:
            return
        if busy == pending:
            tally.report(f"waiting for {plural(len(busy), 'shard')} of other processes")
            time.sleep(_POLL)
        pending = busy


def _taken_in(work: Build, index: int, tally: Tally) -> bool:
    """Whether another process has finished its shard meanwhile, which is counted then."""
    record = _done(work, work.plan.shards[index])
    if record:
        tally.shard_left(record)
    return record is not None


def _done(work: Build, shard: PlannedShard) -> ShardRecord | None:
    """The record of a done shard; None when it is not done, or not sound."""
    with suppress(DtkdError):
        if work.remote is None or shard.name in work.remote.done:
            return read_record(work.cache, shard, work.plan.fingerprint_digest, work.remote and work.remote.store)
    return None


@contextmanager
def _explained(cache: Path, what: str) -> Iterator[None]:
    """Trouble with the disk, memory or the device, in one line; what is finished stays."""
    go_on = "finished samples are kept: run the same command again to go on"
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in _DISK_FULL else str(error)
        raise DtkdError(f"{cache}: {what} could not be written: {reason}; {go_on}") from error
    except (MemoryError, DeviceError) as error:
        reason = str(error) or "out of memory"
        smaller = (
            "where there is more memory; here, begin a new cache with a smaller --micro-batch (at 1: a smaller "
            "--tile), which cannot change in this one because the batch's shape is part of the bytes"
        )
        advice = f", {smaller}" if out_of_memory(error.__cause__ or error) else ", perhaps elsewhere"
        raise DtkdError(f"{cache}: {what} stopped: {reason}; {go_on}{advice}") from error
