"""The commands of stage two; `cli` makes them the command line's. Heavy imports happen inside them."""

from pathlib import Path
from typing import Annotated, Literal

from pipeline import config
from pipeline.system import options
from pipeline.system.options import argument, listing, option
from pipeline.system.progress import OnProgress
from pipeline.system.results import Result

_Picture = Literal["png", "webp", "jpg", "tif"]
_Form = Literal["safetensors", "onnx", "huggingface"]
_GRIDS = "levels, weights, calibrated:TOML, schedule, energy, gt, samples, teacher_steps:CACHE, by commas, or FILE.toml"


def train_student(
    on_progress: OnProgress,
    cache: options.CachePlaceOption,
    run: Annotated[Path, argument("RUN", "Folder of the run; the same command goes on.")],
    val: Annotated[str | None, option("Validate on this, as evaluate --data.  [default: held-out samples]")] = None,
    config_files: options.ConfigFiles = None,
    overrides: options.Overrides = None,
    resume: options.ResumeOption = True,
    settings: Annotated[bool, listing("student.training.settings:RunSettings")] = False,
) -> Result:
    """Stage two: train a student from a teacher cache.

    dtkd train-student runs/cache runs/student --set model.preset=tiny --set train.steps=2000
    dtkd train-student runs/cache runs/gt-only --set loss.lambda_max=0
    """
    from student.training.loop import RunSettings, train

    run_settings = config.load(RunSettings, config_files, overrides or (), {"data.val": val})
    return train(cache, run, run_settings, "auto" if resume else "fresh", on_progress)


def report(
    on_progress: OnProgress,
    cache: options.CacheOption,
    out: Annotated[Path, argument("OUT", "HTML file to write.")],
    dtkd: Annotated[Path, option("Run folder of the distilled student.")],
    gt_only: Annotated[Path | None, option("Run folder trained on the ground truth only.")] = None,
    overwrite: options.OverwriteOption = False,
    device: options.DeviceOption = "auto",
) -> Result:
    """Write the page that compares students and teacher. Exit code 1 where a held-out photo could not be measured.

    dtkd report runs/cache runs/report.html --dtkd runs/student --gt-only runs/gt-only
    """
    from student.report.write import write_report

    return write_report(cache, dtkd, out, gt_only=gt_only, device=device, overwrite=overwrite, on_progress=on_progress)


def plot(
    on_progress: OnProgress,
    runs: Annotated[list[Path], argument("RUN...", "Folders of training runs, of students or teachers.")],
    out: Annotated[Path, argument("OUT", "HTML, PNG or SVG file to write.")],
    overwrite: options.OverwriteOption = False,
) -> Result:
    """Compare training runs: losses, validations, schedules and pace over the steps, and the settings that differ.

    dtkd plot runs/student runs/gt-only runs/curves.html
    dtkd plot runs/ablation/default-seed* curves.png
    """
    from student.report.comparison import compare

    return compare(runs, out, overwrite)


def ablate(
    on_progress: OnProgress,
    cache: options.CacheOption,
    out: Annotated[Path, argument("OUT", "Folder of the ablation; the same command goes on.")],
    data: Annotated[Path, option("Evaluation set, as for evaluate.")],
    grid: Annotated[str, option(_GRIDS)] = "energy",
    seeds: Annotated[int, option("Runs of every arm.", min=1)] = 1,
    metrics: options.MetricsOption = "psnr_y,ssim_y,dss,piqe",
    config_files: options.ConfigFiles = None,
    overrides: options.Overrides = None,
) -> Result:
    """Train arms that differ in some settings, alike in all else, and compare them image by image.

    dtkd ablate runs/cache runs/ablation --data data/RealSR --grid energy --set train.steps=1500
    dtkd ablate runs/cache runs/ablation --data data/RealSR --grid weights,schedule --seeds 3
    """
    from student.study import ablate as study
    from student.study.grids import find_grid

    arms = find_grid(grid)
    planned = study.trials(arms, overrides or (), config_files, seeds)
    on_progress(study.announced(cache, planned))
    return study.ablate(cache, out, arms, planned, data, [name.strip() for name in metrics.split(",")], on_progress)


def mix(
    on_progress: OnProgress,
    a: Annotated[str, argument("A", "Student at share 0: name, run folder or weight file.")],
    b: Annotated[str, argument("B", "Student at share 1.")],
    out: Annotated[Path, argument("OUT", "FILE.safetensors to write.")],
    share: Annotated[float, option("Of B: 0 is all A, 1 is all B.", min=0, max=1)] = 0.5,
    overwrite: options.OverwriteOption = False,
) -> Result:
    """Write the student between two that were branched from one: a knob from fidelity to realism, without training.

    dtkd mix runs/gt-only runs/student between.safetensors --share 0.7
    """
    from student.study.mix import mix_files

    return mix_files(a, b, out, share, overwrite)


def upscale(
    on_progress: OnProgress,
    inputs: Annotated[list[str], argument("INPUT...", "Pictures, folders or patterns.")],
    output: Annotated[Path, argument("OUTPUT", "File for one picture, folder for several.")],
    checkpoint: Annotated[str, option("Shipped student, run folder, or file.", metavar="NAME|FILE")] = "tiny-x4",
    tile: Annotated[str, option("Largest tile, a multiple of 8; auto: by free memory.", metavar="auto|N")] = "auto",
    overlap: Annotated[int, option("Pixels that neighbouring tiles share, a multiple of 8.")] = 32,
    kind: Annotated[_Picture | None, option("Of results in a folder.  [default: the picture's]", "--format")] = None,
    scale: Annotated[int | None, option("Reduce the results to this scale.  [default: the student's]")] = None,
    overwrite: options.OverwriteOption = False,
    max_megapixels: Annotated[int, option("Refuse larger results.", min=1)] = 1100,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
) -> Result:
    """Upscale pictures with a student. Alpha, 16 bits, EXIF and colour profile are kept.

    A picture that fails is named; exit code 1 then. Of PNG and TIFF even a large one needs little memory.

    dtkd upscale photo.jpg photo-x4.png
    dtkd upscale 'scans/**/*.tif' large --checkpoint runs/student --tile 256
    """
    from student.networks import load_network
    from student.upscaling import upscale as upscaling

    size, suffix = upscaling.tile_side(tile), f".{kind}" if kind else None
    how = upscaling.UpscaleSettings(size, overlap, overwrite, suffix, max_megapixels, scale)
    return upscaling.upscale(inputs, output, load_network(checkpoint, device, precision), how, on_progress)


def export(
    on_progress: OnProgress,
    checkpoint: Annotated[str, argument("CHECKPOINT", "Weight file, run folder or shipped student.")],
    out: Annotated[Path, argument("OUT", "FILE.safetensors, FILE.onnx, or a huggingface FOLDER.")],
    kind: Annotated[_Form | None, option("What to write, where the name does not say it.", "--format")] = None,
    half: Annotated[bool, option("Store weights as float16; computing stays float32.", "--half")] = False,
    int8: Annotated[bool, option("ONNX: linear layers in int8, faster on CPUs.", "--int8")] = False,
    overwrite: options.OverwriteOption = False,
) -> Result:
    """Write a student in a form that other programs read.

    SwinIR's safetensors (chaiNNer, ComfyUI, spandrel); ONNX of any size, checked before it is written; or for the Hub.

    dtkd export runs/student student.onnx --half
    dtkd export runs/student my-student
    """
    from student import export as exporting

    return exporting.export(checkpoint, out, kind, half=half, int8=int8, overwrite=overwrite)
