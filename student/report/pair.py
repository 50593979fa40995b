"""What the report of a pair of runs says besides figures and pictures: headline, training curves, times, settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.schema import Manifest
from pipeline.system.progress import clock_text
from student.evaluation.metrics import Metric
from student.evaluation.scores import CandidateScores, Evaluation
from student.evaluation.scores_text import score_lines
from student.evaluation.statistics import FEW
from student.report import curves, provenance
from student.report.curves import RunCurves
from student.report.figures import NONE, seconds_text
from student.report.page import render, set_view
from student.report.pictures.gallery import galleries
from student.report.pictures.spool import Spool
from student.report.provenance import Table, flatten

BICUBIC, TEACHER, TRUTH = "LR (bicubic)", "teacher", "GT"
GT_ONLY, DTKD = "GT-only student", "DTKD student"
MEANINGFUL = 0.05  # an advantage of the teacher below this share of the figure is noise, and a share of it is none
SET = "held-out photos"
"""What the pictures are kept under."""


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


def render_report(report: Report, runs: Sequence[ReportRun], manifest: Manifest, spool: Spool) -> bytes:
    """The page.

    Args:
        report: the figures.
        runs: the runs, the DTKD run last.
        manifest: of the cache that was evaluated on.
        spool: pictures of the held-out photos, kept under SET.
    """
    found, labels = report.evaluation, report.labels
    ours = next((row.name for row in found.candidates if labels[row.name] == DTKD), None)
    view = set_view(SET, 1, _gaps(report), found, labels, galleries({SET: found}, spool)[SET], ours)
    return render(
        "report.html",
        title=manifest.corpus,
        headline=_headline(report),
        lead=_lead(report, manifest, runs),
        facts=_facts(report),
        set=view,
        curves=list(_curves(runs)),
        times=_times(report, manifest),
        tables=_tables(report, manifest, runs),
    )


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
        facts.append((seconds_text(report.teacher_seconds), "a photo with the teacher"))
        facts.append((seconds_text(report.student_seconds), "a photo with the student"))
    return facts


def _gaps(report: Report) -> str:
    if len(report.evaluation.candidates[0].images) < FEW:
        return ""
    gaps = [text for m in report.evaluation.metrics.metrics if (text := _gap(report, m))]
    closed = f"Of the teacher's advantage over the GT-only student, the DTKD student closed: {', '.join(gaps)}."
    return closed if gaps else ""


def _gap(report: Report, metric: Metric) -> str:
    before, after, goal = (_mean(report, label, metric.name) for label in (GT_ONLY, DTKD, TEACHER))
    if before is None or after is None or goal is None:
        return ""
    sign = -1 if metric.lower_is_better else 1
    if sign * (goal - before) < MEANINGFUL * abs(before):
        return ""
    return f"{(after - before) / (goal - before):.0%} in {metric.name}"


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
    yield "teacher, a held-out photo", seconds_text(report.teacher_seconds)
    yield "DTKD student, a held-out photo", seconds_text(report.student_seconds)
    yield "ratio", _ratio_text(report.ratio) if report.ratio else NONE
    if manifest.teacher_images:
        name = f"teacher over the whole corpus, once ({manifest.teacher_images} images)"
        yield name, clock_text(manifest.teacher_seconds)


def _tables(report: Report, manifest: Manifest, runs: Sequence[ReportRun]) -> list[Table]:
    facts = {
        "corpus": manifest.corpus,
        "samples": f"{manifest.ok}, {manifest.errors} failed, tiles of {manifest.tile} pixels",
        "degradation": f"{manifest.degradation['kind']}, x{manifest.scale}",
        "teacher": manifest.teacher,
    }
    settings = [dict(flatten(run.settings)) for run in runs]
    keys = dict.fromkeys(key for flat in settings for key in flat)
    value = ("", "value")
    return [
        Table("Cache", value, [(key, [fact]) for key, fact in facts.items()]),
        Table(
            "Training settings",
            ("", *(run.label for run in runs)),
            [(key, [flat.get(key, "") for flat in settings]) for key in keys],
        ),
        Table("Teacher fingerprint", value, [(key, [v]) for key, v in flatten(manifest.fingerprint)]),
        *provenance.tables(report.evaluation, report.labels),
    ]


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"
