"""`dtkd plot`: training runs over their steps, as one page or picture; students' runs and teachers' alike."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, ensure_dir
from pipeline.system.outputs import check_file, check_suffix
from pipeline.system.progress import clock_text
from pipeline.system.results import plain
from pipeline.system.words import decibels, listed, plural
from student.report import curves
from student.report.curves import RunCurves, read_curves
from student.report.page import is_page, render
from student.report.provenance import flatten

PAGES = (".html", ".htm")
NONE = "-"  # what a run does not have
_NAMED = 6  # runs in a headline


@dataclass(frozen=True)
class ComparedRun:
    """A run as it is compared."""

    folder: Path
    name: str
    """The end of its path that no other run has."""
    step: int
    """The last one that it has logged."""
    steps: int | None
    """Planned ones."""
    seconds: float | None
    """Of training."""
    figures: Mapping[str, float]
    """The last of what it has logged, by its name in the log."""
    settings: Mapping[str, Any]
    """All of them, by dotted names."""
    curves: RunCurves = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """What was compared, and where it stands."""

    path: Path
    runs: tuple[ComparedRun, ...]

    @property
    def differing(self) -> dict[str, list[Any]]:
        """Settings in which the runs are not alike, each with the value of every run, None where it has none."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        values = {key: [run.settings.get(key) for run in self.runs] for key in keys}
        return {key: found for key, found in values.items() if any(value != found[0] for value in found)}

    @property
    def failure(self) -> None:
        """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """For people: how far the runs are and how good, in what they differ, the file."""
        lines = []
        for run in self.runs:
            progress = f"{run.step} of {plural(run.steps, 'step')}" if run.steps else plural(run.step, "step")
            parts = [f"{run.name}: {progress}", *(f"{name} {text}" for name, text in _figures(run).items())]
            lines.append(", ".join(parts))
        return [*lines, *self.differences(), f"plot: {self.path}"]

    def differences(self) -> list[str]:
        """For people: the settings that differ, with their values in the runs' order."""
        return [f"{key}: {', '.join(map(_text, values))}" for key, values in self.differing.items()]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the curves themselves stand in the runs' logs."""
        rows = [{**vars(run), "curves": None, "settings": None} for run in self.runs]
        runs = [{key: plain(value) for key, value in row.items() if value is not None} for row in rows]
        return {"plot": str(self.path), "runs": runs, "differing": self.differing}


class _Row(NamedTuple):
    name: str
    colour: str
    cells: list[str]


def compare(runs: Sequence[Path], out: Path, overwrite: bool = False) -> Comparison:
    """Draw the curves of training runs side by side.

    Args:
        runs: their folders.
        out: the HTML, PNG or SVG file to write.
        overwrite: replace an earlier one.

    Raises:
        DtkdError: a folder holds no run, or `out` cannot be written, or is there already.
        UsageError: `out` is no name for a page or a picture.
    """
    check_suffix(out, (*PAGES, ".png", ".svg"), "a plot")
    suffix = out.suffix.lower()
    page = suffix in PAGES
    check_file(out, "a plot", overwrite, (lambda path: is_page(path, "comparison")) if page else None)
    folders = list(dict.fromkeys(Path(run).resolve() for run in runs))
    names = _names(folders)
    found = Comparison(out, tuple(_read(folder, name) for folder, name in zip(folders, names, strict=True)))
    if page:
        data = _page(found)
    else:
        kind = "png" if suffix == ".png" else "svg"
        data = curves.sheet([run.curves for run in found.runs], found.differences(), kind)
    ensure_dir(out.parent)
    atomic_write_bytes(out, data)
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as short as leaves all different."""
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def _read(folder: Path, name: str) -> ComparedRun:
    if not folder.is_dir():
        raise DtkdError(f"{folder} is no run folder: name the folder of a training run")
    try:
        settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DtkdError(f"{folder}/config.toml cannot be read ({error}): name the folder of a training run") from error
    logged = read_curves(folder, name)
    figures = {key: logged.series[key].values[-1] for key in curves.panels([logged])}
    seconds = logged.series.get("seconds")
    step = max((series.steps[-1] for series in logged.series.values()), default=0)
    flat = dict(flatten(settings))
    return ComparedRun(
        folder, name, step, flat.get("train.steps"), seconds.values[-1] if seconds else None, figures, flat, logged
    )


def _figures(run: ComparedRun) -> dict[str, str]:
    """What is told of a run in figures: loss, validations, pace and time."""
    told = {"loss": f"{run.figures['total']:.4f}"} if "total" in run.figures else {}
    for key, value in run.figures.items():
        if key.startswith("val_"):
            told[key.removeprefix("val_")] = decibels(value) if "psnr" in key else f"{value:.4f}"
    pace = run.curves.series.get("images_per_s")
    told |= {"images/s": f"{sum(pace.values) / len(pace.values):.1f}"} if pace else {}
    return told | ({"time": clock_text(run.seconds)} if run.seconds else {})


def _text(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) and value else json.dumps(value)


def _table(found: Comparison) -> list[list[str]]:
    """Lines of cells, the first one its head: a run, its figures, and the settings that differ."""
    figures = [_figures(run) for run in found.runs]
    heads, differing = dict.fromkeys(name for row in figures for name in row), found.differing
    rows = [
        [run.name, str(run.step), *(row.get(head, NONE) for head in heads), *(_text(v[i]) for v in differing.values())]
        for i, (run, row) in enumerate(zip(found.runs, figures, strict=True))
    ]
    return [["run", "steps", *heads, *differing], *rows]


def _page(found: Comparison) -> bytes:
    heads, *rows = _table(found)
    differing, logs = found.differing, [run.curves for run in found.runs]
    colours = curves.colours(len(logs))
    names = [run.name for run in found.runs]
    headline = listed(names) if len(names) <= _NAMED else f"{plural(len(names), 'run')}, {names[0]} to {names[-1]}"
    return render(
        "comparison.html",
        title=", ".join(names),
        headline=headline,
        lead="Bold lines are moving means, the pale ones behind them what was logged. Figures are the last ones.",
        heads=heads[1 : len(heads) - len(differing)],
        settings=list(differing),
        runs=[_Row(cells[0], colour, cells[1:]) for cells, colour in zip(rows, colours, strict=True)],
        note="The runs have the same settings." if not differing else "Settings in which all are alike are left out.",
        curves=[curves.panel(logs, key, title) for key, title in curves.panels(logs).items()],
    )
