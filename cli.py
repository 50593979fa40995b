"""The command line, `dtkd`: a table of commands that parse, call one function of a stage, and return its result.

Results go to standard output (`--json`: as one JSON object), progress and errors to standard error; under `--json` an
error is an object `{"error": ...}` as well. Exit code 0 is success, 2 wrong usage, 1 everything else, Ctrl-C and
SIGTERM included. Heavy imports happen inside the commands.
"""

from pathlib import Path
from typing import Annotated, Literal

from pipeline import config
from pipeline.system import options
from pipeline.system.options import argument, listing, option
from pipeline.system.progress import OnProgress
from pipeline.system.results import Result

app = options.application("Distil a multi-step diffusion super-resolution teacher into a one-pass transformer student.")
_command = options.command_of(app)
_Picture = Literal["png", "webp", "jpg", "tif"]
_Form = Literal["safetensors", "onnx", "huggingface"]
_GRIDS = "levels, weights, calibrated:TOML, schedule, energy, gt, samples, teacher_steps:CACHE, by commas, or FILE.toml"


@app.callback()
def _root(show_version: options.VersionOption = False) -> None:
    pass


@_command
def teacher_cache(
    on_progress: OnProgress,
    corpus: options.CorpusOption,
    cache: Annotated[Path, argument("CACHE", "Folder to write; the same command goes on.")],
    teacher: options.TeacherOption = "embedded",
    degradation: Annotated[
        Literal["bicubic", "real", "paired"] | None, option("Of LR images.  [default: real]")
    ] = None,
    scale: Annotated[int | None, option("HR pixels to an LR pixel.  [default: 4]")] = None,
    tile: Annotated[int | None, option("Side of a training tile in HR pixels.  [default: 256]")] = None,
    steps: options.StepsOption = None,
    seed: Annotated[int | None, option("Decides every random draw.  [default: 0]")] = None,
    samples: Annotated[int | None, option("Outputs of each tile, with a seed each, 1 to 16.  [default: 1]")] = None,
    limit: Annotated[int | None, option("Use this many photos at most.")] = None,
    hold_out: Annotated[int | None, option("Photos kept out of training.  [default: 2]")] = None,
    micro_batch: Annotated[int | None, option("Tiles in one teacher call.  [default: 4]")] = None,
    retry_errors: Annotated[bool | None, option("Make failed samples again.", "--retry-errors")] = None,
    wait: Annotated[bool | None, option("Wait for other processes' shards, or exit with 1.  [default: wait]")] = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, option("Precision of the teacher.")] = None,
    device: options.DeviceOption = "auto",
    config_files: options.ConfigFiles = None,
    overrides: options.Overrides = None,
    settings: Annotated[bool, listing("teacher_cache.building.settings:BuildSettings")] = False,
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

    pairs = {"degradation.kind": degradation, "degradation.scale": scale, "tile": tile, "limit": limit}
    outputs = {"seed": seed, "samples": samples, "hold_out": hold_out, "micro_batch": micro_batch}
    given = {**pairs, **outputs, "retry_errors": retry_errors, "wait": wait}
    how = config.load(BuildSettings, config_files, overrides or (), given)
    teachers.check_name(teacher)
    surveyed = survey(corpus, cache, how)
    on_progress(surveyed.begin())
    loaded = teachers.load(teacher, scale=how.degradation.scale, steps=steps, device=choose(device), dtype=dtype)
    return build(surveyed, loaded, on_progress)


@_command
def verify(
    on_progress: OnProgress,
    cache: options.CacheOption,
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


@_command
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


@_command
def train_student(
    on_progress: OnProgress,
    cache: options.CacheOption,
    run: Annotated[Path, argument("RUN", "Folder of the run; the same command goes on.")],
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

    run_settings = config.load(RunSettings, config_files, overrides or ())
    return train(cache, run, run_settings, "auto" if resume else "fresh", on_progress)


@_command
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


@_command
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


@_command
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


@_command
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


@_command
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


@_command
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


@_command
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


@_command
def bench(
    on_progress: OnProgress,
    what: Annotated[Literal["student", "train", "teacher"], argument("student|train|teacher", "What to measure.")],
    preset: Annotated[str, option("Preset of the student.")] = "light",
    compiled: Annotated[bool, option("Networks in PyTorch through torch.compile.", "--compile")] = False,
    teacher: options.TeacherOption = "embedded",
    steps: options.StepsOption = None,
    corpus: Annotated[str, option("Photos for the teacher, or: sample")] = "sample",
    rounds: Annotated[int, option("Turns in each case.", min=1)] = 5,
    device: Annotated[str, option("cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, option("Threads of CPU operators.", min=1)] = 2,
) -> Result:
    """Measure speed and memory: the student beside other programs, what the loss adds to a step, a teacher's parts.

    dtkd bench student --preset tiny --rounds 9 --json
    dtkd bench teacher --rounds 3
    """
    from pipeline.system.device import choose
    from student.bench import Setup, bench_student
    from student.bench_train import bench_train
    from teacher_cache.bench import BuildSettings, bench_teacher
    from teacher_cache.teachers import load

    chosen = choose(device)
    if what == "student":
        return bench_student(Setup(preset, device=chosen, threads=threads, compiled=compiled), rounds)
    if what == "train":
        return bench_train(preset, chosen, threads, rounds)
    return bench_teacher(corpus, load(teacher, steps=steps, device=chosen), BuildSettings(), rounds, threads, chosen)


if __name__ == "__main__":
    app()
