"""Which images are worth their place at full size: the ones that the last student improves most and least."""

import math
from dataclasses import dataclass

from student.evaluation.metrics import OURS, Metric
from student.evaluation.scores import CandidateScores, Evaluation

FIDELITY = frozenset(
    {*OURS, "psnr", "psnry", "ssim", "ms_ssim", "cw_ssim", "fsim", "gmsd", "nlpd", "mad", "vif", "vsi"}
)
"""Metrics of distortion: they compare pixels or structure, and blur pleases them more than invented texture."""


@dataclass(frozen=True)
class Choice:
    """The images to show at full size, and by what they were chosen.

    Attributes:
        metric: the figure that decides.
        candidate: whose figure.
        baseline: with whom it is compared; None where the candidate stands alone.
        gains: how much better the candidate is, or its figure with the sign of better, by image; positive is better.
        best: images with the largest gains, the largest first.
        worst: images with the smallest, the smallest first.
        others: images that are shown because there is room, without such a figure.
    """

    metric: Metric
    candidate: str
    baseline: str | None
    gains: dict[str, float]
    best: tuple[str, ...]
    worst: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """All of them, in the order of the page."""
        return self.best + self.worst + self.others


def perceptual(found: Evaluation) -> list[Metric]:
    """Its perceptual metrics, the ones that compare with the ground truth first."""
    rest = [metric for metric in found.metrics.metrics if metric.name not in FIDELITY]
    return [m for m in rest if m.reference] + [m for m in rest if not m.reference]


def fidelity(found: Evaluation) -> Metric | None:
    """psnr_y, or the first other metric of distortion to the ground truth."""
    rows = [m for m in found.metrics.metrics if m.name in FIDELITY and m.reference == "gt"]
    return next((m for m in rows if m.name == "psnr_y"), rows[0] if rows else None)


def choose(found: Evaluation, count: int) -> Choice:
    """Take `count` images: a half with the largest gains, a half with the smallest; all where there are no more."""
    metric, candidate = _deciding(found), _subject(found)
    baseline = next((row for row in found.candidates if row.name == found.baseline), None)
    gains = _gains(candidate, None if baseline is candidate else baseline, metric)
    order = sorted(gains, key=lambda image: -gains[image])
    best = order[: min((count + 1) // 2, (len(order) + 1) // 2)]
    worst = order[: len(best) - 1 : -1][: count - len(best)]
    seen = dict.fromkeys(score.id for row in found.candidates for score in row.images)
    others = [image for image in seen if image not in gains][: count - len(best) - len(worst)]
    compared = baseline.name if baseline and baseline is not candidate else None
    return Choice(metric, candidate.name, compared, gains, tuple(best), tuple(worst), tuple(others))


def _deciding(found: Evaluation) -> Metric:
    """The first perceptual metric, else psnr_y, else the first; of the ones that have a figure for every image."""
    measured = {name for row in found.candidates for score in row.images for name in score.values}
    preferred = [*perceptual(found), *filter(None, [fidelity(found)]), *found.metrics.metrics]
    return next((metric for metric in preferred if metric.name in measured), preferred[0])


def _subject(found: Evaluation) -> CandidateScores:
    """The last student, else the last one that is no baseline; the baseline where it is alone."""
    rows = [row for row in found.candidates if row.name not in (found.baseline, "gt")]
    students = [row for row in rows if row.role == "student"]
    return (students or rows or list(found.candidates))[-1 if rows else 0]


def _gains(row: CandidateScores, base: CandidateScores | None, metric: Metric) -> dict[str, float]:
    sign = -1.0 if metric.lower_is_better else 1.0
    ours = {score.id: score.values.get(metric.name, math.nan) for score in row.images}
    theirs = (
        {score.id: score.values.get(metric.name, math.nan) for score in base.images}
        if base
        else dict.fromkeys(ours, 0.0)
    )
    gains = {image: sign * (value - theirs.get(image, math.nan)) for image, value in ours.items()}
    return {image: gain for image, gain in gains.items() if math.isfinite(gain)}
