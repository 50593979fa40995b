"""Evaluation: restore images with every candidate, measure them, and write what came out.

Beside the checkpoints stand always `bicubic`, where there are references `gt`, and on a cache's held-out samples the
`teacher`. Images run one at a time, each with every candidate, so that memory does not grow with the set.
An image that cannot be read or measured is left out for all candidates, and named with the reason.
"""

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline import images
from pipeline.corpus import Skipped
from pipeline.system.device import choose, out_of_memory
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir
from pipeline.system.progress import OnProgress, ProgressEvent
from pipeline.system.words import plural
from student import checkpoint
from student.evaluation import metrics
from student.evaluation.examples import Example, ExampleSet, bicubic, open_examples
from student.evaluation.metrics import Image, Loaded, Unavailable
from student.networks import find_checkpoint, name_of

Role = Literal["baseline", "student", "teacher", "gt"]
OnImage = Callable[[str, str, Image], None]  # candidate's name, image's id, the restored image


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Attributes:
        metrics: names, see `student.evaluation.metrics.load`.
        crop_border: pixels left out on each side by psnr_y and ssim_y; None takes the scale.
        scale: None takes the checkpoints' own (or a cache's, or 4).
        limit: take the first `limit` images only.
        device: torch device, or `auto`: a GPU where there is one.
    """

    metrics: tuple[str, ...] = metrics.DEFAULT_METRICS
    crop_border: int | None = None
    scale: int | None = None
    limit: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, least in (("crop_border", 0), ("limit", 1), ("scale", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DtkdError(f"{name} must be at least {least}, got {value}")
        if not self.metrics:
            raise DtkdError("metrics must name at least one metric, for example psnr_y,ssim_y,piqe")


@dataclass(frozen=True)
class Score:
    """Figures of one restored image; `seconds` is the restoration alone, None where it was not measured."""

    id: str
    values: dict[str, float]
    seconds: float | None


@dataclass(frozen=True)
class CandidateScores:
    """Figures of one candidate over all images."""

    name: str
    role: Role
    path: str | None
    parameters: int | None
    images: tuple[Score, ...]

    def mean(self, metric: str) -> float | None:
        """Mean over all images; None where the metric was not measured on every one of them."""
        values = [score.values.get(metric, math.nan) for score in self.images]
        mean = sum(values) / len(values)
        return None if math.isnan(mean) else mean

    @property
    def seconds(self) -> float | None:
        """Median seconds an image."""
        seconds = [score.seconds for score in self.images if score.seconds is not None]
        return statistics.median(seconds) if seconds else None


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found, and how."""

    data: str
    kind: str
    scale: int
    crop_border: int
    device: str
    metrics: Loaded
    candidates: tuple[CandidateScores, ...]
    skipped: tuple[Skipped, ...]
    out: Path | None = None  # where it was written to

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that were measured, in the order asked for."""
        return [metric.name for metric in self.metrics.metrics]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; figures that are not finite become null."""
        return {
            "data": self.data,
            "kind": self.kind,
            "scale": self.scale,
            "crop_border": self.crop_border,
            "device": self.device,
            "metrics": {
                m.name: {"lower_is_better": m.lower_is_better, "settings": m.settings} for m in self.metrics.metrics
            },
            "unavailable": {u.name: {"reason": u.reason, "remedy": u.remedy} for u in self.metrics.unavailable},
            "skipped": {s.id: s.reason for s in self.skipped},
            "candidates": [self._candidate_json(candidate) for candidate in self.candidates],
        }

    def _candidate_json(self, candidate: CandidateScores) -> dict[str, Any]:
        return {
            "name": candidate.name,
            "role": candidate.role,
            "path": candidate.path,
            "parameters": candidate.parameters,
            "seconds": candidate.seconds,
            "mean": {name: _finite(candidate.mean(name)) for name in self.metric_names},
            "images": [
                {"id": score.id, "seconds": score.seconds, **{k: _finite(v) for k, v in score.values.items()}}
                for score in candidate.images
            ],
        }

    def to_csv(self) -> str:
        """One row for each candidate and image, then one with the mean of each candidate."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["candidate", "image", *self.metric_names, "seconds"])
        for candidate in self.candidates:
            for score in candidate.images:
                values = [score.values.get(name, "") for name in self.metric_names]
                rows.writerow([candidate.name, score.id, *values, score.seconds or ""])
        for candidate in self.candidates:
            means = [candidate.mean(name) for name in self.metric_names]
            rows.writerow([candidate.name, "MEAN", *("" if m is None else m for m in means), candidate.seconds or ""])
        return text.getvalue()

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return f"{plural(len(self.skipped), 'image')} could not be measured" if self.skipped else None

    def lines(self) -> list[str]:
        """For people, see `scores_text`."""
        from student.evaluation.scores_text import score_lines

        return [*score_lines(self, {}), *([f"written to {self.out}"] if self.out else [])]


class _BrokenNetworkError(DtkdError):
    """A checkpoint's fault, which ends the evaluation; what is an image's fault does not."""


@dataclass(frozen=True)
class _Candidate:
    name: str
    role: Role
    path: str | None
    parameters: int | None
    restore: Callable[[Example], tuple[Image | None, float | None]]  # image, seconds


def evaluate(
    checkpoints: Sequence[str | Path],
    data: Path,
    settings: EvaluationSettings | None = None,
    *,
    out: Path | None = None,
    on_image: OnImage | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measure checkpoints, and the baselines beside them, on a data folder or a cache's held-out samples.

    Args:
        checkpoints: what `student.networks.find_checkpoint` takes: weight files, run folders, names of shipped
            students; `bicubic` among them is understood (it is always there).
        data: see `student.evaluation.examples`.
        settings: how.
        out: write metrics.json, metrics.csv and NAME/ID.png there.
        on_image: called with every restored image.
        on_progress: called after every image.

    Raises:
        DtkdError: nothing usable in `data`, a checkpoint that is none or broken, or checkpoints of several scales.
    """
    settings = settings or EvaluationSettings()
    device = choose(settings.device)
    students = _load_students([c for c in checkpoints if str(c) != "bicubic"], device)
    scale = _common_scale(students, settings.scale)
    if out:
        ensure_dir(out)
    examples = open_examples(data, scale, settings.limit)
    loaded = _drop_without_reference(metrics.load(settings.metrics, device), examples)
    candidates = _candidates(students, examples, device)
    crop_border = examples.scale if settings.crop_border is None else settings.crop_border

    sinks = [sink for sink in (on_image, _png_writer(out) if out else None) if sink]
    scores, failures, skipped = _score_all(examples, candidates, loaded, crop_border, sinks, on_progress)
    if len(skipped) == len(examples.skipped) + len(examples):
        raise DtkdError(f"no image of {data} could be measured: {skipped[-1].id}: {skipped[-1].reason}")
    found = tuple(CandidateScores(c.name, c.role, c.path, c.parameters, tuple(scores[c.name])) for c in candidates)
    loaded = _drop_failed(loaded, failures)
    result = Evaluation(
        str(data), examples.kind, examples.scale, crop_border, device, loaded, found, tuple(skipped), out
    )
    if out:
        atomic_write_json(out / "metrics.json", result.to_json())
        atomic_write_bytes(out / "metrics.csv", result.to_csv().encode())
    return result


