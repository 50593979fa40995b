"""An evaluation and its page: measured once, pictures kept as they are made, the page written when all is known."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.system.files import atomic_write_bytes, ensure_dir
from pipeline.system.outputs import check_file, check_suffix
from pipeline.system.progress import OnProgress
from pipeline.system.words import listed, plural
from pipeline.teacher import Teacher
from student.evaluation.evaluate import EvaluationSettings, evaluate_sets
from student.evaluation.scores import Evaluation, Evaluations
from student.report.figures import across
from student.report.page import SetView, is_page, render, set_view
from student.report.pictures.gallery import PAGE_BYTES, galleries
from student.report.pictures.spool import Spool
from student.report.provenance import tables


@dataclass(frozen=True)
class EvaluationPage:
    """An evaluation whose page was written."""

    path: Path
    found: Evaluation | Evaluations

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return self.found.failure

    def lines(self) -> list[str]:
        """For people: the figures, the file."""
        return [*self.found.lines(), f"report: {self.path}"]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: those of the evaluation, and the file."""
        return {"report": str(self.path), **self.found.to_json()}


def evaluate_to_page(
    candidates: Sequence[str | Path],
    data: Sequence[Path],
    page: Path | None,
    settings: EvaluationSettings | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> EvaluationPage | Evaluation | Evaluations:
    """As `student.evaluation.evaluate.evaluate_sets`, and where a page is wanted write it of what was found.

    Until then the pictures lie in a folder beside the page, about .8 bytes a pixel and up to 1024 x 1024 of each:
    the usual folder of temporary files may be in memory.

    Args:
        candidates: as `evaluate_sets` takes them.
        data: the sets.
        page: the HTML file to write; None for none.
        settings: how.
        teachers: by name.
        out: write figures and pictures there, too.
        overwrite: replace an earlier page, and an earlier evaluation in `out`.
        on_progress: called after every image.

    Raises:
        DtkdError: as `evaluate_sets`, or `page` cannot be written, or is there already.
        UsageError: as `evaluate_sets`, or `page` is no name for an HTML file.
    """
    measure = partial(
        evaluate_sets, candidates, data, settings, teachers, out=out, overwrite=overwrite, on_progress=on_progress
    )
    if page is None:
        return measure()
    check_suffix(page, (".html", ".htm"), "a page")
    check_file(page, "a page of an evaluation", overwrite, lambda path: is_page(path, "evaluation"))
    ensure_dir(page.parent)
    with tempfile.TemporaryDirectory(prefix=f".{page.name}.", dir=page.parent) as folder:
        spool = Spool(Path(folder))
        found = measure(on_picture=spool.add)
        spool.finish()
        sets = found.sets if isinstance(found, Evaluations) else {data[0].resolve().name: found}
        atomic_write_bytes(page, render_evaluation(sets, spool))
    return EvaluationPage(page, found)


def render_evaluation(sets: Mapping[str, Evaluation], spool: Spool, budget: int = PAGE_BYTES) -> bytes:
    """The page of the sets, by their names, with the pictures that were kept."""
    pictures = galleries(sets, spool, budget)
    views: list[SetView] = []
    provenance = []
    for index, (name, found) in enumerate(sets.items(), start=1):
        labels = {row.name: row.name for row in found.candidates}
        views.append(set_view(name, index, _lead(found), found, labels, pictures[name]))
        provenance.append((name, tables(found, labels)))
    first = next(iter(sets.values()))
    return render(
        "evaluation.html",
        title=", ".join(sets),
        headline=_headline(first, list(sets)),
        overview=across([view.figures for view in views]) if len(views) > 1 else [],
        sets=views,
        provenance=provenance,
    )


def _headline(found: Evaluation, sets: Sequence[str]) -> str:
    who = [row.name for row in found.candidates if row.name not in (found.baseline, "gt")]
    against = f"{listed(who)} against {found.baseline}" if who else found.baseline
    return f"{against} on {listed(sets)}"


def _lead(found: Evaluation) -> str:
    count = plural(len(found.candidates[0].images), "image")
    kinds = {
        "HR and LR": "real pairs of LR and ground truth",
        "HR": "LR images made from the ground truth by bicubic reduction",
        "LR": "LR images without ground truth, so only no-reference metrics",
        "cache": "held-out samples of a teacher cache",
    }
    left_out = f"; {plural(len(found.skipped), 'image')} could not be measured" if found.skipped else ""
    return f"{count}, x{found.scale}: {kinds.get(found.kind, found.kind)}{left_out}."
