"""The command line, `dtkd`: it parses, calls one function of a stage, and tells what came out.

Results go to standard output (`--json`: as one JSON object), progress and errors to standard error. Exit code 0 is
success, 2 wrong usage, 1 everything else, Ctrl-C included. Heavy imports happen inside the commands.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from pipeline import config
from pipeline.system import progress
from pipeline.system.errors import DtkdError

EXIT_FAILURE, EXIT_USAGE = 1, 2
_T = TypeVar("_T")


class _UsageError(DtkdError):
    """Options or settings that cannot be: exit code 2."""


class _Commands(TyperGroup):
    """Commands whose known failures are one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was parsed."""
        try:
            return super().invoke(ctx)
        except DtkdError as error:
            _fail(str(error), EXIT_USAGE if isinstance(error, _UsageError) else EXIT_FAILURE)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command again to go on")
        except OSError as error:
            if error.strerror is None:  # not the operating system's word about a file or a disk
                raise
            _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            _fail("the GPU ran out of memory: use a smaller --micro-batch, --tile, train.batch_size or image")


app = typer.Typer(
    cls=_Commands,
    help="Distil a multi-step diffusion super-resolution teacher into a single-forward transformer student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _examples(*commands: str) -> str:
    """Epilog of a command's help, with its line breaks kept."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


_Cache = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of a teacher cache.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text, and no progress.")]
_Device = Annotated[str, typer.Option(help="Torch device; auto takes a GPU where there is one.")]
_Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML.")]
_Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")]
_Kind = Literal["bicubic", "real", "paired"]


@app.callback()
def _root(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(f"dtkd {version('dtkd')}")
        raise typer.Exit
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # pyiqa brings it; its missing CPU kernels concern nobody


@app.command(
    epilog=_examples(
        "dtkd teacher-cache sample runs/cache",
        "dtkd teacher-cache ~/photos runs/cache --degradation real --hold-out 8",
    )
)
def teacher_cache(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="Folder of photos at any depth, or: sample", show_default=False)
    ],
    cache: Annotated[
        Path, typer.Argument(metavar="CACHE", help="Folder to write; the same command goes on.", show_default=False)
    ],
    teacher: Annotated[
        str, typer.Option(help="embedded, embedded-bicubic, ldm[:ID], sd-x4[:ID], FOLDER, or import:FOLDER")
    ] = "embedded",
    degradation: Annotated[_Kind | None, typer.Option(help="How LR images are made.  [default: real]")] = None,
    scale: Annotated[int | None, typer.Option(help="HR pixels to an LR pixel.  [default: 4]")] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a training tile in HR pixels.  [default: 256]")] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations an image.  [default: the teacher's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random draw.  [default: 0]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many photos at most.")] = None,
    hold_out: Annotated[int | None, typer.Option(help="Photos kept out of training.  [default: 2]")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Tiles in one teacher call.  [default: 4]")] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Make failed samples again.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait for shards of other processes; else exit with 1.")] = True,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Precision of the teacher.")] = None,
    device: _Device = "auto",
    config_file: _Config = None,
    settings: _Set = None,
    as_json: _Json = False,
) -> None:
    """Stage one: run the teacher over a corpus, once.

    It stores (LR, GT, teacher) as WebDataset shards. Several processes may run it on one cache at the same time;
    killed, the same command goes on.
    """
    given = {
        "degradation.kind": degradation,
        "degradation.scale": scale,
        "tile": tile,
        "seed": seed,
        "limit": limit,
        "hold_out": hold_out,
        "micro_batch": micro_batch,
        "retry_errors": retry_errors or None,
        "wait": None if wait else "false",
    }
    from teacher_cache.building.plan import BuildSettings

    build_settings = _settings(BuildSettings, config_file, settings, given)
    from pipeline.system.device import choose
    from teacher_cache import teachers
    from teacher_cache.building import build

    name = _home(teacher)
    made_for = build_settings.degradation.scale
    loaded = teachers.load(name, scale=made_for, steps=steps, device=choose(device), dtype=dtype)
    try:
        build_settings.check_tile()
    except DtkdError as error:
        raise _UsageError(str(error)) from error
    with progress.report("teacher-cache", quiet=_quiet(as_json)) as on_progress:
        result = build.build_cache(_home(corpus), cache.expanduser(), loaded, build_settings, on_progress)
    _tell(as_json, _plain(result), _cache_lines(result))
    warning = teachers.warning(name, build_settings.degradation.kind)
    if warning and _first_process():
        typer.echo(f"warning: {warning}", err=True)
    if not result.complete:
        if not as_json:
            typer.echo("other processes are still at work on the rest")
        raise typer.Exit(EXIT_FAILURE)


