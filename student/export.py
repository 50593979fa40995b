"""Export a student: safetensors for other SwinIR programs, ONNX for other runtimes, a Hugging Face folder for sharing.

B batch, H W height and width in LR pixels, S scale.
"""

import logging
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import atomic_write_bytes, ensure_dir, read_json
from pipeline.system.outputs import check_file, check_folder
from pipeline.system.results import plain
from student.model.swinir import SwinIR
from student.model.weight_files import is_student, load_student, read_metadata, save_student
from student.networks import find_checkpoint

Format = Literal["safetensors", "onnx", "huggingface"]
OPSET = 17
CHECKED_SIZES = ((1, 3, 24, 24), (2, 3, 17, 40), (1, 3, 64, 33))
"""(B, 3, H, W) on which ONNX Runtime must agree with torch: square, odd with a batch, and above one window row."""
TOLERANCE, INT8_TOLERANCE = 1e-4, 2e-2
"""Largest absolute difference that is accepted, on a scale where white is 1, and the same with int8 weights."""
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
"""Files of a Hugging Face folder; the card is written once and belongs to the user then."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    format: Format
    bytes: int
    error: float | None
    """ONNX: largest absolute difference from torch over `CHECKED_SIZES`."""
    half: bool = False
    """Whether weights are stored as float16, and `error` is that of the network with such weights."""

    failure = None
    """See `pipeline.system.results.Result`: an export that differs is not written, and raises."""

    def lines(self) -> list[str]:
        """For people: the file, its size, and how exact it is."""
        meant = "the network with float16 weights" if self.half else "the network"
        same = f", differs from {meant} by at most {self.error:.1e}" if self.error is not None else ""
        return [f"{self.path}: {self.format}, {self.bytes / 1e6:.2f} MB{same}"]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain(self)


def format_of(out: Path, kind: Format | None = None) -> Format:
    """The format that a file's suffix stands for, or a folder's name without one; `kind` where that fits.

    Raises:
        UsageError: the suffix stands for none, or for another one than `kind`.
    """
    suffix = out.suffix.lower()
    if suffix in (".safetensors", ".onnx"):
        meant: Format | None = "onnx" if suffix == ".onnx" else "safetensors"
    elif out.is_dir():
        meant = "huggingface"
    else:  # a folder may have a dot in its name, if its format is named
        meant = None if out.is_file() or (suffix and kind is None) else "huggingface"
    if meant is None or kind not in (None, meant):
        raise UsageError(
            f"{out} is no name for {kind or 'an export'}: give FILE.safetensors, FILE.onnx, or a folder for huggingface"
        )
    return meant


def export(
    checkpoint: str | Path,
    out: Path,
    kind: Format | None = None,
    *,
    half: bool = False,
    int8: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a student in another form.

    Args:
        checkpoint: any file that `load_student` reads, a run folder, or the name of a shipped student.
        out: the file to write; a folder for `huggingface`.
        kind: safetensors in the layout of official SwinIR, which spandrel (chaiNNer, ComfyUI) recognises; onnx with
            dynamic batch, height and width; or huggingface, see `student.hub`. None goes by the name, see `format_of`.
        half: store weights as float16, half the size. Computing stays in float32: SwinIR overflows in float16.
        int8: ONNX only: linear layers with int8 weights and inputs that are quantised on the way (dynamic
            quantisation), which ONNX Runtime computes faster on CPUs.
        overwrite: replace an earlier export.

    Raises:
        DtkdError: no such checkpoint, an output that is the checkpoint itself, is there already or cannot be written,
            weights that float16 cannot hold, no onnx installed, or an ONNX file that computes something else.
        UsageError: an output that is named for another format, or int8 for another one than ONNX.
    """
    kind = format_of(out, kind)
    if int8 and (half or kind != "onnx"):
        raise UsageError("int8 weights are for ONNX files only, and not together with float16 ones")
    checkpoint = find_checkpoint(str(checkpoint))
    _refuse_what_is_there(checkpoint, out, kind, overwrite)
    model = load_student(checkpoint)
    metadata = {key: value for key, value in read_metadata(checkpoint).items() if key not in ("preset", "scale")}
    if half:
        _round_to_half(model)
    if kind == "huggingface":
        return _export_folder(model, out, metadata, half)
    ensure_dir(out.parent)
    if kind == "safetensors":
        save_student(_stored(model, half), out, metadata)
        return Exported(out, kind, out.stat().st_size, None, half)
    error = _export_onnx(model, out, metadata, half, int8)
    return Exported(out, kind, out.stat().st_size, error, half)


def _refuse_what_is_there(checkpoint: Path, out: Path, kind: Format, overwrite: bool) -> None:
    """Make sure that nothing is replaced but an earlier export, and that one only when asked."""
    if checkpoint.resolve() in (out.resolve(), out.resolve() / _WEIGHTS):
        raise DtkdError(f"{out} is the checkpoint itself: give the export another name")
    if kind == "huggingface":
        check_folder(out, "a student", overwrite, _is_hub_folder, keep=[_CARD])
    else:
        is_ours = is_student if kind == "safetensors" else _is_onnx_student
        check_file(out, f"a student ({kind})", overwrite, is_ours)


