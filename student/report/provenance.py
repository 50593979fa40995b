"""How figures came about, as tables of keys and text: protocol, candidates, metrics, environment."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from student.evaluation.protocols import find_protocol
from student.evaluation.scores import CandidateScores, Evaluation


class Table(NamedTuple):
    """A table of keys and their values."""

    title: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Any]]]


def tables(found: Evaluation, labels: Mapping[str, str]) -> list[Table]:
    """All there is to know of one evaluation."""
    candidates = [(labels[row.name], [text]) for row in found.candidates if (text := _candidate(row))]
    skipped = [(item.id, [item.reason]) for item in found.skipped]
    made = [
        Table("Protocol", ("", "value"), _listed(_protocol(found))),
        Table("Candidates", ("", "what it is"), candidates),
        Table("Metrics", ("", "settings"), [(m.name, [json.dumps(m.settings)]) for m in found.metrics.metrics]),
        Table("Left out", ("", "reason"), skipped),
        Table("Environment", ("", "value"), _listed({"device": found.device, **found.environment})),
    ]
    return [table for table in made if table.rows]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested settings, by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _protocol(found: Evaluation) -> dict[str, str]:
    return {
        "protocol": f"{found.protocol}: {find_protocol(found.protocol).source}",
        "data": f"{found.data} ({found.kind})",
        "images": str(len(found.candidates[0].images)),
        "scale": f"x{found.scale}",
        "border left out by psnr_y and ssim_y": f"{found.crop_border} pixels",
        "compared with": found.baseline,
        "intervals": "95 %, bootstrap over images; differences are paired",
        **({"written to": str(found.out)} if found.out else {}),
    }


def _candidate(row: CandidateScores) -> str:
    parts = [row.role, row.path or "", f"computed in {row.precision}" if row.precision else ""]
    return ", ".join(filter(None, parts))


def _listed(facts: Mapping[str, str]) -> list[tuple[str, Sequence[Any]]]:
    return [(key, [text]) for key, text in facts.items()]
