"""The command line, `dtkd`: a table of commands that parse, call one function of a stage, and return its result.

Those of one stage stand in its `commands`, those that need both stages here.

Results go to standard output (`--json`: as one JSON object), progress and errors to standard error; under `--json` an
error is an object `{"error": ...}` as well. Exit code 0 is success, 2 wrong usage, 1 everything else, Ctrl-C and
SIGTERM included. Heavy imports happen inside the commands.
"""

from pathlib import Path
from typing import Annotated, Literal

from pipeline import config
from pipeline.system import options
from pipeline.system.options import argument, option
from pipeline.system.progress import OnProgress
from pipeline.system.results import Result
from student.commands import ablate, export, mix, plot, report, train_student, upscale
from teacher_cache.commands import check_teacher, status, teacher_cache, train_teacher, verify

app = options.application("Distil a multi-step diffusion super-resolution teacher into a one-pass transformer student.")

_Benched = Literal["student", "train", "teacher", "cache"]


@app.callback()
def _root(show_version: options.VersionOption = False) -> None:
    pass


def evaluate(
    on_progress: OnProgress,
    candidates: Annotated[list[str], argument("CANDIDATE...", "Weights, runs, images:FOLDER, teacher:NAME, bicubic.")],
    data: Annotated[list[Path], option("Folder with HR/ and LR/, or one of them; or a cache. Repeatable.")],
    protocol: Annotated[str, option("How figures are taken: classical, osediff, noref.")] = "classical",
    metrics: Annotated[str | None, option("psnr_y and others, by commas.  [default: the protocol's]")] = None,
    out: Annotated[Path | None, option("Write metrics.json, .csv, .md and pictures there.")] = None,
    page: Annotated[Path | None, option("Write an HTML page with pictures there.", "--report")] = None,
    overwrite: options.OverwriteOption = False,
    crop_border: Annotated[int | None, option("Pixels left out by psnr_y.  [default: the protocol's]")] = None,
    scale: Annotated[int | None, option("Only needed for bicubic alone.  [default: 4]")] = None,
    limit: Annotated[int | None, option("Take the first images only.")] = None,
    baseline: Annotated[str, option("Candidate that the others are compared with.")] = "bicubic",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
) -> Result:
    """Measure candidates, bicubic beside them. An image that cannot be used is named; exit code 1 then.

    dtkd evaluate runs/a runs/b --data data/RealSR --metrics psnr_y,ssim_y,lpips,maniqa-pipal --out runs/scores
    dtkd evaluate tiny-x4 teacher:embedded images:outputs/osediff --data data/RealSR --crop-border 0
    """
    from student.report.evaluation import EvaluationSettings, evaluate_to_page
    from teacher_cache.teachers import load_each

    teachers = load_each([n.removeprefix("teacher:") for n in candidates if n.startswith("teacher:")], scale, device)
    given = {"protocol": protocol, "crop_border": crop_border, "scale": scale, "limit": limit, "baseline": baseline}
    given |= {"device": device, "precision": precision}
    how = config.load(EvaluationSettings, None, [f"metrics={metrics}"] if metrics is not None else [], given)
    return evaluate_to_page(
        candidates, data, page, how, teachers, out=out, overwrite=overwrite, on_progress=on_progress
    )


def audit(
    on_progress: OnProgress,
    cache: options.CacheOption,
    student: Annotated[str | None, option("GT-only student: what it lacks is the discrepancy.")] = None,
    teacher: Annotated[str | None, option("Ask it for another seed.  [default: the cache's second outputs]")] = None,
    tiles: Annotated[int, option("Tiles to measure.", min=1)] = 128,
    levels: Annotated[int, option("Levels of the Haar transform.", min=1, max=3)] = 2,
    out: Annotated[Path | None, option("Write audit.json, audit.svg and weights.toml there.")] = None,
    overwrite: options.OverwriteOption = False,
    device: options.DeviceOption = "auto",
) -> Result:
    """Measure what a student can learn from a cache: per band, what there is, how much of it is the same for all seeds.

    `train-student --config OUT/weights.toml` takes the calibrated weights.

    dtkd audit runs/cache
    dtkd audit runs/cache --student runs/gt-only --teacher embedded --out runs/audit
    """
    from student.study.audit_files import audit_cache
    from teacher_cache.building.verify import load_teacher

    again = load_teacher(cache, teacher, device) if teacher else None
    return audit_cache(cache, student, again, out, overwrite, tiles=tiles, levels=levels, on_progress=on_progress)


def bench(
    on_progress: OnProgress,
    what: Annotated[_Benched, argument("student|train|teacher|cache", "What to measure.")],
    preset: Annotated[str, option("Preset of the student.")] = "light",
    compiled: Annotated[bool, option("Networks in PyTorch through torch.compile.", "--compile")] = False,
    teacher: options.TeacherOption = "embedded",
    steps: options.StepsOption = None,
    corpus: Annotated[str, option("Photos for the teacher and the training, or: sample")] = "sample",
    rounds: Annotated[int, option("Turns in each case.", min=1)] = 5,
    tiles: Annotated[int, option("Tiles of a turn, for the cache.", min=1)] = 64,
    plan: Annotated[int | None, option("Instead, simulate a cache of so many samples.", min=1)] = None,
    device: Annotated[str, option("cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, option("Threads of CPU operators.", min=1)] = 2,
    train_steps: Annotated[int, option("Steps of a real training, for waiting and memory; 0: none.", min=0)] = 0,
) -> Result:
    """Measure speed and memory: of the student and its training step beside other programs, of a teacher, of a cache.

    dtkd bench student --preset tiny --rounds 9 --json
    dtkd bench train --preset tiny --train-steps 1000
    dtkd bench teacher --rounds 3
    dtkd bench cache --tiles 32
    dtkd bench cache --plan 100000
    """
    from pipeline.system.device import choose
    from student.benchmarks.inference import Setup, bench_student
    from student.benchmarks.training import bench_train
    from teacher_cache.benchmarks.cache import bench_cache
    from teacher_cache.benchmarks.scale import bench_plan
    from teacher_cache.benchmarks.teacher import BuildSettings, bench_teacher, temporary_cache
    from teacher_cache.teachers import load

    chosen = choose(device)
    if what == "student":
        return bench_student(Setup(preset, device=chosen, threads=threads, compiled=compiled), rounds)
    if what == "train" and train_steps:
        with temporary_cache(corpus) as cache:
            return bench_train(preset, chosen, threads, rounds, cache=cache, steps=train_steps, compiled=compiled)
    if what == "train":
        return bench_train(preset, chosen, threads, rounds, compiled=compiled)
    if what == "cache" and plan is not None:
        return bench_plan(plan, BuildSettings())
    loaded = load(teacher, steps=steps, device=chosen)
    if what == "cache":
        return bench_cache(corpus, loaded, BuildSettings(), rounds, threads, chosen, tiles)
    return bench_teacher(corpus, loaded, BuildSettings(), rounds, threads, chosen)


for _command in (
    *(teacher_cache, check_teacher, status, verify, train_teacher),
    *(train_student, evaluate, report, plot, audit, ablate, mix),
    *(upscale, export, bench),
):
    options.command_of(app)(_command)


if __name__ == "__main__":
    app()
