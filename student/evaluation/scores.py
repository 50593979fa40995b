"""Figures of an evaluation: each image of each candidate, their means, and how they were made."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.corpus import Skipped
from pipeline.system.device import ResolvedPrecision
from pipeline.system.words import plural
from student.evaluation.metrics import Loaded
from student.evaluation.scores_text import score_lines

Role = Literal["baseline", "student", "outputs", "teacher", "gt"]


@dataclass(frozen=True)
class Score:
    """Figures of one restored image; `seconds` is the restoration alone, None where it was not measured."""

    id: str
    values: dict[str, float]
    seconds: float | None


Exact = Mapping[str, tuple[str, ...]]
"""By metric, images on which a candidate's figure is infinite: it restored them exactly."""


@dataclass(frozen=True)
class CandidateScores:
    """Figures of one candidate over all images; `exact` ones of any candidate are in nobody's mean."""

    name: str
    role: Role
    path: str | None
    parameters: int | None
    precision: ResolvedPrecision | None
    """What its network computes in; None without one."""
    images: tuple[Score, ...]
    exact: Exact

    def mean(self, metric: str) -> float | None:
        """Mean over the images; None where there are none, or the metric was not measured on every one of them."""
        left_out = self.exact.get(metric, ())
        values = [score.values.get(metric, math.nan) for score in self.images if score.id not in left_out]
        mean = sum(values) / len(values) if values else math.nan
        return None if math.isnan(mean) else mean

    @property
    def seconds(self) -> float | None:
        """Median seconds an image."""
        seconds = [score.seconds for score in self.images if score.seconds is not None]
        return statistics.median(seconds) if seconds else None


def exact_images(scores: Sequence[Score]) -> Exact:
    """Which images are exact in the figures of all candidates."""
    exact: dict[str, tuple[str, ...]] = {}
    for score in scores:
        for metric, value in score.values.items():
            if math.isinf(value) and score.id not in exact.get(metric, ()):
                exact[metric] = (*exact.get(metric, ()), score.id)
    return exact


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
    out: Path | None = None
    """Folder that it was written to."""

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return f"{plural(len(self.skipped), 'image')} could not be measured" if self.skipped else None

    def lines(self) -> list[str]:
        """For people, see `scores_text`."""
        return [*score_lines(self, {}), *([f"written to {self.out}"] if self.out else [])]

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that were measured, in the order asked for."""
        return [metric.name for metric in self.metrics.metrics]

    @property
    def exact(self) -> Exact:
        """Images that are left out of the means of a metric."""
        return self.candidates[0].exact

    @property
    def remarks(self) -> list[str]:
        """What a reader of the means must know, a line each."""
        return [
            f"{metric} is infinite on {', '.join(ids)}, which a candidate restored exactly: left out of all its means"
            for metric, ids in self.exact.items()
        ]

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
            "exact": {metric: list(ids) for metric, ids in self.exact.items()},
            "candidates": [self._candidate_json(candidate) for candidate in self.candidates],
        }

    def _candidate_json(self, candidate: CandidateScores) -> dict[str, Any]:
        return {
            "name": candidate.name,
            "role": candidate.role,
            "path": candidate.path,
            "parameters": candidate.parameters,
            "precision": candidate.precision,
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


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