@app.command(
    epilog=_examples(
        "dtkd verify runs/cache",
        "dtkd verify runs/cache --recompute 8",
    )
)
def verify(
    cache: _Cache,
    recompute: Annotated[int, typer.Option(min=0, help="Samples to make again with the teacher.")] = 0,
    teacher: Annotated[str | None, typer.Option(help="Teacher for that.  [default: the cache's, by name]")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged shards back to not done.")] = False,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Check a cache for damage.

    Every byte is compared with its records; exit code 1 if anything is wrong.
    """
    from teacher_cache.building.verify import verify_cache

    cache = cache.expanduser()
    loaded = _teacher_of(cache, teacher, device) if recompute else None
    with progress.report("verify", quiet=_quiet(as_json)) as on_progress:
        result = verify_cache(cache, recompute=recompute, teacher=loaded, repair=repair, on_progress=on_progress)
    lines = [f"{item.shard}{f' {item.key}' if item.key else ''}: {item.reason}" for item in result.damage]
    lines += [
        f"{item.key}: made again, differs by at most {item.max_difference} of 255 (mean {item.mean_difference})"
        for item in result.recomputed
    ]
    lines.append(
        f"{result.shards} shards, {result.samples} sound samples, {result.errors} failed ones: {result.advice}"
    )
    _tell(as_json, {**_plain(result), "ok": result.ok, "advice": result.advice}, lines)
    if not result.ok:
        raise typer.Exit(EXIT_FAILURE)


@app.command(
    epilog=_examples(
        "dtkd train-student runs/cache runs/student",
        "dtkd train-student runs/cache runs/student --set model.preset=tiny --set train.steps=2000",
        "dtkd train-student runs/cache runs/gt-only --set loss.lambda_max=0",
    )
)
def train_student(
    cache: _Cache,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run; the same command goes on.", show_default=False)
    ],
    config_file: _Config = None,
    settings: _Set = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on, or delete what an earlier run left.")] = True,
    as_json: _Json = False,
) -> None:
    """Stage two: train a student from a teacher cache."""
    from student.training.loop import RunSettings, train

    run_settings = _settings(RunSettings, config_file, settings, {})
    run = run.expanduser()
    with progress.report("train-student", quiet=_quiet(as_json)) as on_progress:
        result = train(cache.expanduser(), run, run_settings, "auto" if resume else "fresh", on_progress)
    if result.reused:
        line = f"{run}: finished before, {result.step} steps; reused as it is (--fresh trains anew)"
    else:
        line = f"{run}: {result.step} of {result.steps} steps in {progress.clock_text(result.seconds)} of training"
    quality = f"psnr_y {result.psnr_y:.2f} dB on held-out samples" if result.psnr_y is not None else ""
    skipped = f"{result.skipped} steps left out, not finite" if result.skipped else ""
    lines = [", ".join(part for part in (line, quality, skipped) if part), f"student: {result.student}"]
    _tell(as_json, {**_plain(result), "finished": result.finished}, lines)
    if not result.finished:
        raise KeyboardInterrupt


@app.command(
    epilog=_examples(
        "dtkd evaluate runs/student --data data/Set14",
        "dtkd evaluate runs/a runs/b --data data/RealSR --metrics psnr_y,ssim_y,lpips,maniqa-pipal --out runs/scores",
        "dtkd evaluate bicubic --data data/Set14 --crop-border 0",
    )
)
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT", help="Weight files, run folders, or: bicubic", show_default=False),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder with HR/ and LR/, or one of them; or a cache.", show_default=False)
    ],
    metrics: Annotated[str, typer.Option(help="psnr_y, ssim_y, and pyiqa's names, separated by commas.")] = (
        "psnr_y,ssim_y,piqe"
    ),
    out: Annotated[Path | None, typer.Option(help="Write metrics.json, metrics.csv and pictures there.")] = None,
    crop_border: Annotated[
        int | None, typer.Option(help="Pixels left out by psnr_y, ssim_y.  [default: scale]")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="Only needed for bicubic alone.  [default: 4]")] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first images only.")] = None,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Measure checkpoints, bicubic beside them.

    The data is a folder of images or a cache, whose held-out photos are taken. An image that cannot be used is named,
    and the others are measured; exit code 1 then.
    """
    from student.evaluation.evaluate import EvaluationSettings
    from student.evaluation.evaluate import evaluate as run_evaluation
    from student.evaluation.scores_text import score_lines

    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    try:
        settings = EvaluationSettings(names, crop_border, scale, limit, device)
    except DtkdError as error:
        raise _UsageError(str(error)) from error
    paths, out = [_home(name) for name in checkpoints], out.expanduser() if out else None
    with progress.report("evaluate", quiet=_quiet(as_json)) as on_progress:
        result = run_evaluation(paths, data.expanduser(), settings, out=out, on_progress=on_progress)
    lines = [*score_lines(result, {}), *([f"written to {out}"] if out else [])]
    _tell(as_json, result.to_json(), lines)
    if result.skipped:
        raise typer.Exit(EXIT_FAILURE)


@app.command(
    epilog=_examples(
        "dtkd train-teacher ~/photos runs/teacher --set train.steps=60000",
        "dtkd teacher-cache ~/photos runs/cache --teacher runs/teacher",
    )
)
def train_teacher(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="Folder of photos at any depth, or: sample", show_default=False)
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the run; the same command goes on.", show_default=False)
    ],
    degradation: Annotated[
        Literal["bicubic", "real"] | None, typer.Option(help="How LR images are made.  [default: real]")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="HR pixels to an LR pixel.  [default: 4]")] = None,
    config_file: _Config = None,
    settings: _Set = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on, or delete what an earlier run left.")] = True,
    as_json: _Json = False,
) -> None:
    """Train a diffusion teacher on your own photos.

    It is of the embedded teacher's kind and takes hours, on a GPU.
    """
    from teacher_cache.training.loop import TeacherRunSettings
    from teacher_cache.training.loop import train_teacher as train

    given = {"degradation.kind": degradation, "degradation.scale": scale}
    run_settings = _settings(TeacherRunSettings, config_file, settings, given)
    mode = "auto" if resume else "fresh"
    with progress.report("train-teacher", quiet=_quiet(as_json)) as on_progress:
        result = train(_home(corpus), out.expanduser(), run_settings, mode, on_progress)
    state = (
        "finished before, reused as it is" if result.reused else f"{progress.clock_text(result.seconds)} of training"
    )
    lines = [f"skipped {item.id}: {item.reason}" for item in result.skipped]
    lines.append(f"{out}: {result.step} of {result.steps} steps, {state}")
    if result.psnr_y is not None:
        lines.append(f"psnr_y {result.psnr_y:.2f} dB on held-out photos, bicubic {result.psnr_y_bicubic:.2f}")
    _tell(as_json, {**_plain(result), "finished": result.finished}, [*lines, f"teacher: {result.teacher}"])
    if not result.finished:
        raise KeyboardInterrupt


