"""Evaluation: restore images with every candidate, measure them by a protocol, and write what came out.

Beside the candidates stand always `bicubic`, where there are references `gt`, and on a cache's held-out samples the
`teacher`. How the work is done stands in `measuring`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.images import Rgb
from pipeline.schema import Json
from pipeline.system.device import Precision, choose, environment
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir, read_json
from pipeline.system.outputs import check_folder
from pipeline.system.progress import OnProgress, part_of
from pipeline.teacher import Teacher
from student.evaluation import metrics, tables
from student.evaluation.candidates import Candidate, candidates_for, common_scale, load_candidates
from student.evaluation.examples import ExampleSet, open_examples
from student.evaluation.measuring import Work, score_all
from student.evaluation.metrics import Loaded, Unavailable
from student.evaluation.protocols import find_protocol
from student.evaluation.scores import CandidateScores, Evaluation, Evaluations, exact_images

__all__ = ["Evaluation", "EvaluationSettings", "Evaluations", "evaluate", "evaluate_sets"]

OnPicture = Callable[[str, str, str, Rgb], None]
"""(set's name, candidate's name, image's id, the restored image), all candidates of an image one after the other."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Attributes:
        protocol: name, see `student.evaluation.protocols`.
        metrics: names, see `student.evaluation.metrics.load`; None takes the protocol's.
        crop_border: pixels left out on each side by psnr_y and ssim_y; None takes the protocol's.
        scale: None takes the checkpoints' own (or a cache's, or 4).
        limit: take the first `limit` images only.
        device: torch device, or `auto`: a GPU where there is one.
        precision: of the students, see `student.networks.load_network`; metrics are fp32.
        baseline: name of the candidate that the others are compared with, as it stands in the table.
    """

    protocol: str = "classical"
    metrics: tuple[str, ...] | None = None
    crop_border: int | None = None
    scale: int | None = None
    limit: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    baseline: str = "bicubic"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        find_protocol(self.protocol)
        for name, least in (("crop_border", 0), ("limit", 1), ("scale", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        if self.metrics is not None and not self.metrics:
            raise UsageError("metrics must name at least one metric, for example psnr_y,ssim_y,piqe")


def evaluate(
    candidates: Sequence[str | Path],
    data: Path,
    settings: EvaluationSettings | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    on_picture: OnPicture | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measure candidates, and the baselines beside them, on a data folder or a cache's held-out samples.

    Args:
        candidates: what `student.networks.load_network` takes (weight files, run folders, names of shipped students),
            `images:FOLDER`, a folder of finished pictures, or `teacher:NAME`; `bicubic`, always there, is understood.
        data: see `student.evaluation.examples`.
        settings: how.
        teachers: the teachers of `teacher:NAME`, by NAME.
        out: write metrics.json, metrics.csv, metrics.md and NAME/ID.png there.
        overwrite: replace an earlier evaluation in `out`.
        on_picture: called with every restored image.
        on_progress: called after every image.

    Raises:
        DtkdError: nothing usable in `data`, nothing that can be measured, a candidate that is none or broken or has no
            picture of an image, candidates of several scales, or `out` holds something already.
        UsageError: an unknown protocol or metric, or a baseline that is no candidate.
    """
    works = _look(candidates, [data], settings or EvaluationSettings(), teachers or {}, [out], overwrite)
    return _run_all(works, on_picture, on_progress)[0]


