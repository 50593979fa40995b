"""Evaluation: restore images with every candidate, measure them, and write what came out.

Beside the candidates stand always `bicubic`, where there are references `gt`, and on a cache's held-out samples the
`teacher`. Images run one at a time, each with every candidate, so that memory does not grow with the set.
An image that cannot be read or measured is left out for all candidates, and named with the reason.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import images
from pipeline.corpus import Skipped
from pipeline.images import Rgb
from pipeline.system.device import Precision, choose, out_of_memory
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir, read_json
from pipeline.system.outputs import check_folder
from pipeline.system.progress import OnProgress, ProgressEvent, part_of
from pipeline.teacher import Teacher
from student.evaluation import metrics
from student.evaluation.candidates import Candidate, candidates_for, common_scale, load_candidates
from student.evaluation.examples import Example, ExampleSet, open_examples
from student.evaluation.metrics import Loaded, Unavailable
from student.evaluation.scores import CandidateScores, Evaluation, Evaluations, Score, exact_images
from student.networks import BrokenNetworkError

__all__ = ["Evaluation", "EvaluationSettings", "Evaluations", "evaluate", "evaluate_sets"]

OnImage = Callable[[str, str, Rgb], None]  # candidate's name, image's id, the restored image


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Attributes:
        metrics: names, see `student.evaluation.metrics.load`.
        crop_border: pixels left out on each side by psnr_y and ssim_y; None takes the scale.
        scale: None takes the checkpoints' own (or a cache's, or 4).
        limit: take the first `limit` images only.
        device: torch device, or `auto`: a GPU where there is one.
        precision: of the students, see `student.networks.load_network`; metrics are fp32.
        baseline: name of the candidate that the others are compared with, as it stands in the table.
    """

    metrics: tuple[str, ...] = metrics.DEFAULT_METRICS
    crop_border: int | None = None
    scale: int | None = None
    limit: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    baseline: str = "bicubic"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, least in (("crop_border", 0), ("limit", 1), ("scale", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        if not self.metrics:
            raise UsageError("metrics must name at least one metric, for example psnr_y,ssim_y,piqe")


@dataclass
class _Work:
    """An evaluation at work: who restores which images, what is measured, and what was found so far."""

    data: Path
    examples: ExampleSet
    candidates: list[Candidate]
    metrics: Loaded
    crop_border: int
    device: str
    baseline: str
    scores: dict[str, list[Score]] = field(default_factory=lambda: defaultdict(list))
    """By candidate."""
    out: Path | None = None
    skipped: list[Skipped] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Metrics that failed, and why."""


def evaluate(
    candidates: Sequence[str | Path],
    data: Path,
    settings: EvaluationSettings | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    on_image: OnImage | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measure candidates, and the baselines beside them, on a data folder or a cache's held-out samples.

    Args:
        candidates: what `student.networks.load_network` takes (weight files, run folders, names of shipped students),
            `images:FOLDER`, a folder of finished pictures, or `teacher:NAME`; `bicubic`, always there, is understood.
        data: see `student.evaluation.examples`.
        settings: how.
        teachers: the teachers of `teacher:NAME`, by NAME.
        out: write metrics.json, metrics.csv and NAME/ID.png there.
        overwrite: replace an earlier evaluation in `out`.
        on_image: called with every restored image.
        on_progress: called after every image.

    Raises:
        DtkdError: nothing usable in `data`, nothing that can be measured, a candidate that is none or broken or has no
            picture of an image, candidates of several scales, or `out` holds something already.
        UsageError: an unknown metric, or a baseline that is no candidate.
    """
    settings = settings or EvaluationSettings()
    given = load_candidates(candidates, settings.device, settings.precision, teachers)
    loaded = metrics.load(settings.metrics, choose(settings.device))
    return _run(_prepare(given, data, settings, loaded, out, overwrite), on_image, on_progress)


def evaluate_sets(
    candidates: Sequence[str | Path],
    data: Sequence[Path],
    settings: EvaluationSettings | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Evaluation | Evaluations:
    """As `evaluate`, on one set or several, all of which are looked at before the first image is measured.

    Args:
        candidates: as `evaluate` takes them.
        data: the sets.
        settings: how.
        teachers: by name.
        out: where to write; of several sets, each into a folder of its name there.
        overwrite: replace earlier evaluations.
        on_progress: called after every image.

    Raises:
        DtkdError: as `evaluate`.
        UsageError: as `evaluate`, or two sets have one name.
    """
    settings, names = settings or EvaluationSettings(), [path.resolve().name for path in data]
    if len(set(names)) < len(names):
        raise UsageError(f"sets must have different names, got {', '.join(names)}: evaluate them one by one")
    given = load_candidates(candidates, settings.device, settings.precision, teachers)
    loaded = metrics.load(settings.metrics, choose(settings.device))
    outs = [out / name if out and len(data) > 1 else out for name in names]
    works = [_prepare(given, path, settings, loaded, where, overwrite) for path, where in zip(data, outs, strict=True)]
    total, found = sum(len(work.examples) for work in works), []
    for work in works:
        before = sum(len(work.examples) for work in works[: len(found)])
        found.append(_run(work, None, on_progress and part_of(on_progress, before, total)))
    return found[0] if len(found) == 1 else Evaluations(dict(zip(names, found, strict=True)))


def _run(work: _Work, on_image: OnImage | None, on_progress: OnProgress | None) -> Evaluation:
    out = work.out
    if out:
        ensure_dir(out)
        atomic_write_json(out / "metrics.json", _result(work).to_json())  # so that after a stop the folder is ours
    _score_all(work, [sink for sink in (on_image, _png_writer(out) if out else None) if sink], on_progress)
    result = _result(work)
    if out:
        atomic_write_json(out / "metrics.json", result.to_json())
        atomic_write_bytes(out / "metrics.csv", result.to_csv().encode())
    return result


def _prepare(
    given: Sequence[Candidate],
    data: Path,
    settings: EvaluationSettings,
    loaded: Loaded,
    out: Path | None,
    overwrite: bool,
) -> _Work:
    if out:
        check_folder(out, "an evaluation", overwrite, _is_evaluation)
    examples = open_examples(data, common_scale(given, settings.scale), settings.limit)
    device = choose(settings.device)
    loaded = _usable(_drop_without_reference(loaded, examples))
    border = examples.scale if settings.crop_border is None else settings.crop_border
    everyone = candidates_for(examples, given)
    names, baseline = [candidate.name for candidate in everyone], settings.baseline
    if baseline not in names or baseline == "gt":
        raise UsageError(f"baseline must be one of the candidates, {', '.join(names)}, and not gt, got {baseline}")
    return _Work(data, examples, everyone, loaded, border, device, baseline, out=out, skipped=list(examples.skipped))


def _result(work: _Work) -> Evaluation:
    exact = exact_images([score for scores in work.scores.values() for score in scores])
    rows = [
        CandidateScores(c.name, c.role, c.path, c.parameters, c.precision, tuple(work.scores[c.name]), exact)
        for c in work.candidates
    ]
    return Evaluation(
        str(work.data),
        work.examples.kind,
        work.examples.scale,
        work.crop_border,
        work.device,
        _usable(_drop_failed(work.metrics, work.failures)),
        tuple(rows),
        tuple(work.skipped),
        work.out,
        work.baseline,
    )


def _is_evaluation(folder: Path) -> bool:
    """Whether `evaluate` has written into a folder."""
    try:
        record = read_json(folder / "metrics.json")
    except (OSError, DtkdError):
        return False
    return isinstance(record, dict) and {"data", "kind", "crop_border", "candidates"} <= record.keys()


def _usable(loaded: Loaded) -> Loaded:
    """The metrics, if there are any.

    Raises:
        DtkdError: none of those that were asked for can be measured.
    """
    if not loaded.metrics:
        reasons = "; ".join(f"{u.name}: {u.reason}: {u.remedy}" for u in loaded.unavailable)
        raise DtkdError(f"nothing that was asked for can be measured: {reasons}")
    return loaded


def _score_all(work: _Work, sinks: Sequence[OnImage], on_progress: OnProgress | None) -> None:
    """Restore and measure every image.

    Raises:
        DtkdError: none of them could be, or a network is broken.
    """
    for index, image_id in enumerate(work.examples.ids):
        try:
            rows = _score(work, work.examples.read(index))
        except BrokenNetworkError:
            raise
        except (DtkdError, OSError, MemoryError, RuntimeError) as error:  # this image alone cannot be used
            work.skipped.append(Skipped(image_id, _reason(error)))
            rows = []
        for name, score, image in rows:
            work.scores[name].append(score)
            for sink in sinks:
                sink(name, image_id, image)
        if on_progress:
            on_progress(ProgressEvent(index + 1, len(work.examples), "images"))
    if not any(work.scores.values()):
        last = work.skipped[-1]
        raise DtkdError(f"no image of {work.data} could be measured: {last.id}: {last.reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, images.ImageError):
        return error.reason
    if out_of_memory(error):
        return "out of memory: whole images are measured; take another device, or cut it"
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


def _drop_without_reference(loaded: Loaded, examples: ExampleSet) -> Loaded:
    """Tell apart the metrics that compare with something that the data does not have."""
    missing: dict[metrics.Reference | None, tuple[str, str]] = {}
    if examples.kind == "LR":
        missing["gt"] = "it compares with the ground truth, which the data does not have", "add a folder HR/ beside LR/"
    if examples.kind != "cache":
        missing["teacher"] = "it compares with the teacher's outputs, which only a cache has", "give a cache as data"
    usable = tuple(m for m in loaded.metrics if m.reference not in missing)
    gone = tuple(Unavailable(m.name, *missing[m.reference]) for m in loaded.metrics if m.reference in missing)
    return replace(loaded, metrics=usable, unavailable=loaded.unavailable + gone)


def _score(work: _Work, example: Example) -> list[tuple[str, Score, Rgb]]:
    """Every candidate's name, figures and restored image of one example."""
    rows = []
    for candidate in work.candidates:
        restored = candidate.restore(example)
        if restored is not None:
            values = _measure(work, candidate, restored.image, example)
            rows.append((candidate.name, Score(example.id, values, restored.seconds), restored.image))
    return rows


def _measure(work: _Work, candidate: Candidate, image: Rgb, example: Example) -> dict[str, float]:
    values, references = {}, {"gt": example.gt, "teacher": example.teacher, None: None}
    for metric in work.metrics.metrics:
        if metric.name in work.failures or metric.reference == candidate.name:  # nothing is compared with itself
            continue
        try:
            values[metric.name] = metric.measure(image, references[metric.reference], work.crop_border)
        except DtkdError:
            raise
        except Exception as error:  # a metric of another library may refuse an image (its size); the others still run
            work.failures[metric.name] = f"failed on {example.id} ({type(error).__name__}: {error})".splitlines()[0]
    return values


def _drop_failed(loaded: Loaded, failures: dict[str, str]) -> Loaded:
    remedy = "leave this metric out, or use larger images"
    failed = tuple(Unavailable(name, reason, remedy) for name, reason in failures.items())
    fine = tuple(metric for metric in loaded.metrics if metric.name not in failures)
    return replace(loaded, metrics=fine, unavailable=loaded.unavailable + failed)


def _png_writer(out: Path) -> OnImage:
    def write(candidate: str, image_id: str, image: Rgb) -> None:
        if candidate != "gt":
            path = out / candidate / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.save(path, image)

    return write
