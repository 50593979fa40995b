"""What an ablation found: every arm beside the baseline, as text and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.system.results import plain
from pipeline.system.words import plural
from student.evaluation.statistics import FEW, Interval


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline in one metric, over images and seeds."""

    arm: str
    metric: str
    lower_is_better: bool
    mean: float
    difference: Interval | None
    """Arm - baseline, paired by image and seed; None for the baseline itself."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no difference` where the interval crosses zero."""
        if self.difference is None:
            return "baseline"
        if not self.difference.is_clear_of_zero:
            return "no difference"
        return "better" if (self.difference.value < 0) == self.lower_is_better else "worse"


@dataclass(frozen=True)
class Ablation:
    """What an ablation found."""

    grid: str
    baseline: str
    steps: int
    seeds: int
    images: int
    data: str
    settings: Mapping[str, Any]
    """Of the baseline; the arms change what `changes` says."""
    changes: Mapping[str, Sequence[str]]
    """By arm."""
    comparisons: tuple[Comparison, ...]
    environment: Mapping[str, str]

    failure = None
    """See `pipeline.system.results.Result`."""

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; intervals are [value, low, high]."""
        rows = [
            {"arm": c.arm, "metric": c.metric, "mean": c.mean, "difference": c.difference, "verdict": c.verdict}
            for c in self.comparisons
        ]
        return {**plain(self), "comparisons": plain(rows)}

    @property
    def metrics(self) -> list[str]:
        """Names, in order."""
        return list(dict.fromkeys(c.metric for c in self.comparisons))

    def markdown(self) -> str:
        """The table: mean, then the difference to the baseline with its 95 % interval."""
        heads = [f"{name}, difference" for name in self.metrics]
        few = f" Fewer than {FEW} images: take it as a hint." if self.images < FEW else ""
        lines = [
            f"Grid `{self.grid}`, {self.steps} steps, {plural(self.seeds, 'seed')}, {plural(self.images, 'image')} of "
            f"`{self.data}`. Differences to `{self.baseline}` with 95 % intervals, paired by image and seed; bold "
            f"where the interval does not cross zero.{few}",
            "",
            f"| arm | {' | '.join(heads)} |",
            f"|---|{'---|' * len(heads)}",
        ]
        for arm in self.changes:
            cells = [_cell(c) for c in self.comparisons if c.arm == arm]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def lines(self) -> list[str]:
        """What the command prints."""
        return self.markdown().splitlines()


def _cell(found: Comparison) -> str:
    digits = 2 if found.metric == "psnr_y" else 4
    if found.difference is None:
        return f"{found.mean:.{digits}f}"
    d = found.difference
    text = f"{d.value:+.{digits}f} ({d.low:+.{digits}f} to {d.high:+.{digits}f})"
    return f"{found.mean:.{digits}f}, {f'**{text}**' if d.is_clear_of_zero else text}"