def evaluate_sets(
    candidates: Sequence[str | Path],
    data: Sequence[Path],
    settings: EvaluationSettings | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    on_picture: OnPicture | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation | Evaluations:
    """As `evaluate`, on one set or several, all of which are looked at before the first image is measured.

    Args:
        candidates: as `evaluate` takes them.
        data: the sets.
        settings: how.
        teachers: by name.
        out: where to write; of several sets, each into a folder of its name there.
        overwrite: replace earlier evaluations.
        on_picture: called with every restored image.
        on_progress: called after every image.

    Raises:
        DtkdError: as `evaluate`.
        UsageError: as `evaluate`, or two sets have one name.
    """
    names = [path.resolve().name for path in data]
    if len(set(names)) < len(names):
        raise UsageError(f"sets must have different names, got {', '.join(names)}: evaluate them one by one")
    outs = [out / name if out and len(data) > 1 else out for name in names]
    works = _look(candidates, data, settings or EvaluationSettings(), teachers or {}, outs, overwrite)
    found = _run_all(works, on_picture, on_progress)
    return found[0] if len(found) == 1 else Evaluations(dict(zip(names, found, strict=True)))


@dataclass(frozen=True)
class _Set:
    """An evaluation that is about to begin."""

    work: Work
    settings: EvaluationSettings
    device: str


def _look(
    candidates: Sequence[str | Path],
    data: Sequence[Path],
    settings: EvaluationSettings,
    teachers: Mapping[str, Teacher],
    outs: Sequence[Path | None],
    overwrite: bool,
) -> list[_Set]:
    """Load everything and look at all sets, before the first image is measured."""
    device, protocol = choose(settings.device), find_protocol(settings.protocol)
    given = load_candidates(candidates, device, settings.precision, teachers)
    loaded = metrics.load(protocol.metrics if settings.metrics is None else settings.metrics, device, protocol.pins)
    sets = []
    for path, out in zip(data, outs, strict=True):
        if out:
            check_folder(out, "an evaluation", overwrite, _is_evaluation)
        examples = open_examples(path, common_scale(given, settings.scale), settings.limit)
        usable = _usable(_drop_without_reference(loaded, examples))
        borders = (settings.crop_border, protocol.crop_border, examples.scale)
        border = next(border for border in borders if border is not None)
        everyone = candidates_for(examples, given)
        _check_baseline(settings.baseline, everyone)
        work = Work(path, examples, everyone, usable, border, out=out, skipped=list(examples.skipped))
        sets.append(_Set(work, settings, device))
    return sets


def _check_baseline(baseline: str, everyone: Sequence[Candidate]) -> None:
    names = [candidate.name for candidate in everyone]
    if baseline not in names or baseline == "gt":
        raise UsageError(f"baseline must be one of the candidates, {', '.join(names)}, and not gt, got {baseline}")


def _run_all(sets: Sequence[_Set], on_picture: OnPicture | None, on_progress: OnProgress | None) -> list[Evaluation]:
    total, found = sum(len(one.work.examples) for one in sets), []
    for one in sets:
        before = sum(len(earlier.work.examples) for earlier in sets[: len(found)])
        found.append(_run(one, on_picture, on_progress and part_of(on_progress, before, total)))
    return found


def _run(one: _Set, on_picture: OnPicture | None, on_progress: OnProgress | None) -> Evaluation:
    work, out, name = one.work, one.work.out, one.work.data.resolve().name
    if out:
        ensure_dir(out)
        _remove_earlier(out)
        atomic_write_json(out / "metrics.json", _result(one).to_json())  # so that after a stop the folder is ours

    def on_image(candidate: str, image_id: str, image: Rgb) -> None:
        if on_picture:
            on_picture(name, candidate, image_id, image)

    score_all(work, on_image, on_progress)
    result = _result(one)
    if out:
        atomic_write_json(out / "metrics.json", result.to_json())
        atomic_write_bytes(out / "metrics.csv", tables.to_csv(result).encode())
        atomic_write_bytes(out / "metrics.md", tables.to_markdown(result).encode())
    return result


def _result(one: _Set) -> Evaluation:
    work, settings = one.work, one.settings
    exact = exact_images([score for scores in work.scores.values() for score in scores])
    rows = [
        CandidateScores(
            c.name, c.role, c.path, c.parameters, c.precision, tuple(work.scores[c.name]), exact,
            dict(work.over_set[c.name]), work.costs.get(c.name),
        )
        for c in work.candidates
    ]  # fmt: skip
    return Evaluation(
        str(work.data),
        work.examples.kind,
        work.examples.scale,
        work.crop_border,
        one.device,
        _usable(work.usable_metrics),
        tuple(rows),
        tuple(work.skipped),
        work.out,
        settings.baseline,
        settings.protocol,
        environment(),
    )


def _is_evaluation(folder: Path) -> bool:
    """Whether `evaluate` has written into a folder."""
    return _earlier(folder) is not None


def _earlier(folder: Path) -> Json | None:
    """What an earlier evaluation wrote of itself into a folder; None without one."""
    try:
        record = read_json(folder / "metrics.json")
    except (OSError, DtkdError):
        return None
    ours = isinstance(record, dict) and {"data", "kind", "crop_border", "candidates"} <= record.keys()
    rows = record["candidates"] if ours else None
    return record if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _remove_earlier(out: Path) -> None:
    """Remove the pictures of an earlier evaluation, whose candidates may have been others."""
    record = _earlier(out)
    names = [candidate.get("name") for candidate in record["candidates"]] if record else []
    for folder in out.iterdir():  # not by the names themselves: a file of anybody's making may say `..`
        if folder.name in names and folder.is_dir() and not folder.is_symlink():
            for picture in folder.glob("*.png"):
                picture.unlink()
            with suppress(OSError):  # somebody else's files stay, and the folder with them
                folder.rmdir()


def _usable(loaded: Loaded) -> Loaded:
    """The metrics, if there are any.

    Raises:
        DtkdError: none of those that were asked for can be measured.
    """
    if not loaded.metrics:
        reasons = "; ".join(f"{u.name}: {u.reason}: {u.remedy}" for u in loaded.unavailable)
        raise DtkdError(f"nothing that was asked for can be measured: {reasons}")
    return loaded


def _drop_without_reference(loaded: Loaded, examples: ExampleSet) -> Loaded:
    """Tell apart the metrics that compare with something that the data does not have."""
    missing: dict[metrics.Reference | None, tuple[str, str]] = {}
    if examples.kind == "LR":
        missing["gt"] = "it compares with the ground truth, which the data does not have", "add a folder HR/ beside LR/"
    if examples.kind != "cache":
        missing["teacher"] = "it compares with the teacher's outputs, which only a cache has", "give a cache as data"
    usable = tuple(m for m in loaded.metrics if m.reference not in missing)
    gone = tuple(Unavailable(m.name, *missing[m.reference]) for m in loaded.metrics if m.reference in missing)
    return replace(loaded, metrics=usable, unavailable=loaded.unavailable + gone)
