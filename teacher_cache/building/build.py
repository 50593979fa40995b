"""Stage one: run the teacher once over a corpus and keep (LR, GT, teacher) as WebDataset shards.

`build_cache` plans, makes the shards that are left, and writes the manifest. Any number of processes may run it on one
cache at the same time (`accelerate launch`, a SLURM array, several terminals): each takes the next free shard. Killed
at any moment, the same command goes on where it stopped. `process_shard` is the unit of work for other schedulers.
"""

import errno
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import corpus as corpora
from pipeline.corpus import Skipped
from pipeline.schema import Drift, Sample, SampleError, ShardRecord
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir
from pipeline.system.progress import OnProgress
from pipeline.system.results import plain
from pipeline.system.words import plural
from teacher_cache.building.lease import Lease, acquire
from teacher_cache.building.manifest import FOLDERS, finalize
from teacher_cache.building.plan import BuildSettings, Plan, PlannedSample, PlannedShard, freeze, make_plan
from teacher_cache.building.samples import Cut, DeviceError, Photos, SampleMaker
from teacher_cache.building.tally import FAILURES, Failure, Tally, failures
from teacher_cache.building.writer import Adoptable, LostLeaseError, Outcome, ShardWriter, read_record, reopen
from teacher_cache.teachers import ImportedTeacher, Teacher

__all__ = ["BuildResult", "BuildSettings", "Job", "build_cache", "finalize", "prepare", "process_shard"]

_POLL = 1.0  # seconds between looks at the shards of other processes
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

OnSamples = Callable[[Sequence[Sample]], None]
"""Called with the samples so far of the shard in work, after every micro-batch."""


@dataclass(frozen=True)
class Job:
    """All that it takes to make any shard of a plan."""

    cache: Path
    plan: Plan
    maker: SampleMaker
    settings: BuildSettings


@dataclass(frozen=True)
class BuildResult:
    """What a run of stage one achieved."""

    cache: Path
    complete: bool  # False: other processes still work on some shards, and `wait` was off
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

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return None if self.complete else f"{self.cache} is not complete yet: run the same command again later"

    def lines(self) -> list[str]:
        """For people: what could not be used, then how the cache stands."""
        lines = [f"skipped {item.id}: {item.reason}" for item in self.skipped]
        for item in self.failures:
            what = "skipped" if item.stage == "load" else f"failed in {item.stage}"
            lines.append(f"{what} {item.source} ({plural(item.samples, 'sample')}): {item.message}")
        if self.failures_left_out:
            lines.append(f"and {plural(self.failures_left_out, 'more failed sample')}")
        made = "all reused, nothing was left to do" if not self.computed else f"{self.computed} made now"
        parts = [f"{self.ok} of {plural(self.planned, 'sample')}", made]
        parts += [f"{self.errors} failed"] if self.errors else []
        parts += [f"teacher {self.teacher_seconds_per_image:.2f} s an image"] if self.teacher_seconds_per_image else []
        parts += [f"colour drift {self.drift.mean:.2f} of 255"] if self.drift else []
        lines.append(f"{self.cache}: {', '.join(parts)}")
        return lines if self.complete else [*lines, "other processes are still at work on the rest"]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain(self)


def build_cache(
    corpus: str | Path,
    cache: str | Path,
    teacher: Teacher | ImportedTeacher,
    settings: BuildSettings | None = None,
    on_progress: OnProgress | None = None,
) -> BuildResult:
    """Make the teacher cache of a corpus, or go on with it.

    Args:
        corpus: folder of photos, or `sample` (see `pipeline.corpus.scan`).
        cache: folder of the cache; new, empty, or begun with the same corpus, teacher and settings.
        teacher: see `teacher_cache.teachers.load`.
        settings: what to make and how; defaults where None.
        on_progress: called after every micro-batch; counts the samples of all processes.

    Raises:
        DtkdError: nothing to do it with, another fingerprint, too many failures, a full disk, a failing device.
    """
    began = time.monotonic()
    settings = settings or BuildSettings()
    job = prepare(corpus, Path(cache), teacher, settings)
    tally = Tally(job.plan, settings.max_failure_fraction, on_progress)
    reused = _look(job, tally)
    _make_all(job, tally)
    manifest = None
    if tally.complete:
        tally.check()
        manifest = finalize(job.cache)
    images = manifest.teacher_images if manifest else 0
    told = failures(job.plan, tally.records.values())
    return BuildResult(
        cache=job.cache,
        complete=tally.complete,
        planned=job.plan.planned,
        ok=tally.processed - tally.errors,
        errors=tally.errors,
        reused=reused,
        computed=tally.computed,
        skipped=job.plan.skipped,
        failures=told[:FAILURES],
        failures_left_out=sum(failure.samples for failure in told[FAILURES:]),
        seconds=round(time.monotonic() - began, 3),
        teacher_seconds_per_image=manifest.teacher_seconds / images if manifest and images else None,
        drift=manifest.drift if manifest else None,
    )