@app.command(
    epilog=_examples(
        "dtkd report runs/cache runs/report.html --dtkd runs/student --gt-only runs/gt-only",
    )
)
def report(
    cache: _Cache,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="HTML file to write.", show_default=False)],
    dtkd: Annotated[Path, typer.Option(help="Run folder of the distilled student.", show_default=False)],
    gt_only: Annotated[Path | None, typer.Option(help="Run folder trained on the ground truth only.")] = None,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Write the page that compares students and teacher.

    Bicubic, a GT-only student, the DTKD student, the teacher and the ground truth on a cache's held-out photos, with
    figures, pictures, curves and times, in one HTML file. Exit code 1 where a photo could not be measured.
    """
    from student.evaluation.scores_text import score_lines
    from student.report.write import write_report

    folder = gt_only.expanduser() if gt_only else None
    with progress.report("report", quiet=_quiet(as_json)) as on_progress:
        made = write_report(
            cache.expanduser(),
            dtkd.expanduser(),
            out.expanduser(),
            gt_only=folder,
            device=device,
            on_progress=on_progress,
        )
    lines = score_lines(made.evaluation, made.labels)
    if made.ratio:
        lines.append(
            f"a held-out photo takes the teacher {made.teacher_seconds:.2f} s and the student "
            f"{made.student_seconds:.3f} s: {made.ratio:.1f} times faster"
        )
    lines.append(f"report: {made.path}")
    times = {"teacher_seconds": made.teacher_seconds, "student_seconds": made.student_seconds, "ratio": made.ratio}
    _tell(as_json, {"report": str(made.path), **times, "evaluation": made.evaluation.to_json()}, lines)
    if made.evaluation.skipped:
        raise typer.Exit(EXIT_FAILURE)


@app.command(
    epilog=_examples(
        "dtkd upscale photo.jpg photo-x4.png",
        "dtkd upscale ~/photos ~/photos-x4 --format webp",
        "dtkd upscale 'scans/**/*.tif' large --checkpoint runs/student --tile 256",
    )
)
def upscale(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders or patterns.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="File for one picture, folder for several.", show_default=False)
    ],
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Shipped student, run folder, or weight file.")
    ] = "tiny-x4",
    tile: Annotated[
        str, typer.Option(metavar="auto|N", help="Largest tile in pixels, a multiple of 8; auto: by free memory.")
    ] = "auto",
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring tiles share, a multiple of 8.")] = 32,
    kind: Annotated[
        Literal["png", "webp", "jpg", "tif"] | None,
        typer.Option("--format", help="Of results in a folder.  [default: the picture's]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse larger results.")] = 1100,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Upscale pictures with a student.

    Alpha, 16 bits, EXIF and colour profile are kept. A picture that fails is named, and the others are done; exit code
    1 then. PNG and TIFF results are written as they come, so that even a large one needs little memory.
    """
    from student.networks import load_network
    from student.upscaling.upscale import UpscaleSettings
    from student.upscaling.upscale import upscale as run_upscale

    if tile != "auto" and not tile.isdecimal():
        raise _UsageError(f"--tile must be auto or a multiple of 8, got {tile}")
    size = None if tile == "auto" else int(tile)
    settings = UpscaleSettings(size, overlap, overwrite, f".{kind}" if kind else None, max_megapixels)
    network = load_network(_home(checkpoint), device)
    with progress.report("upscale", quiet=_quiet(as_json)) as on_progress:
        result = run_upscale([_home(name) for name in inputs], output.expanduser(), network, settings, on_progress)
    lines = [
        f"{w.source} -> {w.target}: {w.width}x{w.height}, {progress.clock_text(w.seconds)}" for w in result.written
    ]
    lines += [f"left alone {item.source}: {item.reason}" for item in result.existing]
    lines += [f"failed {item.source}: {item.reason}" for item in result.failed]
    counts = (len(result.written), len(result.existing), len(result.failed))
    _tell(as_json, result.to_json(), [*lines, "{} written, {} left alone, {} failed".format(*counts)])
    if result.failed:
        raise typer.Exit(EXIT_FAILURE)


