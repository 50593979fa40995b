"""The commands of stage one; `cli` makes them the command line's. Heavy imports happen inside them."""

from pathlib import Path
from typing import Annotated, Literal

from pipeline import config
from pipeline.system import options
from pipeline.system.options import argument, listing, option
from pipeline.system.progress import OnProgress
from pipeline.system.results import Result

_Kind = Literal["bicubic", "real", "paired"]


def teacher_cache(
    on_progress: OnProgress,
    corpus: options.CorpusOption,
    cache: Annotated[str, argument("CACHE", "Folder or URL (s3://...) to write; the same command goes on.")],
    teacher: options.TeacherOption = "embedded",
    degradation: Annotated[_Kind | None, option("Of LR images.  [default: real]")] = None,
    scale: Annotated[int | None, option("HR pixels to an LR pixel.  [default: 4]")] = None,
    tile: Annotated[int | None, option("Side of a training tile in HR pixels.  [default: 256]")] = None,
    steps: options.StepsOption = None,
    seed: Annotated[int | None, option("Decides every random draw.  [default: 0]")] = None,
    samples: Annotated[int | None, option("Outputs of each tile, with a seed each, 1 to 16.  [default: 1]")] = None,
    limit: Annotated[int | None, option("Use this many photos at most.")] = None,
    hold_out: Annotated[int | None, option("Photos kept out of training.  [default: 2]")] = None,
    micro_batch: Annotated[int | None, option("Tiles in one teacher call.  [default: 4]")] = None,
    preview: Annotated[int | None, option("Only draw so many tiles, CACHE-preview.png.", min=1, max=64)] = None,
    retry_errors: Annotated[bool | None, option("Make failed samples again.", "--retry-errors")] = None,
    max_failures: Annotated[
        float | None, option("Share of the samples that may fail before it stops.  [default: 0.1]", min=0, max=1)
    ] = None,
    wait: Annotated[bool | None, option("Wait for other processes' shards, or exit with 1.  [default: wait]")] = None,
    shards: Annotated[str | None, option("Only these of the plan, numbered from 0.", metavar="A-B|A|A-")] = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, option("Precision of the teacher.")] = None,
    device: options.DeviceOption = "auto",
    config_files: options.ConfigFiles = None,
    overrides: options.Overrides = None,
    settings: Annotated[bool, listing("teacher_cache.building.settings:StageOneSettings")] = False,
) -> Result:
    """Stage one: run the teacher over a corpus, once. It stores (LR, GT, teacher) as WebDataset shards.

    Several processes may run it on one cache at the same time; killed, the same command goes on. `--preview`
    shows what the teacher makes of a few tiles and what all would cost, and writes nothing of the cache.

    dtkd teacher-cache sample runs/cache --preview 8
    dtkd teacher-cache sample runs/cache
    dtkd teacher-cache ~/photos runs/cache --degradation real --hold-out 8
    dtkd teacher-cache ~/photos runs/cache --shards 0-9
    """
    from teacher_cache import stage_one
    from teacher_cache.building.settings import StageOneSettings

    pairs = {"degradation.kind": degradation, "degradation.scale": scale, "tile": tile, "limit": limit}
    outputs = {"seed": seed, "samples": samples, "hold_out": hold_out, "micro_batch": micro_batch}
    work = {"max_failure_fraction": max_failures, "retry_errors": retry_errors, "wait": wait, "shards": shards}
    how = config.load(StageOneSettings, config_files, overrides or (), {**pairs, **outputs, **work})
    return stage_one.run(
        corpus, cache, teacher, how, on_progress, preview=preview, steps=steps, dtype=dtype, device=device
    )