def prepare(corpus: str | Path, cache: Path, teacher: Teacher | ImportedTeacher, settings: BuildSettings) -> Job:
    """Plan the cache and freeze the plan, or check it against the frozen one."""
    degradation = settings.degradation
    if teacher.scale != degradation.scale:
        raise DtkdError(f"the teacher {teacher.name} makes x{teacher.scale}, expected x{degradation.scale} (scale)")
    settings.check_tile()
    paired = degradation.kind == "paired"
    found = corpora.scan(corpus, paired=paired, scale=degradation.scale, min_side=settings.tile)
    plan, sources = make_plan(found, teacher, settings)
    if isinstance(teacher, ImportedTeacher):
        teacher.refuse_shared(sources)
    with _explained(cache, "the plan"):
        ensure_dir(cache)
        _refuse_strangers(cache)
        freeze(cache, plan)
        for name in FOLDERS:
            ensure_dir(cache / name)
    return Job(cache, plan, SampleMaker(Photos(sources), teacher, degradation, settings.seed, plan.context), settings)


def process_shard(job: Job, index: int, on_samples: OnSamples | None = None) -> ShardRecord | None:
    """Make shard number `index` of the plan, whole; None while another live process is at it.

    Idempotent, without any communication but files: a done shard returns its record at once, a killed attempt's samples
    are taken over, and the bytes do not depend on who made them, when, or in how many attempts.

    Raises:
        DtkdError: disk or device trouble; whatever is finished stays.
    """
    shard = job.plan.shards[index]
    if (record := _done(job, shard)) is not None:
        return record
    with _explained(job.cache, shard.name):
        lease = acquire(job.cache / "leases", shard.name, job.settings.lease_seconds)
        if lease is None:
            return None
        with lease:
            if (record := _done(job, shard)) is not None:  # finished between the two looks
                return record
            reopen(job.cache, shard, job.plan.fingerprint_digest)  # in case of a damaged record or a missing tar
            with suppress(LostLeaseError):
                return _make(job, shard, lease, on_samples)
    return None


def _make(job: Job, shard: PlannedShard, lease: Lease, on_samples: OnSamples | None) -> ShardRecord:
    digest = job.plan.fingerprint_digest
    adoptable = Adoptable(job.cache, shard, digest, with_errors=not job.settings.retry_errors)
    with ShardWriter(job.cache, shard, digest, lease) as writer, closing(_outcomes(job, shard, adoptable)) as batches:
        for outcomes in batches:
            if not lease.held():
                raise LostLeaseError
            for outcome in outcomes:
                writer.add(outcome)
            if on_samples:
                on_samples(writer.samples)
        return writer.commit()


def _outcomes(job: Job, shard: PlannedShard, adoptable: Adoptable) -> Generator[list[Outcome]]:
    """Outcomes, one micro-batch at a time; the next one is cut and degraded while the teacher is busy with this one.

    A micro-batch is taken over from an earlier attempt whole or not at all, so that the teacher always gets the same
    images together and the bytes cannot depend on where that attempt ended.
    """
    size = job.plan.batch(shard)
    batches = [shard.samples[start : start + size] for start in range(0, len(shard.samples), size)]

    def ready(batch: tuple[PlannedSample, ...]) -> list[Outcome] | list[Cut | SampleError]:
        found = [adoptable.outcome(sample.key) for sample in batch]
        adopted = [outcome for outcome in found if outcome is not None]
        return adopted if len(adopted) == len(batch) else job.maker.cut(batch)

    with ThreadPoolExecutor(1, "cut") as pool:
        following = pool.submit(ready, batches[0])
        for number, batch in enumerate(batches):
            items = following.result()
            if number + 1 < len(batches):
                following = pool.submit(ready, batches[number + 1])
            adopted = [item for item in items if isinstance(item, Outcome)]
            cuts = [item for item in items if not isinstance(item, Outcome)]
            yield adopted or job.maker.finish(batch, cuts, size)


def _look(job: Job, tally: Tally) -> int:
    """Take in the shards that are done already; returns their number of samples. Reopens failed ones where asked to."""
    for shard in job.plan.shards:
        record = _done(job, shard)
        if record and record.errors and job.settings.retry_errors:
            with _explained(job.cache, shard.name):
                lease = acquire(job.cache / "leases", shard.name, job.settings.lease_seconds)
                if lease is not None:
                    with lease:
                        reopen(job.cache, shard, job.plan.fingerprint_digest)
        elif record:
            tally.shard_left(record)
    return tally.processed


def _make_all(job: Job, tally: Tally) -> None:
    """Make the shards that are left, and wait for those that others are making."""
    pending = [index for index, shard in enumerate(job.plan.shards) if shard.name not in tally.records]
    while pending:
        busy = []
        for index in pending:
            record = process_shard(job, index, tally.samples_done)
            tally.shard_left(record)
            if record is None:
                busy.append(index)
        if busy and not job.settings.wait:
            return
        if busy == pending:
            tally.report(f"waiting for {plural(len(busy), 'shard')} of other processes")
            time.sleep(_POLL)
        pending = busy


def _done(job: Job, shard: PlannedShard) -> ShardRecord | None:
    """The record of a done shard; None when it is not done, or not sound."""
    with suppress(DtkdError):
        return read_record(job.cache, shard, job.plan.fingerprint_digest)
    return None


def _refuse_strangers(cache: Path) -> None:
    """A folder with other things in it is not turned into a cache."""
    if not (cache / "plan.json").exists():
        strange = sorted(path.name for path in cache.iterdir() if not path.name.startswith("."))
        if strange and not (cache / "plan.json").exists():  # looked again: another process may have begun the cache
            raise DtkdError(f"{cache} holds other files ({', '.join(strange[:3])}): give a new or an empty folder")


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
        raise DtkdError(f"{cache}: {what} stopped: {reason}; {go_on} (elsewhere, or with a smaller tile)") from error
