"""An evaluation as tables for other programs and for documents: CSV with every image, Markdown with the means."""

import csv
import io
from collections.abc import Sequence

from pipeline.system.words import plural
from student.evaluation.scores import CandidateScores, Evaluation


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
    """Means with 95 % intervals, cost, paired differences to the baseline, and what a reader must know of them."""
    heads = ["", *(f"{m.name} {'↓' if m.lower_is_better else '↑'}" for m in found.metrics.metrics)]
    rows = [
        [_escaped(row.name), *(_mean(row, name) for name in found.metric_names), *_cost(row)]
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
    notes = [f"{images}, x{found.scale}, protocol {found.protocol}, border {found.crop_border}."]
    sizes = {row.cost.lr_size for row in found.candidates if row.cost}
    if sizes:
        width, height = min(sizes)
        notes.append(f"GFLOPs and memory (MB beyond what was held) of one LR image of {width}x{height}.")
    for teacher, times in found.teacher_times.items():
        ratios = ", ".join(f"{ratio:.1f} times {_escaped(student)}" for student, ratio in times.items())
        if ratios:
            notes.append(f"{_escaped(teacher)} takes as long as {ratios}.")
    if found.environment:
        about = found.environment
        notes.append(f"Measured on {about['processor']}, threads {about['threads']}, torch {about['torch']}.")
    return [*notes, *(f"{_escaped(remark)}." for remark in found.remarks)]


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


def _cost(row: CandidateScores) -> list[str]:
    flops, peak = (row.cost.flops, row.cost.peak_bytes) if row.cost else (None, None)
    return [
        f"{row.parameters:,}" if row.parameters else "",
        f"{flops / 1e9:.1f}" if flops else "",
        f"{peak / 1e6:.0f}" if peak is not None else "",
        f"{row.seconds:.3f}" if row.seconds else "",
    ]
