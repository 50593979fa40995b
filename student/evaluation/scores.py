"""Figures of an evaluation: each image of each candidate, their means, and how they were made."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.corpus import Skipped
from pipeline.system.device import ResolvedPrecision
from pipeline.system.words import plural
from student.evaluation.costs import Cost
from student.evaluation.metrics import Loaded
from student.evaluation.scores_text import score_lines
from student.evaluation.statistics import FEW, Interval, mean_interval, paired_difference

SCHEMA = 1
"""Of `Evaluation.to_json`, which docs/evaluation.md describes."""
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
    over_set: Mapping[str, float] = field(default_factory=dict)
    """Figures of metrics that look at the whole set."""
    cost: Cost | None = None
    """None where nothing was computed here."""

    def figures(self, metric: str) -> dict[str, float]:
        """Of the images that count in a mean, by their names."""
        left_out = self.exact.get(metric, ())
        return {s.id: s.values[metric] for s in self.images if metric in s.values and s.id not in left_out}

    def interval(self, metric: str) -> Interval | None:
        """The mean with its interval over images; None where there is no mean, or fewer than two images are in it."""
        values = list(self.figures(metric).values())
        return mean_interval(values) if len(values) > 1 and self.mean(metric) is not None else None

    def difference(self, other: "CandidateScores", metric: str) -> Interval | None:
        """Mean of this candidate's figures less the other's on the same images, with its interval; None as above."""
        ours, theirs = self.figures(metric), other.figures(metric)
        both = [image for image in ours if image in theirs]
        if len(both) < 2 or self.mean(metric) is None or other.mean(metric) is None:
            return None
        return paired_difference([ours[image] for image in both], [theirs[image] for image in both])

    def mean(self, metric: str) -> float | None:
        """Mean over the images, or the figure of the set; None where the metric was not measured on every image."""
        if metric in self.over_set:
            return self.over_set[metric]
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
    baseline: str = "bicubic"
    """Name of the candidate that the others are compared with."""
    protocol: str = "classical"
    """Name of how figures were taken, see `student.evaluation.protocols`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What figures and times were measured with."""

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

    def differences(self, candidate: CandidateScores) -> dict[str, Interval]:
        """Of a candidate to the baseline, by metric, where there is any."""
        base = next((row for row in self.candidates if row.name == self.baseline), None)
        if base is None or candidate.name in (base.name, "gt"):
            return {}
        found = {name: candidate.difference(base, name) for name in self.metric_names}
        return {name: difference for name, difference in found.items() if difference is not None}

    def clearly_best(self, metric: str) -> CandidateScores | None:
        """Whose paired differences to all others but the ground truth are clear of zero; None where nobody's are.

        Nobody is on fewer than `statistics.FEW` images, whose intervals are too narrow.
        """
        if len(self.candidates[0].images) < FEW:
            return None
        lower = next(m.lower_is_better for m in self.metrics.metrics if m.name == metric)
        rows = [row for row in self.candidates if row.name != "gt" and row.mean(metric) is not None]
        for row in rows:
            others = [row.difference(other, metric) for other in rows if other is not row]
            if others and all(d is not None and (d.high < 0 if lower else d.low > 0) for d in others):
                return row
        return None

    @property
    def teacher_times(self) -> dict[str, dict[str, float]]:
        """How many times as long as each student every teacher takes for these images, where both were clocked."""
        students = [row for row in self.candidates if row.role == "student" and row.seconds]
        teachers = [row for row in self.candidates if row.role == "teacher" and row.seconds]
        return {t.name: {s.name: t.seconds / s.seconds for s in students if t.seconds and s.seconds} for t in teachers}

    @property
    def exact(self) -> Exact:
        """Images that are left out of the means of a metric."""
        return self.candidates[0].exact

    @property
    def remarks(self) -> list[str]:
        """What a reader of the means must know, a line each."""
        count = len(self.candidates[0].images)
        few = [f"{plural(count, 'image')} are few: other images may give other figures"] if 1 < count < FEW else []
        changing = [row.name for row in self.candidates if row.cost and not row.cost.repeatable]
        few += [f"{name} gives other bytes when it restores an image again" for name in changing]
        return few + [
            f"{metric} is infinite on {', '.join(ids)}, which a candidate restored exactly: left out of all its means"
            for metric, ids in self.exact.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; figures that are not finite become null."""
        return {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "environment": dict(self.environment),
            "data": self.data,
            "kind": self.kind,
            "scale": self.scale,
            "crop_border": self.crop_border,
            "device": self.device,
            "baseline": self.baseline,
            "metrics": {
                m.name: {"lower_is_better": m.lower_is_better, "settings": m.settings} for m in self.metrics.metrics
            },
            "unavailable": {u.name: {"reason": u.reason, "remedy": u.remedy} for u in self.metrics.unavailable},
            "skipped": {s.id: s.reason for s in self.skipped},
            "teacher_times": self.teacher_times,
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
            "cost": candidate.cost and candidate.cost.to_json(),
            "mean": {name: _finite(candidate.mean(name)) for name in self.metric_names},
            "interval": {name: list(found[1:]) for name in self.metric_names if (found := candidate.interval(name))},
            "difference": {name: list(found) for name, found in self.differences(candidate).items()},
            "images": [
                {"id": score.id, "seconds": score.seconds, **{k: _finite(v) for k, v in score.values.items()}}
                for score in candidate.images
            ],
        }


@dataclass(frozen=True)
class Evaluations:
    """What was found on several sets, by their names."""

    sets: dict[str, Evaluation]

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        failures = [f"{name}: {found.failure}" for name, found in self.sets.items() if found.failure]
        return "; ".join(failures) or None

    def lines(self) -> list[str]:
        """For people: the sets' tables, one below the other."""
        blocks = [[f"{name}:", *found.lines(), ""] for name, found in self.sets.items()]
        return [line for block in blocks for line in block][:-1]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"sets": {name: found.to_json() for name, found in self.sets.items()}}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