def check_teacher(
    on_progress: OnProgress,
    corpus: options.CorpusOption,
    teacher: options.TeacherOption = "embedded",
    tile: Annotated[int | None, option("Side of a training tile in HR pixels.  [default: 256]")] = None,
    micro_batch: Annotated[int | None, option("Tiles in one teacher call.  [default: 4]")] = None,
    steps: options.StepsOption = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, option("Precision of the teacher.")] = None,
    device: options.DeviceOption = "auto",
    config_files: options.ConfigFiles = None,
    overrides: options.Overrides = None,
) -> Result:
    """Try a teacher on a few tiles. Sizes, range, colours, whether it repeats itself; exit code 1 if anything is wrong.

    Settings are those of `teacher-cache`; nothing is written.

    dtkd check-teacher sample --teacher sd-x4 --tile 480
    dtkd check-teacher ~/photos --teacher python:my_teacher.py:make --set teacher.colour=wavelet
    """
    from pipeline.system.device import choose
    from teacher_cache import check, teachers
    from teacher_cache.building.settings import StageOneSettings

    given = {"tile": tile, "micro_batch": micro_batch}
    how = config.load(StageOneSettings, config_files, overrides or (), given)
    chosen, scale = choose(device), how.degradation.scale
    loaded = teachers.load(teacher, scale=scale, steps=steps, device=chosen, dtype=dtype, settings=how.teacher)
    return check.check_teacher(corpus, loaded, how, chosen, on_progress)


def verify(
    on_progress: OnProgress,
    cache: options.CachePlaceOption,
    recompute: Annotated[int, option("Samples to make again with the teacher.", min=0)] = 0,
    teacher: Annotated[str | None, option("Teacher for that.  [default: the cache's, by name]")] = None,
    repair: Annotated[bool, option("Set damaged shards back to not done.", "--repair")] = False,
    device: options.DeviceOption = "auto",
) -> Result:
    """Check a cache for damage. Every byte is compared with its records; exit code 1 if anything is wrong.

    dtkd verify runs/cache
    dtkd verify runs/cache --recompute 8
    """
    from teacher_cache.building.verify import load_teacher, verify_cache

    loaded = load_teacher(cache, teacher, device) if recompute else None
    return verify_cache(cache, recompute=recompute, teacher=loaded, repair=repair, on_progress=on_progress)


def status(
    on_progress: OnProgress,
    cache: options.CachePlaceOption,
    presentations: Annotated[
        int | None, option("Samples that a training is shown, for the cost.  [default: 320000]", min=1)
    ] = None,
    watch: Annotated[bool, option("Look again and again until it is complete, or Ctrl-C.", "--watch")] = False,
) -> Result:
    """How a cache stands: done and planned, time left, who is at work, failures, damage, what the teacher costs.

    It writes nothing and needs neither corpus nor teacher. Exit code 1 if a shard is damaged.

    dtkd status runs/cache
    dtkd status runs/cache --watch
    """
    from teacher_cache.reporting.ledger import PRESENTATIONS
    from teacher_cache.reporting.status import read_status

    return read_status(cache, presentations or PRESENTATIONS, watch, on_progress)


def train_teacher(
    on_progress: OnProgress,
    corpus: options.CorpusOption,
    out: Annotated[Path, argument("OUT", "Folder of the run; the same command goes on.")],
    degradation: Annotated[Literal["bicubic", "real"] | None, option("Of LR images.  [default: real]")] = None,
    scale: Annotated[int | None, option("HR pixels to an LR pixel.  [default: 4]")] = None,
    config_files: options.ConfigFiles = None,
    overrides: options.Overrides = None,
    resume: options.ResumeOption = True,
    settings: Annotated[bool, listing("teacher_cache.training.settings:TeacherRunSettings")] = False,
) -> Result:
    """Train a diffusion teacher on your own photos. It is of the embedded one's kind and takes hours, on a GPU.

    dtkd train-teacher ~/photos runs/teacher --set train.steps=60000
    dtkd teacher-cache ~/photos runs/cache --teacher runs/teacher
    """
    from teacher_cache.training import loop

    given = {"degradation.kind": degradation, "degradation.scale": scale}
    how = config.load(loop.TeacherRunSettings, config_files, overrides or (), given)
    return loop.train_teacher(corpus, out, how, "auto" if resume else "fresh", on_progress)