@app.command(
    epilog=_examples(
        "dtkd export runs/student student.safetensors",
        "dtkd export runs/student student.onnx --half",
        "dtkd export runs/student my-student",
    )
)
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="Weight file, run folder or shipped student.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="FILE.safetensors, FILE.onnx, or a huggingface FOLDER.", show_default=False),
    ],
    kind: Annotated[
        Literal["safetensors", "onnx", "huggingface"] | None,
        typer.Option("--format", help="What to write, where the name does not say it.", show_default=False),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16; computing stays float32.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX: linear layers in int8, faster on CPUs.")] = False,
    as_json: _Json = False,
) -> None:
    """Write a student in a form that other programs read.

    safetensors in SwinIR's own layout (chaiNNer, ComfyUI, spandrel); ONNX of any batch, height and width, compared with
    the network before it is written; or a folder to share on the Hugging Face Hub.
    """
    from student.export import export as run_export

    made = run_export(_home(checkpoint), out.expanduser(), kind, half=half, int8=int8)
    meant = "the network with float16 weights" if half else "the network"
    same = f", differs from {meant} by at most {made.error:.1e}" if made.error is not None else ""
    _tell(as_json, _plain(made), [f"{made.path}: {made.format}, {made.bytes / 1e6:.2f} MB{same}"])