def _is_onnx_student(path: Path) -> bool:
    """Whether `_export_onnx` wrote a file."""
    onnx, _ = _import_onnx()
    try:
        properties = {entry.key for entry in onnx.load(path, load_external_data=False).metadata_props}
    except Exception:  # protobuf and onnx raise many kinds on what is no ONNX file
        return False
    return {"preset", "scale"} <= properties


def _is_hub_folder(folder: Path) -> bool:
    """Whether what an export would replace in a folder is an export."""
    try:
        config = read_json(folder / _CONFIG)
    except (OSError, DtkdError):
        return False
    weights = folder / _WEIGHTS
    return (
        isinstance(config, dict)
        and (config.get("model_type"), "preset" in config) == ("swinir", True)
        and (not weights.exists() or is_student(weights))
    )


def _import_onnx() -> tuple[Any, Any]:
    """Onnx and onnxruntime.

    Raises:
        DtkdError: one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise DtkdError(f"ONNX export needs {error.name}: pip install 'dtkd[onnx]'") from error
    return onnx, onnxruntime


def _round_to_half(model: SwinIR) -> None:
    """Give every parameter a value that float16 holds exactly.

    Raises:
        DtkdError: one is too large for it.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rounded = parameter.half().float()
            if not rounded.isfinite().all():
                raise DtkdError(
                    f"{name} has values up to {parameter.abs().max():.0f}, too large for --half: leave it out"
                )
            parameter.copy_(rounded)


def _stored(model: SwinIR, half: bool) -> SwinIR:
    """The model as its file will hold it; `_round_to_half` made sure that nothing is lost."""
    return model.half() if half else model


def _export_folder(model: SwinIR, out: Path, metadata: dict[str, Any], half: bool) -> Exported:
    from student.hub import HubStudent

    ensure_dir(out)
    student = HubStudent(model.config, preset=model.preset, metadata=metadata)
    student.load_state_dict(model.state_dict())
    _stored(student, half)
    student.save_pretrained(out)
    written = [file for name in (_CONFIG, _WEIGHTS, _CARD) if (file := out / name).exists()]
    return Exported(out, "huggingface", sum(file.stat().st_size for file in written), None, half)


def _export_onnx(model: SwinIR, out: Path, metadata: dict[str, Any], half: bool, int8: bool) -> float:
    """Write the file and return its largest difference from torch.

    Raises:
        DtkdError: onnx or onnxruntime are missing, or the difference is above the tolerance; nothing is written then.
    """
    onnx, onnxruntime = _import_onnx()
    graph = _trace(model, out)
    if half:
        _store_as_half(graph)
    if int8:
        graph = _quantised(graph, out)
    described = {"preset": model.preset, "scale": str(model.scale), "dtkd": str(metadata.get("version", ""))}
    onnx.helper.set_model_props(graph, {key: value for key, value in described.items() if value})
    onnx.checker.check_model(graph)
    data = graph.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    error = float(np.max([_difference(model, session, size) for size in CHECKED_SIZES]))  # NaN stays NaN
    limit = INT8_TOLERANCE if int8 else TOLERANCE
    if not error <= limit:
        raise DtkdError(f"the ONNX file differs from the network by {error:.1e}, more than {limit:.0e}: not written")
    atomic_write_bytes(out, data)
    return error


def _trace(model: SwinIR, out: Path) -> Any:
    """ONNX graph of `model`, from lr (B, 3, H, W) to sr (B, 3, S * H, S * W)."""
    import onnx

    example = torch.zeros(1, 3, 24, 40)
    dynamic = {"lr": {0: "batch", 2: "height", 3: "width"}, "sr": {0: "batch", 2: "sr_height", 3: "sr_width"}}
    with _temporary(out) as file, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the newer exporter needs another package; tracing what is constant is right
        torch.onnx.export(
            model, (example,), str(file), dynamo=False, opset_version=OPSET,
            input_names=["lr"], output_names=["sr"], dynamic_axes=dynamic,
        )  # fmt: skip
        return onnx.load(str(file))


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A file name beside `out` that is free, for libraries that write files only."""
    file = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _quantised(graph: Any, out: Path) -> Any:
    """The graph with int8 linear layers; attention's own products and the convolutions stay in float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root, silent = logging.getLogger(), lambda record: False  # it advises a preparation that changes nothing here
    with _temporary(out) as file:
        root.addFilter(silent)
        try:
            quantize_dynamic(graph, file, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
        finally:
            root.removeFilter(silent)
        return onnx.load(str(file))


def _store_as_half(graph: Any) -> None:
    """Replace float32 weights by float16 ones and a Cast to float32, which runtimes do once, at loading."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [w for w in graph.graph.initializer if w.data_type == TensorProto.FLOAT and np.prod(w.dims) > 1]
    casts = []
    for weight in weights:
        name, values = weight.name, numpy_helper.to_array(weight)
        halved = values.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), values):
            continue  # a constant of the graph that is no weight, such as the RGB mean
        weight.CopyFrom(numpy_helper.from_array(halved, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    for index, cast in enumerate(casts):
        graph.graph.node.insert(index, cast)


def _difference(model: SwinIR, session: Any, size: tuple[int, ...]) -> float:
    lr = np.random.default_rng(0).random(size, dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(lr)).numpy()
    return float(np.abs(session.run(None, {"lr": lr})[0] - expected).max())