def _score_all(
    examples: ExampleSet,
    candidates: Sequence[_Candidate],
    loaded: Loaded,
    crop_border: int,
    sinks: Sequence[OnImage],
    on_progress: OnProgress | None,
) -> tuple[dict[str, list[Score]], dict[str, str], list[Skipped]]:
    """Scores of every candidate, why metrics failed, and the images that could not be used."""
    scores: dict[str, list[Score]] = {candidate.name: [] for candidate in candidates}
    failures: dict[str, str] = {}
    skipped = list(examples.skipped)
    for index, image_id in enumerate(examples.ids):
        try:
            rows = _score(examples.read(index), candidates, loaded, crop_border, failures)
        except _BrokenNetworkError:
            raise
        except (DtkdError, OSError, MemoryError, RuntimeError) as error:  # this image alone cannot be used
            skipped.append(Skipped(image_id, _reason(error)))
            rows = []
        for name, score, image in rows:
            scores[name].append(score)
            for sink in sinks:
                sink(name, image_id, image)
        if on_progress:
            on_progress(ProgressEvent(index + 1, len(examples), "images", ""))
    return scores, failures, skipped


def _reason(error: Exception) -> str:
    if isinstance(error, images.ImageError):
        return error.reason
    if out_of_memory(error):
        return "out of memory: whole images are measured; take another device, or cut it"
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


