"""The work of an evaluation: restore a few images with every candidate, then measure them side by side, and so on.

Restoring has the machine to itself, so that its clock tells what a candidate takes; measuring uses all cores, an image
a thread. Both alternate over as many images as there are threads, so memory does not grow with the set. An image that
cannot be read or measured is left out for all candidates, and named with the reason.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from pipeline import images
from pipeline.corpus import Skipped
from pipeline.images import Rgb
from pipeline.system.device import out_of_memory
from pipeline.system.errors import DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent
from student.evaluation.candidates import Candidate, Restored
from student.evaluation.costs import Cost, measure_cost
from student.evaluation.examples import Example, ExampleSet
from student.evaluation.metrics import Loaded, Unavailable
from student.evaluation.scores import Score
from student.networks import BrokenNetworkError

OnImage = Callable[[str, str, Rgb], None]
"""(candidate's name, image's id, the restored image), all candidates of an image one after the other."""
MOST_THREADS = 8
"""Images that are in memory at a time."""
_T = TypeVar("_T")


@dataclass
class Work:
    """An evaluation at work: who restores which images, what is measured, and what was found so far."""

    data: Path
    examples: ExampleSet
    candidates: list[Candidate]
    metrics: Loaded
    crop_border: int
    out: Path | None = None
    """Folder for the restored images."""
    scores: dict[str, list[Score]] = field(default_factory=lambda: defaultdict(list))
    """By candidate."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """By candidate."""
    over_set: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """By candidate, then metric."""
    skipped: list[Skipped] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Metrics that failed, and why."""

    @property
    def usable_metrics(self) -> Loaded:
        """Those that did not fail, with the others among the unavailable."""
        remedy = "leave this metric out, or use larger images"
        failed = tuple(Unavailable(name, reason, remedy) for name, reason in self.failures.items())
        fine = tuple(metric for metric in self.metrics.metrics if metric.name not in self.failures)
        return replace(self.metrics, metrics=fine, unavailable=self.metrics.unavailable + failed)


@dataclass(frozen=True)
class _Pictures:
    """An example and what the candidates made of it, those who have something."""

    example: Example
    restored: dict[str, Restored]


def score_all(work: Work, on_image: OnImage | None, on_progress: OnProgress | None) -> None:
    """Restore and measure every image.

    Raises:
        DtkdError: none of them could be, or a network is broken.
    """
    threads, total = min(torch.get_num_threads(), MOST_THREADS), len(work.examples)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        kept = _kept_for_sets(work, stack)
        for start in range(0, total, threads):
            indices = range(start, min(start + threads, total))
            restored = [_or_skipped(work, i, lambda i=i: _restore(work, work.examples.read(i))) for i in indices]
            futures = [pictures and pool.submit(_measure, work, pictures) for pictures in restored]
            for index, pictures, future in zip(indices, restored, futures, strict=True):
                scores = future and _or_skipped(work, index, future.result)
                if pictures and scores:
                    _keep(work, pictures, scores, kept, on_image)
                if on_progress:
                    on_progress(ProgressEvent(index + 1, total, "images"))
        if not any(work.scores.values()):
            last = work.skipped[-1]
            raise DtkdError(f"no image of {work.data} could be measured: {last.id}: {last.reason}")
        _measure_sets(work, kept)


def _or_skipped(work: Work, index: int, doing: Callable[[], _T]) -> _T | None:
    """What `doing` gives; None where this image alone cannot be used, which is noted."""
    try:
        return doing()
    except BrokenNetworkError:
        raise
    except (DtkdError, OSError, MemoryError, RuntimeError) as error:
        work.skipped.append(Skipped(work.examples.ids[index], _reason(error)))
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, images.ImageError):
        return error.reason
    if out_of_memory(error):
        return "out of memory: whole images are measured; take another device, or cut it"
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


def _restore(work: Work, example: Example) -> _Pictures:
    restored = {}
    for candidate in work.candidates:
        if candidate.works and candidate.name not in work.costs:
            work.costs[candidate.name] = _cost(candidate, example)
        found = candidate.restore(example)
        if found is not None:
            restored[candidate.name] = found
    return _Pictures(example, restored)


def _cost(candidate: Candidate, example: Example) -> Cost:
    def restore() -> Rgb:
        restored = candidate.restore(example)
        assert restored is not None
        return restored.image

    height, width = example.lr.shape[:2]
    count = candidate.count or candidate.restore
    return measure_cost(restore, lambda: count(example), (width, height), candidate.device)


def _measure(work: Work, pictures: _Pictures) -> list[Score]:
    """Figures of every candidate's image, in the candidates' order; here, too, they are written."""
    scores = []
    for name, restored in pictures.restored.items():
        values = _figures(work, name, restored.image, pictures.example)
        scores.append(Score(pictures.example.id, values, restored.seconds))
        if work.out and name != "gt":
            path = work.out / name / f"{pictures.example.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.save(path, restored.image)
    return scores


def _figures(work: Work, candidate: str, image: Rgb, example: Example) -> dict[str, float]:
    values, references = {}, {"gt": example.gt, "teacher": example.teacher, "lr": example.lr, None: None}
    for metric in work.metrics.metrics:
        if metric.measure_set or metric.name in work.failures or metric.reference == candidate:
            continue  # nothing is compared with itself
        try:
            values[metric.name] = metric.measure(image, references[metric.reference], work.crop_border)
        except DtkdError:
            raise
        except Exception as error:  # a metric of another library may refuse an image (its size); the others still run
            work.failures[metric.name] = f"failed on {example.id} ({type(error).__name__}: {error})".splitlines()[0]
    return values


def _keep(
    work: Work, pictures: _Pictures, scores: Sequence[Score], kept: Path | None, on_image: OnImage | None
) -> None:
    for (name, restored), score in zip(pictures.restored.items(), scores, strict=True):
        number = len(work.scores[name])
        work.scores[name].append(score)
        if on_image:
            on_image(name, pictures.example.id, restored.image)
        if kept:
            (kept / name).mkdir(exist_ok=True)
            images.save(kept / name / f"{number:06}.png", restored.image)


def _kept_for_sets(work: Work, stack: ExitStack) -> Path | None:
    """A folder for everybody's images until the end, where a metric looks at whole sets of them."""
    if any(metric.measure_set for metric in work.metrics.metrics):
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dtkd-")))
    return None


def _measure_sets(work: Work, kept: Path | None) -> None:
    for metric in work.metrics.metrics:
        for candidate in work.candidates if metric.measure_set and kept else ():
            if candidate.name == metric.reference or not work.scores[candidate.name] or metric.name in work.failures:
                continue
            assert metric.measure_set and kept
            try:
                figure = metric.measure_set(kept / candidate.name, kept / "gt")
            except Exception as error:  # of another library, as above
                work.failures[metric.name] = f"failed ({type(error).__name__}: {error})".splitlines()[0]
            else:
                work.over_set[candidate.name][metric.name] = figure
