"""An evaluation as tables for other programs and for documents: CSV with every image, Markdown with the means."""

import csv
import io
from collections.abc import Sequence

from pipeline.system.words import plural
from student.evaluation.scores import CandidateScores, Evaluation
from student.evaluation.scores_text import cost_cells, cost_notes


def to_csv(found: Evaluation) -> str:
    """One row for each candidate and image, then one with the mean of each candidate."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["candidate", "image", *found.metric_names, "seconds"])
    for candidate in found.candidates:
        for score in candidate.images:
            values = [score.values.get(name, "") for name in found.metric_names]
            rows.writerow([candidate.name, score.id, *values, score.seconds or ""])
    for candidate in found.candidates:
        means = [candidate.mean(name) for name in found.metric_names]
        rows.writerow([candidate.name, "MEAN", *("" if m is None else m for m in means), candidate.seconds or ""])
    return text.getvalue()


def to_markdown(found: Evaluation) -> str:
    """Means with 95 % intervals, costs, paired differences to the baseline, and what a reader must know of them."""
    heads = ["", *(f"{m.name} {'↓' if m.lower_is_better else '↑'}" for m in found.metrics.metrics)]
    rows = [
        [_escaped(row.name), *(_mean(row, name) for name in found.metric_names), *cost_cells(row)]
        for row in found.candidates
        if row.name != "gt"
    ]
    lines = _table([*heads, "weights", "GFLOPs", "MB", "s/image"], rows)
    compared = [(row, found.differences(row)) for row in found.candidates if found.differences(row)]
    if compared:
        lines += ["", f"Minus {_escaped(found.baseline)}, paired over the images, with 95 % intervals:", ""]
        cells = [
            [_escaped(row.name), *(_difference(differences.get(name)) for name in found.metric_names)]
            for row, differences in compared
        ]
        lines += _table(heads, cells)
    return "\n".join([*lines, "", *_notes(found)]) + "\n"


def _notes(found: Evaluation) -> list[str]:
    images = plural(len(found.candidates[0].images), "image")
    notes = [f"{images}, x{found.scale}, protocol {found.protocol}, border {found.crop_border}"]
    return [f"* {_escaped(note)}" for note in [*notes, *cost_notes(found, {}), *found.remarks]]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    for sign in "\\`*_{}[]<>|":
        text = text.replace(sign, "\\" + sign)
    return text


def _mean(row: CandidateScores, metric: str) -> str:
    mean, interval = row.mean(metric), row.interval(metric)
    if mean is None:
        return ""
    digits = 2 if abs(mean) >= 5 else 4
    around = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if interval else ""
    return f"{mean:.{digits}f}{around}"


def _difference(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"
