"""The command line, `dtkd`: a table of commands that parse, call one function of a stage, and return its result.

Results go to standard output (`--json`: as one JSON object), progress and errors to standard error; under `--json` an
error is an object `{"error": ...}` as well. Exit code 0 is success, 2 wrong usage, 1 everything else, Ctrl-C and
SIGTERM included. Heavy imports happen inside the commands.
"""

import logging
import pkgutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pipeline import config
from pipeline.system import commands
from pipeline.system.errors import UsageError
from pipeline.system.files import expand_home
from pipeline.system.progress import OnProgress
from pipeline.system.results import Result


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args
        try:
            with commands.failing_in_one_line(as_json):
                return super().invoke(ctx)
        except typer.TyperException as error:  # wrong usage that typer found, and tells of together with the usage
            commands.print_error(error.format_message(), as_json)
            raise


app = typer.Typer(
    cls=_Commands,
    help="Distil a multi-step diffusion super-resolution teacher into a single-forward transformer student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _option(meaning: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=meaning, callback=expand_home, **more)


def _argument(name: str, meaning: str) -> Any:
    return typer.Argument(metavar=name, help=meaning, callback=expand_home, show_default=False)


def _ends(names: str, meaning: str, text: Callable[[], str]) -> Any:
    """An option that prints a text instead of running the command."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(text().rstrip())
            raise typer.Exit

    return typer.Option(names, help=meaning, is_eager=True, callback=show)


def _listing(settings: str) -> Any:
    """The option that lists a settings class, `module:name`, which is imported only then."""
    meaning = "Print all settings, their meanings and defaults as TOML."
    return _ends("--settings", meaning, lambda: config.listing(pkgutil.resolve_name(settings)))


_Corpus = Annotated[str, _argument("CORPUS", "Folder of photos at any depth, or: sample")]
_Cache = Annotated[Path, _argument("CACHE", "Folder of a teacher cache.")]
_Teacher = Annotated[
    str, _option("embedded[-bicubic], ldm[:ID], sd-x4[:ID], FOLDER, import:FOLDER, python:FILE:FACTORY")
]
_Steps = Annotated[int | None, _option("Network evaluations an image.  [default: the teacher's]", min=1)]
_Device = Annotated[str, _option("Torch device; auto takes a GPU where there is one.")]
_Config = Annotated[Path | None, _option("Settings as TOML.", "--config", metavar="FILE")]
_Set = Annotated[list[str] | None, _option("One setting; repeatable.", "--set", metavar="KEY=VALUE")]
_Version = Annotated[bool, _ends("--version", "Print the version.", lambda: f"dtkd {version('dtkd')}")]
_Json = Annotated[bool, _option("Print one JSON object instead of text, and no progress.", "--json")]
_Resume = Annotated[bool, _option("Go on, or delete what an earlier run left.", "--resume/--fresh")]
_Kind = Literal["bicubic", "real", "paired"]
_Made = Literal["bicubic", "real"]
_Overwrite = Annotated[bool, _option("Replace what an earlier command wrote.", "--overwrite")]
_Picture = Literal["png", "webp", "jpg", "tif"]
_Form = Literal["safetensors", "onnx", "huggingface"]


def _command(function: Callable[..., Result]) -> Callable[..., Result]:
    """Make a function a command, with `--json`, that prints its result; see `pipeline.system.commands`."""
    description, examples = commands.help_of(function)
    decorate = app.command(commands.name_of(function), help=description, epilog=f"\b\n{examples}")
    decorate(commands.printing(function, _Json))
    return function


@app.callback()
def _root(show_version: _Version = False) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # pyiqa brings it; its missing CPU kernels concern nobody


@_command
def teacher_cache(
    on_progress: OnProgress,
    corpus: _Corpus,
    cache: Annotated[Path, _argument("CACHE", "Folder to write; the same command goes on.")],
    teacher: _Teacher = "embedded",
    degradation: Annotated[_Kind | None, _option("How LR images are made.  [default: real]")] = None,
    scale: Annotated[int | None, _option("HR pixels to an LR pixel.  [default: 4]")] = None,
    tile: Annotated[int | None, _option("Side of a training tile in HR pixels.  [default: 256]")] = None,
    steps: _Steps = None,
    seed: Annotated[int | None, _option("Decides every random draw.  [default: 0]")] = None,
    limit: Annotated[int | None, _option("Use this many photos at most.")] = None,
    hold_out: Annotated[int | None, _option("Photos kept out of training.  [default: 2]")] = None,
    micro_batch: Annotated[int | None, _option("Tiles in one teacher call.  [default: 4]")] = None,
    retry_errors: Annotated[bool | None, _option("Make failed samples again.", "--retry-errors")] = None,
    wait: Annotated[bool | None, _option("Wait for other processes' shards, or exit with 1.  [default: wait]")] = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, _option("Precision of the teacher.")] = None,
    device: _Device = "auto",
    config_file: _Config = None,
    overrides: _Set = None,
    settings: Annotated[bool, _listing("teacher_cache.building.settings:BuildSettings")] = False,
) -> Result:
    """Stage one: run the teacher over a corpus, once. It stores (LR, GT, teacher) as WebDataset shards.

    Several processes may run it on one cache at the same time; killed, the same command goes on.

    dtkd teacher-cache sample runs/cache
    dtkd teacher-cache ~/photos runs/cache --degradation real --hold-out 8
    """
    from pipeline.system.device import choose
    from teacher_cache import teachers
    from teacher_cache.building.build import BuildSettings, build
    from teacher_cache.building.survey import survey

    given = {
        **{"degradation.kind": degradation, "degradation.scale": scale, "tile": tile, "seed": seed, "limit": limit},
        **{"hold_out": hold_out, "micro_batch": micro_batch, "retry_errors": retry_errors, "wait": wait},
    }
    how = config.load(BuildSettings, config_file, overrides or (), given)
    teachers.check_name(teacher)
    surveyed = survey(corpus, cache, how)
    on_progress(surveyed.begin())
    loaded = teachers.load(teacher, scale=how.degradation.scale, steps=steps, device=choose(device), dtype=dtype)
    return build(surveyed, loaded, on_progress)


@_command
def verify(
    on_progress: OnProgress,
    cache: _Cache,
    recompute: Annotated[int, _option("Samples to make again with the teacher.", min=0)] = 0,
    teacher: Annotated[str | None, _option("Teacher for that.  [default: the cache's, by name]")] = None,
    repair: Annotated[bool, _option("Set damaged shards back to not done.", "--repair")] = False,
    device: _Device = "auto",
) -> Result:
    """Check a cache for damage. Every byte is compared with its records; exit code 1 if anything is wrong.

    dtkd verify runs/cache
    dtkd verify runs/cache --recompute 8
    """
    from teacher_cache.building.verify import load_teacher, verify_cache

    loaded = load_teacher(cache, teacher, device) if recompute else None
    return verify_cache(cache, recompute=recompute, teacher=loaded, repair=repair, on_progress=on_progress)


@_command
def train_teacher(
    on_progress: OnProgress,
    corpus: _Corpus,
    out: Annotated[Path, _argument("OUT", "Folder of the run; the same command goes on.")],
    degradation: Annotated[_Made | None, _option("How LR images are made.  [default: real]")] = None,
    scale: Annotated[int | None, _option("HR pixels to an LR pixel.  [default: 4]")] = None,
    config_file: _Config = None,
    overrides: _Set = None,
    resume: _Resume = True,
    settings: Annotated[bool, _listing("teacher_cache.training.settings:TeacherRunSettings")] = False,
) -> Result:
    """Train a diffusion teacher on your own photos. It is of the embedded one's kind and takes hours, on a GPU.

    dtkd train-teacher ~/photos runs/teacher --set train.steps=60000
    dtkd teacher-cache ~/photos runs/cache --teacher runs/teacher
    """
    from teacher_cache.training import loop

    given = {"degradation.kind": degradation, "degradation.scale": scale}
    how = config.load(loop.TeacherRunSettings, config_file, overrides or (), given)
    return loop.train_teacher(corpus, out, how, "auto" if resume else "fresh", on_progress)


@_command
def train_student(
    on_progress: OnProgress,
    cache: _Cache,
    run: Annotated[Path, _argument("RUN", "Folder of the run; the same command goes on.")],
    config_file: _Config = None,
    overrides: _Set = None,
    resume: _Resume = True,
    settings: Annotated[bool, _listing("student.training.settings:RunSettings")] = False,
) -> Result:
    """Stage two: train a student from a teacher cache.

    dtkd train-student runs/cache runs/student
    dtkd train-student runs/cache runs/student --set model.preset=tiny --set train.steps=2000
    dtkd train-student runs/cache runs/gt-only --set loss.lambda_max=0
    """
    from student.training.loop import RunSettings, train

    run_settings = config.load(RunSettings, config_file, overrides or ())
    return train(cache, run, run_settings, "auto" if resume else "fresh", on_progress)


@_command
def evaluate(
    on_progress: OnProgress,
    checkpoints: Annotated[list[str], _argument("CHECKPOINT...", "Weight files, run folders, or: bicubic")],
    data: Annotated[Path, _option("Folder with HR/ and LR/, or one of them; or a cache.")],
    metrics: Annotated[str, _option("psnr_y, ssim_y, and pyiqa's names, by commas.")] = "psnr_y,ssim_y,piqe",
    out: Annotated[Path | None, _option("Write metrics.json, metrics.csv and pictures there.")] = None,
    overwrite: _Overwrite = False,
    crop_border: Annotated[int | None, _option("Pixels left out by psnr_y, ssim_y.  [default: scale]")] = None,
    scale: Annotated[int | None, _option("Only needed for bicubic alone.  [default: 4]")] = None,
    limit: Annotated[int | None, _option("Take the first images only.")] = None,
    device: _Device = "auto",
) -> Result:
    """Measure checkpoints, bicubic beside them. An image that cannot be used is named; exit code 1 then.

    dtkd evaluate runs/student --data data/Set14
    dtkd evaluate runs/a runs/b --data data/RealSR --metrics psnr_y,ssim_y,lpips,maniqa-pipal --out runs/scores
    dtkd evaluate bicubic --data data/Set14 --crop-border 0
    """
    from student.evaluation import evaluate as evaluation

    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    given = {"metrics": names, "crop_border": crop_border, "scale": scale, "limit": limit, "device": device}
    how = config.load(evaluation.EvaluationSettings, values=given)
    return evaluation.evaluate(checkpoints, data, how, out=out, overwrite=overwrite, on_progress=on_progress)


@_command
def report(
    on_progress: OnProgress,
    cache: _Cache,
    out: Annotated[Path, _argument("OUT", "HTML file to write.")],
    dtkd: Annotated[Path, _option("Run folder of the distilled student.")],
    gt_only: Annotated[Path | None, _option("Run folder trained on the ground truth only.")] = None,
    overwrite: _Overwrite = False,
    device: _Device = "auto",
) -> Result:
    """Write the page that compares students and teacher. Exit code 1 where a held-out photo could not be measured.

    dtkd report runs/cache runs/report.html --dtkd runs/student --gt-only runs/gt-only
    """
    from student.report.write import write_report

    return write_report(cache, dtkd, out, gt_only=gt_only, device=device, overwrite=overwrite, on_progress=on_progress)


@_command
def upscale(
    on_progress: OnProgress,
    inputs: Annotated[list[str], _argument("INPUT...", "Pictures, folders or patterns.")],
    output: Annotated[Path, _argument("OUTPUT", "File for one picture, folder for several.")],
    checkpoint: Annotated[str, _option("Shipped student, run folder, or file.", metavar="NAME|FILE")] = "tiny-x4",
    tile: Annotated[str, _option("Largest tile, a multiple of 8; auto: by free memory.", metavar="auto|N")] = "auto",
    overlap: Annotated[int, _option("Pixels that neighbouring tiles share, a multiple of 8.")] = 32,
    kind: Annotated[_Picture | None, _option("Of results in a folder.  [default: the picture's]", "--format")] = None,
    scale: Annotated[int | None, _option("Reduce the results to this scale.  [default: the student's]")] = None,
    overwrite: _Overwrite = False,
    max_megapixels: Annotated[int, _option("Refuse larger results.", min=1)] = 1100,
    device: _Device = "auto",
) -> Result:
    """Upscale pictures with a student. Alpha, 16 bits, EXIF and colour profile are kept.

    A picture that fails is named; exit code 1 then. Of PNG and TIFF even a large one needs little memory.

    dtkd upscale photo.jpg photo-x4.png
    dtkd upscale ~/photos ~/photos-x4 --format webp
    dtkd upscale 'scans/**/*.tif' large --checkpoint runs/student --tile 256
    """
    from student.networks import load_network
    from student.upscaling import upscale as upscaling

    if tile != "auto" and not tile.isdecimal():
        raise UsageError(f"--tile must be auto or a multiple of 8, got {tile}")
    size, suffix = None if tile == "auto" else int(tile), f".{kind}" if kind else None
    how = upscaling.UpscaleSettings(size, overlap, overwrite, suffix, max_megapixels, scale)
    return upscaling.upscale(inputs, output, load_network(checkpoint, device), how, on_progress)


@_command
def export(
    on_progress: OnProgress,
    checkpoint: Annotated[str, _argument("CHECKPOINT", "Weight file, run folder or shipped student.")],
    out: Annotated[Path, _argument("OUT", "FILE.safetensors, FILE.onnx, or a huggingface FOLDER.")],
    kind: Annotated[_Form | None, _option("What to write, where the name does not say it.", "--format")] = None,
    half: Annotated[bool, _option("Store weights as float16; computing stays float32.", "--half")] = False,
    int8: Annotated[bool, _option("ONNX: linear layers in int8, faster on CPUs.", "--int8")] = False,
    overwrite: _Overwrite = False,
) -> Result:
    """Write a student in a form that other programs read.

    SwinIR's safetensors (chaiNNer, ComfyUI, spandrel); ONNX of any size, checked before it is written; or for the Hub.

    dtkd export runs/student student.safetensors
    dtkd export runs/student student.onnx --half
    dtkd export runs/student my-student
    """
    from student import export as exporting

    return exporting.export(checkpoint, out, kind, half=half, int8=int8, overwrite=overwrite)


@_command
def bench(
    on_progress: OnProgress,
    what: Annotated[Literal["student", "teacher"], _argument("student|teacher", "What to measure.")],
    preset: Annotated[str, _option("Preset of the student.")] = "light",
    bf16: Annotated[bool, _option("Student and peer under bf16 autocast.", "--bf16")] = False,
    compiled: Annotated[bool, _option("Student and peer through torch.compile.", "--compile")] = False,
    teacher: _Teacher = "embedded",
    steps: _Steps = None,
    corpus: Annotated[str, _option("Photos for the teacher, or: sample")] = "sample",
    rounds: Annotated[int, _option("Turns in each case.", min=1)] = 5,
    device: Annotated[str, _option("cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, _option("Threads of CPU operators.", min=1)] = 2,
) -> Result:
    """Measure speed and memory. The student has turns with spandrel's SwinIR; a teacher goes through stage one.

    dtkd bench student
    dtkd bench student --preset tiny --rounds 9 --json
    dtkd bench student --compile --threads 1
    dtkd bench teacher --rounds 3
    """
    from pipeline.system.device import choose

    chosen = choose(device)
    if what == "student":
        from student.bench import Setup, StudentBench, bench_student

        setup = Setup(preset, device=chosen, threads=threads, compiled=compiled, bf16=bf16)
        return StudentBench(setup, rounds, tuple(bench_student(setup, rounds)))
    from teacher_cache.bench import BuildSettings, TeacherBench, bench_teacher
    from teacher_cache.teachers import load

    loaded = load(teacher, steps=steps, device=chosen)
    rows = bench_teacher(corpus, loaded, BuildSettings(), rounds, threads)
    return TeacherBench(teacher, loaded.steps, rounds, chosen, threads, tuple(rows))


if __name__ == "__main__":
    app()
