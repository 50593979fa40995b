"""Checkpoints of training runs: strict tensors (safetensors) and the JSON that continues the run, always whole.

    RUN/checkpoints/step-00001000/    model.safetensors ema.safetensors optimizer.safetensors state.json

A folder is made under another name and renamed; older ones are deleted after that. Whatever kills the process, the
newest checkpoint is complete. Tensors of the optimiser are called `parameter/quantity`, for example
`conv_first.weight/exp_avg`.
"""

import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir, fsync_dir, read_json
from pipeline.training.state import RunState

FORMAT = 2
S = TypeVar("S", bound=RunState)
Parameters = Iterable[tuple[str, torch.nn.Parameter]]
"""Names and parameters in the order in which the optimiser was given them."""


def write_checkpoint(run: Path, step: int, fill: Callable[[Path], None], keep: int) -> Path:
    """Make the checkpoint of `step` by `fill(folder)`, then delete all but the `keep` newest ones.

    A step that has one already keeps it: a run comes to the same state by whatever way.
    """
    folder = ensure_dir(run / "checkpoints")
    final = folder / f"step-{step:08d}"
    for left in folder.glob(".step-*.part"):  # of a killed process: one is enough to fill a disk
        shutil.rmtree(left, ignore_errors=True)
    if not final.exists():
        part = folder / f".{final.name}.{secrets.token_hex(4)}.part"
        part.mkdir()
        fill(part)
        os.replace(part, final)
        fsync_dir(folder)
    for old in _all(run)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(run: Path) -> Path | None:
    """Folder of a run's newest checkpoint, None when there is none."""
    return _all(run)[-1] if _all(run) else None


@contextmanager
def saving(run: Path, step: int) -> Iterator[None]:
    """Tell in one line that a disk is full or fails; the checkpoint before is whole."""
    try:
        yield
    except OSError as error:
        raise DtkdError(
            f"cannot save step {step} in {run} ({error.strerror}): make room, then the same command goes on from "
            "the checkpoint before"
        ) from error


def write_state(checkpoint: Path, kind: str, state: RunState) -> None:
    """Write state.json; `kind` is the command that made the run."""
    atomic_write_json(checkpoint / "state.json", {"format": FORMAT, "run": kind, **dataclasses.asdict(state)})


def read_state(checkpoint: Path, build: Callable[[dict[str, Any]], S]) -> S:
    """State of a checkpoint folder, made by `build` from the values in state.json.

    Raises:
        DtkdError: it is missing, damaged, or of another format.
    """
    path = checkpoint / "state.json"
    try:
        data: dict[str, Any] = read_json(path)
        if data.get("format") != FORMAT:
            raise DtkdError(
                f"{path} is of another format than {FORMAT}: continue with the version that wrote it, or choose "
                "another folder"
            )
        return build({name: value for name, value in data.items() if name not in ("format", "run")})
    except (OSError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors of any device."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write_bytes(path, safetensors.torch.save(on_cpu))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors of a checkpoint.

    Raises:
        DtkdError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(path.parent, error) from error


def read_weights(path: Path, network: torch.nn.Module) -> None:
    """Load the tensors of a checkpoint into a network.

    Raises:
        DtkdError: the file is missing or damaged, or does not fit the network.
    """
    tensors = read_tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise _damaged(path.parent, error) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """`parameter/quantity` -> tensor, for the parameters that have been stepped."""
    return {
        f"{name}/{quantity}": tensor
        for name, parameter in parameters
        for quantity, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser of one parameter group the state that `optimizer_tensors` took."""
    per_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition("/")
        per_name.setdefault(name, {})[quantity] = tensor
    filled = {index: per_name[name] for index, (name, _) in enumerate(parameters) if name in per_name}
    optimizer.load_state_dict({"state": filled, "param_groups": optimizer.state_dict()["param_groups"]})


def _all(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _damaged(checkpoint: Path, error: Exception) -> DtkdError:
    reason = " ".join(repr(error).split())[:100]
    return DtkdError(f"{checkpoint} is damaged ({reason}): delete this folder to go on from the one before")
