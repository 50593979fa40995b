"""Arms of an ablation: which settings differ, by name of the grid or from a TOML file of one's own.

baseline = "gt-only"              # optional; the first arm otherwise

[arms.gt-only]
"loss.lambda_max" = 0

[arms.mine]
"loss.energy" = 4
cache = "runs/cache-one-step"     # optional; the command's cache otherwise
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.system.errors import DtkdError
from student.loss import MODES
from student.training.settings import RunSettings


@dataclass(frozen=True)
class Arm:
    """One variant of the training."""

    name: str
    changes: tuple[str, ...] = ()
    """Settings as `section.key=value`, on top of what all arms share."""
    cache: Path | None = None
    """Another cache of the same pairs, for example of a teacher with fewer steps."""


@dataclass(frozen=True)
class Grid:
    """Arms that are compared with the first one, the baseline."""

    name: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        """Check that there is something to compare."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or len(names) < 2:
            raise DtkdError(f"a grid needs two arms or more, each with a name of its own, got {', '.join(names)}")


GT_ONLY = Arm("gt-only", ("loss.lambda_max=0",))
DEFAULT = Arm("default")


def _each(prefix: str, key: str, values: Iterable[Any]) -> tuple[Arm, ...]:
    return tuple(Arm(f"{prefix}-{value}", (f"{key}={value}",)) for value in values)


GRIDS: Mapping[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("levels", (GT_ONLY, *_each("levels", "loss.levels", range(4)))),
        Grid("weights", (GT_ONLY, *_each("weights", "loss.weights", MODES))),
        Grid(
            "schedule",
            (
                GT_ONLY,
                *_each("schedule", "loss.schedule", ("constant", "linear", "cosine", "reversed")),
                *_each("lambda", "loss.lambda_max", (0.25, 1, 4)),
            ),
        ),
        Grid("energy", (GT_ONLY, *_each("energy", "loss.energy", (0, 1, 4, 16)))),
        Grid(
            "gt",
            (
                GT_ONLY,
                *_each("gt", "loss.gt", ("all", "low")),
                Arm("gt-all-energy-4", ("loss.energy=4",)),
                Arm("gt-low-energy-4", ("loss.gt=low", "loss.energy=4")),
            ),
        ),
        Grid("samples", _each("samples", "data.samples", (1, 4))),
    )
}
"""Grids by name."""


def _calibrated(path: Path) -> Grid:
    weights = config.load(RunSettings, [path]).loss.weights
    return Grid("calibrated", (GT_ONLY, DEFAULT, Arm("weights-calibrated", (f"loss.weights={_text(weights)}",))))


def _teacher_steps(path: Path) -> Grid:
    return Grid("teacher_steps", (GT_ONLY, DEFAULT, Arm("other-steps", cache=path)))


GRIDS_OF: Mapping[str, Callable[[Path], Grid]] = {"calibrated": _calibrated, "teacher_steps": _teacher_steps}
"""Grids that need a file: `calibrated:AUDIT/weights.toml` from `dtkd audit`, and `teacher_steps:CACHE`, a cache of the
same pairs whose teacher took another number of steps."""


def find_grid(name: str) -> Grid:
    """A grid by name, several joined by commas (arms that they share once), or a TOML file.

    Raises:
        DtkdError: no such grid, or a file that is none.
    """
    if name.endswith(".toml") and ":" not in name:
        return read_grid(Path(name))
    grids = [_part(part.strip()) for part in name.split(",")]
    arms = {arm.name: arm for grid in grids for arm in grid.arms}
    return Grid(",".join(grid.name for grid in grids), tuple(arms.values()))


def _part(part: str) -> Grid:
    name, colon, file = part.partition(":")
    if name in GRIDS and not colon:
        return GRIDS[name]
    if name in GRIDS_OF and file:
        return GRIDS_OF[name](Path(file).expanduser())
    known = ", ".join([*GRIDS, "calibrated:WEIGHTS.toml", "teacher_steps:CACHE"])
    raise DtkdError(f"no grid {part!r}: expected {known}, several with commas, or a FILE.toml")


def read_grid(path: Path) -> Grid:
    """Read a TOML file, see the module.

    Raises:
        DtkdError: it cannot be read, or is none.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DtkdError(f"cannot read the grid {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DtkdError(f"{path} is not valid TOML: {error}") from error
    tables = tree.get("arms")
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise DtkdError(f'{path} must hold a table for each arm, such as [arms.mine] with "loss.energy" = 4')
    arms = [_arm(name, table) for name, table in tables.items()]
    first = tree.get("baseline", arms[0].name if arms else None)
    if first not in tables:
        raise DtkdError(f"{path}: baseline = {first!r} is none of the arms {', '.join(tables)}")
    arms.sort(key=lambda arm: arm.name != first)
    return Grid(path.stem, tuple(arms))


def _arm(name: str, table: Mapping[str, Any]) -> Arm:
    cache = table.get("cache")
    changes = [f"{key}={_text(value)}" for key, value in table.items() if key != "cache"]
    return Arm(name, tuple(changes), Path(str(cache)).expanduser() if cache is not None else None)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
