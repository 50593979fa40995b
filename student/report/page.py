"""The report as an HTML page: one file with pictures, curves, style and script inside."""

import html
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

from pipeline import fidelity, images
from pipeline.schema import Manifest
from pipeline.system.progress import clock_text
from student.evaluation.evaluate import CandidateScores, Evaluation, Score
from student.evaluation.metrics import Image, Metric
from student.evaluation.scores_text import score_lines
from student.report import curves
from student.report.curves import RunCurves

BICUBIC, TEACHER, TRUTH = "LR (bicubic)", "teacher", "GT"
GT_ONLY, DTKD = "GT-only student", "DTKD student"
DETAIL = 72  # side of the enlarged square, HR pixels
MEANINGFUL = 0.05  # an advantage of the teacher below this share of the figure is noise, and a share of it is none
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


def render(report: Report, runs: Sequence[ReportRun], manifest: Manifest, shown: dict[str, dict[str, Image]]) -> str:
    """The page.

    Args:
        report: the figures.
        runs: the runs, the DTKD run last.
        manifest: of the cache that was evaluated on.
        shown: image id -> candidate -> picture, for the photos to show.
    """
    assets = resources.files("student.report") / "assets"
    parts = {
        "title": f"DTKD report: {html.escape(manifest.corpus)}",
        "headline": _headline(report),
        "lead": _lead(report, manifest, runs),
        "facts": "\n".join(f"<li><b>{value}</b><span>{text}</span></li>" for value, text in _facts(report)),
        "table": _figures_table(report),
        "table_note": _table_note(report),
        "photos": "\n".join(_photo(report, image_id, pictures) for image_id, pictures in shown.items()),
        "curves": _curves(runs),
        "times": _times_table(report, manifest),
        "provenance": _provenance(report, manifest, runs),
        "css": (assets / "report.css").read_text(encoding="utf-8"),
        "js": (assets / "report.js").read_text(encoding="utf-8"),
    }
    return Template((assets / "report.html").read_text(encoding="utf-8")).substitute(parts)


def _row(report: Report, label: str) -> CandidateScores | None:
    return next((c for c in report.evaluation.candidates if report.labels[c.name] == label), None)


def _mean(report: Report, label: str, metric: str) -> float | None:
    row = _row(report, label)
    return row.mean(metric) if row else None


def _headline(report: Report) -> str:
    student, bicubic = _mean(report, DTKD, "psnr_y"), _mean(report, BICUBIC, "psnr_y")
    assert student is not None and bicubic is not None
    gain = f"{abs(student - bicubic):.2f} dB {'above' if student >= bicubic else 'below'} bicubic"
    if report.ratio is None:
        return f"The distilled student: {gain}"
    return f"The distilled student: {_times(report.ratio)} faster than its teacher, {gain}"


