"""Weight files of students: read ours and official SwinIR ones, write files that every SwinIR loader recognises.

The key layout is that of the official SwinIR release, buffers included: spandrel (chaiNNer, ComfyUI) tells the
architecture from `relative_position_index` and insists on `attn_mask` in odd blocks.
"""

import json
import math
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, ensure_dir
from student.model import preset_of
from student.model.swinir import SwinIR, SwinIRConfig

METADATA_KEY = "dtkd"
"""Entry of the safetensors header that holds our metadata as JSON."""
_WRAPPERS = ("params_ema", "params", "state_dict")
_BUFFERS = ("attn_mask", "relative_position_index")
_FIRST_BLOCK = "layers.0.residual_group.blocks.0."


def load_student(path: str | Path) -> SwinIR:
    """A ready network, in eval mode on the CPU in float32, from any file that we or official SwinIR wrote.

    The architecture comes from the names and shapes of the tensors. Every parameter must be there, none may be left
    over; buffers, which parameters determine, may be missing. Wrappers are taken off (`params_ema` before `params`).

    Raises:
        DtkdError: the file is missing, is no checkpoint, or holds another architecture.
    """
    path = Path(path)
    state = _read(path)
    config = _detect(state, path)
    model = SwinIR(config, preset=preset_of(config))
    _load_strictly(model, state, path)
    return model.eval()


def save_student(model: SwinIR, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write `model` as a safetensors file, at once or not at all.

    `metadata` is anything that JSON holds; `preset` and `scale` are added. `read_metadata` gives it back.

    Raises:
        DtkdError: the folder cannot be written to.
    """
    path = Path(path)
    described = {"preset": model.preset, "scale": model.scale, **metadata}
    header = {"format": "pt", METADATA_KEY: json.dumps(described, sort_keys=True, allow_nan=False)}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    ensure_dir(path.parent)
    atomic_write_bytes(path, _in_order(safetensors.torch.save(tensors, header)))


def _in_order(data: bytes) -> bytes:
    """The safetensors file `data` with its metadata sorted: the library leaves their order to chance.

    Layout: length of the header (uint64, little-endian), header as JSON padded with spaces to 8 bytes, tensors.
    """
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save_student` was given; empty for a file that is not ours.

    Raises:
        DtkdError: the file is missing or is no safetensors file.
    """
    path = Path(path)
    if _kind(path) != "safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise _no_checkpoint(path, str(error)) from error


def is_student(path: Path) -> bool:
    """Whether `save_student` wrote a file."""
    try:
        return bool(read_metadata(path))
    except DtkdError:
        return False


def _read(path: Path) -> dict[str, Tensor]:
    """The bare state dict in a file."""
    kind = _kind(path)
    try:
        if kind == "safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:  # torch would advise weights_only=False, which runs code from the file
        raise _no_checkpoint(path, "it is cut, or holds Python objects beside tensors, which are not loaded") from error
    except Exception as error:  # cut or foreign files make torch raise nearly anything: IndexError, an empty EOFError
        raise _no_checkpoint(path, next(iter(str(error).splitlines()), type(error).__name__)) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise _no_checkpoint(path, "it holds no named tensors")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _kind(path: Path) -> str:
    """Tell the format from the first bytes, because suffixes lie.

    Raises:
        DtkdError: neither a safetensors nor a torch file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DtkdError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
        return "safetensors"  # first, because one in 32 begins with a pickle's byte: the length of its header
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return "torch"
    raise _no_checkpoint(path, "it is neither a safetensors nor a torch file")


def _no_checkpoint(path: Path, reason: str) -> DtkdError:
    return DtkdError(f"{path} is no SwinIR checkpoint ({reason}): give a .safetensors or .pth file of one")


def _detect(state: Mapping[str, Tensor], path: Path) -> SwinIRConfig:
    """Architecture from names and shapes.

    Raises:
        DtkdError: the tensors are not those of an SR SwinIR.
    """
    needed = ("conv_first.weight", "norm.weight", _FIRST_BLOCK + "attn.relative_position_bias_table")
    if missing := [key for key in needed if key not in state]:
        raise _no_checkpoint(path, f"it has no {missing[0]}")
    try:
        scale, num_feat, upsampler = _detect_upsampler(state)
        window = (math.isqrt(state[needed[2]].shape[0]) + 1) // 2
        mask = state.get("layers.0.residual_group.blocks.1.attn_mask")
        depths = tuple(_count(state, f"layers.{i}.residual_group.blocks") for i in range(_count(state, "layers")))
        tables = [f"layers.{i}.residual_group.blocks.0.attn.relative_position_bias_table" for i in range(len(depths))]
        return SwinIRConfig(
            scale=scale,
            embed_dim=state["conv_first.weight"].shape[0],
            depths=depths,
            heads=tuple(state[table].shape[1] for table in tables),
            upsampler=upsampler,
            resi_connection="1conv" if "conv_after_body.weight" in state else "3conv",
            mlp_hidden=state[_FIRST_BLOCK + "mlp.fc1.weight"].shape[0],
            num_feat=num_feat,
            window=window,
            img_size=64 if mask is None else math.isqrt(mask.shape[0]) * window,
        )
    except KeyError as error:
        raise _no_checkpoint(path, f"it has no {error.args[0]}") from error
    except (IndexError, ZeroDivisionError, DtkdError) as error:
        raise _no_checkpoint(path, str(error)) from error


def _detect_upsampler(state: Mapping[str, Tensor]) -> tuple[int, int, Any]:
    """Scale, channels and kind of the upsampler."""
    if "conv_up1.weight" in state:
        return 4 if "conv_up2.weight" in state else 2, state["conv_up1.weight"].shape[0], "nearest+conv"
    if "conv_before_upsample.0.weight" in state:
        steps = [state[f"upsample.{i}.weight"].shape for i in range(0, 8, 2) if f"upsample.{i}.weight" in state]
        return math.prod(math.isqrt(s[0] // s[1]) for s in steps), state["conv_last.weight"].shape[1], "pixelshuffle"
    if "upsample.0.weight" in state:
        return math.isqrt(state["upsample.0.weight"].shape[0] // 3), 64, "pixelshuffledirect"
    raise DtkdError("it has no upsampler: a denoising or JPEG model, not a super-resolution one")


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Length of the module list under `prefix`."""
    depth = prefix.count(".") + 1
    return len({key.split(".")[depth] for key in state if key.startswith(prefix + ".")})


def _load_strictly(model: SwinIR, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy every tensor; check buffers against their definition instead, where present."""
    own = model.state_dict()
    extra = sorted(state.keys() - own.keys())
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith(_BUFFERS))
    if extra or missing:
        raise _no_checkpoint(path, f"{'unexpected' if extra else 'missing'} tensor {(extra or missing)[0]}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise _no_checkpoint(path, f"{key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}")
        if key.endswith(_BUFFERS) and not torch.equal(value.to(own[key].dtype), own[key]):
            raise _no_checkpoint(path, f"{key} has other values than SwinIR's")
    model.load_state_dict(own | dict(state))