@app.command(
    epilog=_examples(
        "dtkd bench student",
        "dtkd bench student --preset tiny --rounds 9 --json",
        "dtkd bench student --compile --threads 1",
        "dtkd bench teacher --rounds 3",
    )
)
def bench(
    what: Annotated[
        Literal["student", "teacher"], typer.Argument(help="What to measure: student or teacher", show_default=False)
    ],
    preset: Annotated[str, typer.Option(help="Preset of the student.")] = "light",
    bf16: Annotated[bool, typer.Option("--bf16", help="Student and peer under bf16 autocast.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Student and peer through torch.compile.")] = False,
    teacher: Annotated[str, typer.Option(help="As for teacher-cache.")] = "embedded",
    steps: Annotated[int | None, typer.Option(help="Network evaluations an image.  [default: the teacher's]")] = None,
    corpus: Annotated[str, typer.Option(help="Photos for the teacher, or: sample")] = "sample",
    rounds: Annotated[int, typer.Option(min=1, help="Turns in each case.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of CPU operators.")] = 2,
    as_json: _Json = False,
) -> None:
    """Measure the student's speed and memory, or where stage one's time goes.

    The student takes turns with spandrel's SwinIR of the same weights, where that is installed. The teacher takes the
    first tiles of a corpus through stage one, part by part.
    """
    from pipeline.system.device import choose

    chosen = choose(device)
    about: dict[str, Any] = {"bench": what, "rounds": rounds, "device": chosen, "threads": threads}
    if what == "student":
        from student import bench as students

        setup = students.Setup(preset, device=chosen, threads=threads, compiled=compiled, bf16=bf16)
        rows = students.bench_student(setup, rounds)
        lines = students.bench_lines(rows)
        about |= _plain(setup)
    else:
        from teacher_cache import bench as stage_one
        from teacher_cache.building.plan import BuildSettings
        from teacher_cache.teachers import load

        loaded = load(_home(teacher), steps=steps, device=chosen)
        rows = stage_one.bench_teacher(_home(corpus), loaded, BuildSettings(), rounds, threads)
        lines = stage_one.bench_lines(rows)
        about |= {"teacher": teacher, "steps": loaded.steps}
    _tell(as_json, {**about, "rows": [_plain(row) for row in rows]}, lines)


# Settings in, results out ------------------------------------------------------------------------------------------


def _settings(cls: type[_T], file: Path | None, overrides: Sequence[str] | None, given: dict[str, Any]) -> _T:
    """Defaults < TOML file < --set < the options that were given."""
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    try:
        return config.load(cls, file.expanduser() if file else None, [*(overrides or []), *options])
    except DtkdError as error:
        raise _UsageError(str(error)) from error


def _teacher_of(cache: Path, name: str | None, device: str) -> Any:
    """The teacher that a cache was made with, or the one that is named, with the cache's scale, steps and precision."""
    from pipeline.system.device import choose
    from teacher_cache import teachers
    from teacher_cache.building.plan import load_plan
    from teacher_cache.building.verify import refuse_imported

    plan = load_plan(cache)
    refuse_imported(plan)
    made = plan.fingerprint["teacher"]
    steps, dtype = made.get("steps") or None, made.get("dtype")
    return teachers.load(_home(name or plan.teacher), scale=plan.scale, steps=steps, device=choose(device), dtype=dtype)


def _cache_lines(result: Any) -> list[str]:
    lines = [f"skipped {item.id}: {item.reason}" for item in result.skipped]
    for item in result.failures:
        what = "skipped" if item.stage == "load" else f"failed in {item.stage}"
        lines.append(f"{what} {item.source} ({item.samples} samples): {item.message}")
    if result.failures_left_out:
        lines.append(f"and {result.failures_left_out} more failed samples")
    made = "all reused, nothing was left to do" if not result.computed else f"{result.computed} made now"
    parts = [f"{result.ok} of {result.planned} samples", made]
    if result.errors:
        parts.append(f"{result.errors} failed")
    if result.teacher_seconds_per_image:
        parts.append(f"teacher {result.teacher_seconds_per_image:.2f} s an image")
    if result.drift:
        parts.append(f"colour drift {result.drift.mean:.2f} of 255")
    return [*lines, f"{result.cache}: {', '.join(parts)}"]


def _plain(result: Any) -> dict[str, Any]:
    """A result's dataclass as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(result), default=str))


def _tell(as_json: bool, data: dict[str, Any], lines: Iterable[str]) -> None:
    if _first_process():
        typer.echo(json.dumps(data, indent=1, ensure_ascii=False) if as_json else "\n".join(lines))


def _quiet(as_json: bool) -> bool:
    return as_json or not _first_process()


def _first_process() -> bool:
    """Whether this is the process of an `accelerate launch` that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _home(name: str) -> str:
    """`~` expanded, also behind a teacher's kind: `import:~/outputs`."""
    kind, colon, where = name.rpartition(":")
    return f"{kind}{colon}{Path(where).expanduser()}" if where.startswith("~") else name


def _fail(message: str, code: int = EXIT_FAILURE) -> None:
    typer.echo(f"dtkd: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