def _lead(report: Report, manifest: Manifest, runs: Sequence[ReportRun]) -> str:
    count = len(report.evaluation.candidates[0].images)
    settings = runs[-1].settings
    init = settings.get("train", {}).get("init") or ""
    origin = f"It started from pre-trained weights ({html.escape(str(init))})." if init else "It started from scratch."
    return (
        f"A {html.escape(str(settings['model']['preset']))} transformer was trained for {settings['train']['steps']} "
        f"steps on what the teacher “{html.escape(manifest.teacher)}” made of “{html.escape(manifest.corpus)}”, "
        f"x{manifest.scale}, {html.escape(str(manifest.degradation['kind']))} degradation. {origin} "
        f"Everything below is measured on {count} held-out photo{'s' if count != 1 else ''}."
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


def _figures_table(report: Report) -> str:
    found = report.evaluation
    measured = found.metrics.metrics
    heads = [f"{_metric_label(m)} {'&darr;' if m.lower_is_better else '&uarr;'}" for m in measured]
    best = {m.name: _best(found, m) for m in measured}
    rows = []
    for row in found.candidates:
        cells = [_figure(row.mean(m.name), m.name, row.name in best[m.name]) for m in measured]
        parameters = f"{row.parameters:,}" if row.parameters else "&ndash;"
        cells += [f"<td>{parameters}</td>", f"<td>{_seconds(row.seconds)}</td>"]
        label = report.labels[row.name]
        rows.append(f"<tr{_ours(label)}><th scope=row>{label}</th>{''.join(cells)}</tr>")
    header = "".join(f"<th scope=col>{head}</th>" for head in ["", *heads, "parameters", "seconds a photo"])
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _best(found: Evaluation, metric: Metric) -> set[str]:
    """Names of the networks (not the ground truth) with the best figure, as it is printed."""
    means = {c.name: c.mean(metric.name) for c in found.candidates if c.role != "gt"}
    known = {name: _number(value, metric.name) for name, value in means.items() if value is not None}
    if not known:
        return set()
    best = (min if metric.lower_is_better else max)(known.values(), key=float)
    return {name for name, value in known.items() if value == best}


def _table_note(report: Report) -> str:
    found = report.evaluation
    notes = [
        f"Means over the held-out photos; arrows point to better. psnr_y (dB) and ssim_y on 8-bit BT.601 luma, "
        f"{found.crop_border} border pixels left out. Blue: the best, ground truth aside.",
        *(f"{html.escape(u.name)} is missing: {html.escape(u.reason)}." for u in found.metrics.unavailable),
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


def _photo(report: Report, image_id: str, pictures: dict[str, Image]) -> str:
    truth = pictures["gt"]
    height, width = truth.shape[:2]
    x, y, side = busiest_square(truth)
    places = {"left": x / width, "top": y / height, "width": side / width, "height": side / height}
    box = ";".join(f"{name}:{place:.2%}" for name, place in places.items())
    figures = []
    for row in report.evaluation.candidates:
        label = report.labels[row.name]
        score = next(score for score in row.images if score.id == image_id)
        alt = html.escape(f"{image_id}: {label}", quote=True)
        figures.append(
            f'<figure{_ours(label)}><button class="frame" aria-label="{alt}, at full size">'
            f'<img src="{_data_uri(pictures[row.name])}" width="{width}" height="{height}" alt="{alt}">'
            f'<i style="{box}"></i></button><canvas class="detail" aria-hidden="true"></canvas>'
            f"<figcaption><b>{label}</b> {_caption(report, score)}</figcaption></figure>"
        )
    name = f"<h3>{html.escape(image_id)}<small>{width} x {height}</small></h3>"
    return f'{name}<div class="shots" data-box="{x} {y} {side}">{"".join(figures)}</div>'


def _caption(report: Report, score: Score) -> str:
    shown = [m for m in report.evaluation.metrics.metrics if m.name in score.values and m.reference != "teacher"]
    return " ".join(f"<span>{m.name} {_number(score.values[m.name], m.name)}</span>" for m in shown)


def busiest_square(image: Image) -> tuple[int, int, int]:
    """x, y and side of the square with the most fine detail, away from the borders."""
    luma = fidelity.luma(image)
    side = min(DETAIL, *luma.shape)
    detail = np.abs(luma - uniform_filter(luma, 5))
    mean = uniform_filter(np.minimum(detail, 24), side)  # a few hard edges must not outweigh texture
    half = side // 2
    inner = mean[half : luma.shape[0] - side + half + 1, half : luma.shape[1] - side + half + 1]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(x), int(y), side


def _curves(runs: Sequence[ReportRun]) -> str:
    logs = [run.curves for run in runs]
    captions = [
        (curves.total_loss(logs), "Total loss: L1 to the ground truth plus lambda times the distillation loss."),
        (curves.groups(logs[-1]), "DTKD: distance to the teacher in each frequency group, and the weight lambda."),
        (curves.validation(logs), "Fidelity on held-out samples while training."),
    ]
    return "\n".join(f"<figure>{svg}<figcaption>{text}</figcaption></figure>" for svg, text in captions if svg)


def _times_table(report: Report, manifest: Manifest) -> str:
    rows = [
        ("teacher, a held-out photo", _seconds(report.teacher_seconds)),
        ("DTKD student, a held-out photo", _seconds(report.student_seconds)),
        ("ratio", _times(report.ratio) if report.ratio else "&ndash;"),
    ]
    if manifest.teacher_images:
        rows.append(
            (
                f"teacher over the whole corpus, once ({manifest.teacher_images} images)",
                clock_text(manifest.teacher_seconds),
            )
        )
    body = "".join(f"<tr><th scope=row>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<table class=compact><tbody>{body}</tbody></table>"


def _provenance(report: Report, manifest: Manifest, runs: Sequence[ReportRun]) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("dtkd", "torch", "diffusers"))
    facts = {
        "corpus": manifest.corpus,
        "samples": f"{manifest.ok}, {manifest.errors} failed, tiles of {manifest.tile} pixels",
        "degradation": f"{manifest.degradation['kind']}, x{manifest.scale}",
        "teacher": manifest.teacher,
        "device": report.evaluation.device,
        "versions": versions,
    }
    tables = [
        ("Cache", _key_table(("", "value"), [(k, [v]) for k, v in facts.items()])),
        ("Training settings", _settings_table(runs)),
        ("Teacher fingerprint", _key_table(("", "value"), [(k, [v]) for k, v in _flatten(dict(manifest.fingerprint))])),
        (
            "Metric settings",
            _key_table(("", "value"), [(m.name, [json.dumps(m.settings)]) for m in report.evaluation.metrics.metrics]),
        ),
    ]
    first, *rest = (f"<summary>{name}</summary><div class=scroll>{table}</div>" for name, table in tables)
    return f"<details open>{first}</details>" + "".join(f"<details>{text}</details>" for text in rest)


def _settings_table(runs: Sequence[ReportRun]) -> str:
    flat = [dict(_flatten(run.settings)) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    return _key_table(("", *(run.label for run in runs)), [(key, [s.get(key, "") for s in flat]) for key in keys])


def _key_table(heads: Sequence[str], rows: Sequence[tuple[str, list[Any]]]) -> str:
    head = "".join(f"<th scope=col class=wrap>{html.escape(h)}</th>" for h in heads)
    body = "".join(
        f"<tr><th scope=row><code>{html.escape(key)}</code></th>"
        + "".join(f"<td class=wrap>{html.escape(str(v))}</td>" for v in values)
        + "</tr>"
        for key, values in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in tree.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def _figure(value: float | None, metric: str, best: bool) -> str:
    text = "&ndash;" if value is None else _number(value, metric)
    return f"<td{' class=best' if best else ''}>{text}</td>"


def _number(value: float, metric: str) -> str:
    return f"{value:.4f}" if "ssim" in metric or "lpips" in metric or "dists" in metric else f"{value:.2f}"


def _metric_label(metric: Metric) -> str:
    return html.escape(_METRIC_LABELS.get(metric.name, metric.name))


def _seconds(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:.3f} s" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _ours(label: str) -> str:
    return " class=ours" if label == DTKD else ""


def _data_uri(image: Image) -> str:
    return f"data:image/webp;base64,{b64encode(images.encode_webp(image)).decode()}"