def _load_students(paths: Sequence[str | Path], device: str) -> dict[str, tuple[Path, torch.nn.Module]]:
    """Networks by name: the run folder's or the file's, made unique where two are equal."""
    students: dict[str, tuple[Path, torch.nn.Module]] = {}
    for path in paths:
        file = find_checkpoint(str(path))
        stem = name_of(file)
        taken = {"bicubic", "teacher", "gt", *students}
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10_000))) if n not in taken)
        students[name] = file, checkpoint.load(file).to(device).eval()
    return students


def _common_scale(students: dict[str, tuple[Path, Any]], wanted: int | None) -> int | None:
    scales = {name: network.scale for name, (_, network) in students.items()}
    if wanted is not None:
        scales["--scale"] = wanted
    if len(set(scales.values())) > 1:
        told = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise DtkdError(f"checkpoints must have one scale, got {told}: evaluate them one by one")
    return next(iter(scales.values()), None)


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


def _candidates(
    students: dict[str, tuple[Path, torch.nn.Module]], examples: ExampleSet, device: str
) -> list[_Candidate]:
    rows = [_Candidate("bicubic", "baseline", None, None, lambda e: _timed(lambda: bicubic(e.lr, examples.scale)))]
    for name, (path, network) in students.items():
        parameters = sum(p.numel() for p in network.parameters())
        rows.append(_Candidate(name, "student", str(path), parameters, _restorer(name, network, device)))
    if examples.manifest:
        pace = examples.teacher_seconds_per_pixel

        def from_cache(example: Example) -> tuple[Image | None, float | None]:
            image = example.teacher
            return image, pace * image.shape[0] * image.shape[1] if pace and image is not None else None

        rows.append(_Candidate("teacher", "teacher", None, None, from_cache))
    if examples.kind != "LR":
        rows.append(_Candidate("gt", "gt", None, None, lambda e: (e.gt, None)))
    return rows


def _restorer(name: str, network: torch.nn.Module, device: str) -> Callable[[Example], tuple[Image, float]]:
    warm = False

    @torch.inference_mode()
    def restore(example: Example) -> tuple[Image, float]:
        nonlocal warm
        lr = images.to_tensor(example.lr)[None].to(device)  # (1, 3, h, w)
        if not warm:  # the first pass sets up kernels and memory; that is no part of the pace
            network(lr)
            warm = True
        sr, seconds = _timed(lambda: network(lr).float().cpu())
        if not torch.isfinite(sr).all():
            raise _BrokenNetworkError(
                f"{name} gives values that are not finite on {example.id}: the checkpoint is broken"
            )
        return images.to_image(sr[0].clamp(0, 1)), seconds

    return restore


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _score(
    example: Example, candidates: Sequence[_Candidate], loaded: Loaded, crop_border: int, failures: dict[str, str]
) -> list[tuple[str, Score, Image]]:
    """Every candidate's name, figures and restored image of one example."""
    rows = []
    for candidate in candidates:
        image, seconds = candidate.restore(example)
        if image is not None:
            values = _measure(loaded, candidate, image, example, crop_border, failures)
            rows.append((candidate.name, Score(example.id, values, seconds), image))
    return rows


def _measure(
    loaded: Loaded, candidate: _Candidate, image: Image, example: Example, crop_border: int, failures: dict[str, str]
) -> dict[str, float]:
    values, references = {}, {"gt": example.gt, "teacher": example.teacher, None: None}
    for metric in loaded.metrics:
        if metric.name in failures or metric.reference == candidate.role:  # nothing is compared with itself
            continue
        try:
            values[metric.name] = metric.measure(image, references[metric.reference], crop_border)
        except DtkdError:
            raise
        except Exception as error:  # a metric of another library may refuse an image (its size); the others still run
            failures[metric.name] = f"failed on {example.id} ({type(error).__name__}: {error})".splitlines()[0]
    return values


def _drop_failed(loaded: Loaded, failures: dict[str, str]) -> Loaded:
    remedy = "leave this metric out, or use larger images"
    failed = tuple(Unavailable(name, reason, remedy) for name, reason in failures.items())
    fine = tuple(metric for metric in loaded.metrics if metric.name not in failures)
    return replace(loaded, metrics=fine, unavailable=loaded.unavailable + failed)


def _png_writer(out: Path) -> OnImage:
    def write(candidate: str, image_id: str, image: Image) -> None:
        if candidate != "gt":
            path = out / candidate / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.save(path, image)

    return write


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
