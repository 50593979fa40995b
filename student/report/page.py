"""The report as an HTML page: one file with pictures, curves, style and script inside.

Here is what the page says; how it looks stands in `assets/report.html`, a Jinja2 template that escapes whatever it is
given. Only the curves go in as they are: SVG of our own, in which matplotlib has escaped the names of the runs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.images import Rgb
from pipeline.schema import Manifest
from pipeline.system.progress import clock_text
from student.evaluation.metrics import Metric
from student.evaluation.scores import CandidateScores, Evaluation, Score
from student.evaluation.scores_text import score_lines
from student.evaluation.statistics import FEW
from student.report import curves
from student.report.curves import RunCurves
from student.report.pictures import busiest_square, data_uri

BICUBIC, TEACHER, TRUTH = "LR (bicubic)", "teacher", "GT"
GT_ONLY, DTKD = "GT-only student", "DTKD student"
MEANINGFUL = 0.05  # an advantage of the teacher below this share of the figure is noise, and a share of it is none
_NONE = "\N{EN DASH}"
_METRIC_LABELS = {"teacher_psnr_y": "psnr_y to teacher"}


@dataclass(frozen=True)
class ReportRun:
    """A training run as the report shows it."""

    label: str
    folder: Path
    settings: dict[str, Any]
    curves: RunCurves


@dataclass(frozen=True)
class Report:
    """A report that was written, and what stands in it.

    Attributes:
        path: the HTML file.
        evaluation: the figures, one candidate a row.
        labels: what the report calls each candidate, by its name in `evaluation`.
        teacher_seconds: seconds of the teacher for a held-out photo; None where it was not run here.
        student_seconds: the same of the DTKD student.
    """

    path: Path
    evaluation: Evaluation
    labels: dict[str, str]
    teacher_seconds: float | None
    student_seconds: float | None

    @property
    def ratio(self) -> float | None:
        """How many times faster than its teacher the student is."""
        return self.teacher_seconds / self.student_seconds if self.teacher_seconds and self.student_seconds else None

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return self.evaluation.failure

    def lines(self) -> list[str]:
        """For people: the figures, the times, the file."""
        lines = score_lines(self.evaluation, self.labels)
        if self.ratio:
            times = f"the teacher {self.teacher_seconds:.2f} s and the student {self.student_seconds:.3f} s"
            lines.append(f"a held-out photo takes {times}: {self.ratio:.1f} times faster")
        return [*lines, f"report: {self.path}"]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        times = {"teacher_seconds": self.teacher_seconds, "student_seconds": self.student_seconds, "ratio": self.ratio}
        return {"report": str(self.path), **times, "evaluation": self.evaluation.to_json()}


class _Figure(NamedTuple):
    """A number in the table of means."""

    text: str
    best: bool


class _Table(NamedTuple):
    """A table of keys and their values."""

    title: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Any]]]


def render(report: Report, runs: Sequence[ReportRun], manifest: Manifest, shown: dict[str, dict[str, Rgb]]) -> str:
    """The page.

    Args:
        report: the figures.
        runs: the runs, the DTKD run last.
        manifest: of the cache that was evaluated on.
        shown: image id -> candidate -> picture, for the photos to show.
    """
    loader = PackageLoader("student.report", "assets")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return pages.get_template("report.html").render(
        ours=DTKD,
        corpus=manifest.corpus,
        headline=_headline(report),
        lead=_lead(report, manifest, runs),
        facts=_facts(report),
        columns=[
            {"label": _METRIC_LABELS.get(m.name, m.name), "lower_is_better": m.lower_is_better}
            for m in report.evaluation.metrics.metrics
        ],
        rows=_rows(report),
        table_note=_table_note(report),
        photos=[_photo(report, image_id, pictures) for image_id, pictures in shown.items()],
        curves=list(_curves(runs)),
        times=_times(report, manifest),
        tables=_provenance(report, manifest, runs),
    )


def is_report(path: Path) -> bool:
    """Whether a file is a page that `render` made."""
    with open(path, "rb") as file:
        return b"<title>DTKD report: " in file.read(1000)


def _row(report: Report, label: str) -> CandidateScores | None:
    return next((c for c in report.evaluation.candidates if report.labels[c.name] == label), None)


def _mean(report: Report, label: str, metric: str) -> float | None:
    row = _row(report, label)
    return row.mean(metric) if row else None


def _headline(report: Report) -> str:
    """What the student is worth, as far as the photos show it."""
    parts = [f"{_ratio_text(report.ratio)} faster than its teacher"] if report.ratio else []
    student, bicubic = _row(report, DTKD), _row(report, BICUBIC)
    gain = student.difference(bicubic, "psnr_y") if student and bicubic and len(student.images) >= FEW else None
    if gain and gain.is_clear_of_zero:
        parts.append(f"{abs(gain.value):.2f} dB {'above' if gain.value > 0 else 'below'} bicubic")
    return f"The distilled student: {', '.join(parts)}" if parts else "The distilled student"


def _lead(report: Report, manifest: Manifest, runs: Sequence[ReportRun]) -> str:
    count = len(report.evaluation.candidates[0].images)
    settings = runs[-1].settings
    init = settings.get("train", {}).get("init") or ""
    origin = f"It started from pre-trained weights ({init})." if init else "It started from scratch."
    return (
        f"A {settings['model']['preset']} transformer was trained for {settings['train']['steps']} steps on what the "
        f"teacher “{manifest.teacher}” made of “{manifest.corpus}”, x{manifest.scale}, {manifest.degradation['kind']} "
        f"degradation. {origin} Everything below is measured on {count} held-out photo{'s' if count != 1 else ''}."
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = []
    for label, text in (
        (BICUBIC, "psnr_y of bicubic"),
        (GT_ONLY, "of the GT-only student"),
        (DTKD, "of the DTKD student"),
    ):
        value = _mean(report, label, "psnr_y")
        if value is not None:
            facts.append((f"{value:.2f} dB", text))
    if report.teacher_seconds and report.student_seconds:
        facts.append((_seconds(report.teacher_seconds), "a photo with the teacher"))
        facts.append((_seconds(report.student_seconds), "a photo with the student"))
    return facts


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    """Rows of the table of means."""
    found = report.evaluation
    best = {name: found.clearly_best(name) for name in found.metric_names}
    for row in found.candidates:
        yield {
            "label": report.labels[row.name],
            "figures": [_Figure(_number(row.mean(name), name), row is best[name]) for name in found.metric_names],
            "parameters": f"{row.parameters:,}" if row.parameters else _NONE,
            "seconds": _seconds(row.seconds),
        }


def _table_note(report: Report) -> str:
    found = report.evaluation
    notes = [
        f"Means over the held-out photos; arrows point to better. psnr_y (dB) and ssim_y on 8-bit BT.601 luma, "
        f"{found.crop_border} border pixels left out. Blue: better than all others but the ground truth, with "
        f"95 % intervals of the differences that do not hold zero; nothing is blue on fewer than {FEW} photos.",
        *(f"{u.name} is missing: {u.reason}." for u in found.metrics.unavailable),
        *(f"{remark}." for remark in found.remarks),
    ]
    gaps = [text for m in found.metrics.metrics if (text := _gap(report, m))]
    if gaps:
        notes.append(
            f"Of the teacher's advantage over the GT-only student, the DTKD student closed: {', '.join(gaps)}."
        )
    return " ".join(notes)


def _gap(report: Report, metric: Metric) -> str:
    before, after, goal = (_mean(report, label, metric.name) for label in (GT_ONLY, DTKD, TEACHER))
    if before is None or after is None or goal is None:
        return ""
    sign = -1 if metric.lower_is_better else 1
    if sign * (goal - before) < MEANINGFUL * abs(before):
        return ""
    return f"{(after - before) / (goal - before):.0%} in {metric.name}"


def _photo(report: Report, image_id: str, pictures: dict[str, Rgb]) -> dict[str, Any]:
    """One photo in all versions, with the square that is enlarged below each."""
    height, width = pictures["gt"].shape[:2]
    x, y, side = busiest_square(pictures["gt"])
    places = {"left": x / width, "top": y / height, "width": side / width, "height": side / height}
    shots = []
    for row in report.evaluation.candidates:
        score = next(score for score in row.images if score.id == image_id)
        figures = list(_captions(report, score))
        shots.append({"label": report.labels[row.name], "source": data_uri(pictures[row.name]), "figures": figures})
    return {
        "id": image_id,
        "width": width,
        "height": height,
        "box": f"{x} {y} {side}",
        "mark": ";".join(f"{name}:{place:.2%}" for name, place in places.items()),
        "shots": shots,
    }


def _captions(report: Report, score: Score) -> Iterator[str]:
    for metric in report.evaluation.metrics.metrics:
        if metric.name in score.values and metric.reference != "teacher":
            yield f"{metric.name} {_number(score.values[metric.name], metric.name)}"


def _curves(runs: Sequence[ReportRun]) -> Iterator[tuple[str, str]]:
    """Figures as SVG, each with its caption."""
    logs = [run.curves for run in runs]
    captions = [
        (curves.total_loss(logs), "Total loss: L1 to the ground truth plus lambda times the distillation loss."),
        (curves.groups(logs[-1]), "DTKD: distance to the teacher in each frequency group, and the weight lambda."),
        (curves.validation(logs), "Fidelity on held-out samples while training."),
    ]
    return ((svg, text) for svg, text in captions if svg)


def _times(report: Report, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "teacher, a held-out photo", _seconds(report.teacher_seconds)
    yield "DTKD student, a held-out photo", _seconds(report.student_seconds)
    yield "ratio", _ratio_text(report.ratio) if report.ratio else _NONE
    if manifest.teacher_images:
        name = f"teacher over the whole corpus, once ({manifest.teacher_images} images)"
        yield name, clock_text(manifest.teacher_seconds)


def _provenance(report: Report, manifest: Manifest, runs: Sequence[ReportRun]) -> list[_Table]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("dtkd", "torch", "diffusers"))
    facts = {
        "corpus": manifest.corpus,
        "samples": f"{manifest.ok}, {manifest.errors} failed, tiles of {manifest.tile} pixels",
        "degradation": f"{manifest.degradation['kind']}, x{manifest.scale}",
        "teacher": manifest.teacher,
        "device": report.evaluation.device,
        "precision of students": ", ".join(sorted({c.precision for c in report.evaluation.candidates if c.precision})),
        "versions": versions,
    }
    settings = [dict(_flatten(run.settings)) for run in runs]
    keys = dict.fromkeys(key for flat in settings for key in flat)
    measured = report.evaluation.metrics.metrics
    value = ("", "value")
    return [
        _Table("Cache", value, [(key, [fact]) for key, fact in facts.items()]),
        _Table(
            "Training settings",
            ("", *(run.label for run in runs)),
            [(key, [flat.get(key, "") for flat in settings]) for key in keys],
        ),
        _Table("Teacher fingerprint", value, [(key, [v]) for key, v in _flatten(manifest.fingerprint)]),
        _Table("Metric settings", value, [(metric.name, [json.dumps(metric.settings)]) for metric in measured]),
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested settings, by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return _NONE
    return f"{value:.4f}" if "ssim" in metric or "lpips" in metric or "dists" in metric else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.3f} s" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"
