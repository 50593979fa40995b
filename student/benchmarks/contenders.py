"""The networks that `student.benchmarks.inference` compares: ours and those of other programs, with the same weights.

A turn is one forward pass, or one forward and backward pass, on a batch of LR images (B, 3, H, W).
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.system import torchvision_guard
from pipeline.system.device import ResolvedPrecision, autocast
from pipeline.system.errors import DtkdError
from student.model import build
from student.model.swinir import SwinIR
from student.model.weight_files import save_student

Task = Literal["inference", "training"]
InputSize = tuple[int, int, int]
"""(B, H, W) of an LR batch."""
Turn = Callable[[], Tensor]
"""Returns the SR images, or in training the gradient of the first layer, which depends on everything."""
NOT_INSTALLED = "not installed: pip install 'dtkd[bench]'"


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    preset: str = "light"
    scale: int = 4
    device: str = "cpu"
    threads: int | None = 2
    """Threads of CPU operators; None leaves each library's own choice."""
    compiled: bool = False
    """Whether the networks in PyTorch go through torch.compile."""
    memory: bool = True
    """Whether peak memory is measured, each time in a process of its own."""


class Contender(NamedTuple):
    """A program that runs the network, and in which precision."""

    program: Literal["dtkd", "spandrel", "ONNX Runtime", "OpenVINO"]
    precision: ResolvedPrecision

    @property
    def in_pytorch(self) -> bool:
        """Whether it can be trained, compiled, and run on a GPU."""
        return self.program in ("dtkd", "spandrel")


CONTENDERS = (
    Contender("dtkd", "fp32"),  # what the others are compared with
    Contender("dtkd", "bf16"),
    Contender("spandrel", "fp32"),
    Contender("ONNX Runtime", "fp32"),
    Contender("OpenVINO", "fp32"),
    Contender("OpenVINO", "bf16"),
)


class AbsentError(DtkdError):
    """A contender cannot run here; the message says why."""


def contenders_of(setup: Setup, task: Task) -> list[Contender]:
    """Who takes part: programs outside PyTorch in inference on CPUs only."""
    return [c for c in CONTENDERS if c.in_pytorch or (task == "inference" and setup.device == "cpu")]


class ExportedStudent(NamedTuple):
    """The network that all run, with random weights."""

    model: SwinIR
    onnx: Path
    """Where its exported file is or will be."""


@contextmanager
def random_student(setup: Setup) -> Iterator[ExportedStudent]:
    """The student of a setup, always with the same weights; its file exists within the block.

    Raises:
        DtkdError: there is no such preset or scale.
    """
    torch.manual_seed(0)
    model = build(setup.preset, setup.scale).to(setup.device)
    with tempfile.TemporaryDirectory() as folder:
        yield ExportedStudent(model, Path(folder) / "student.onnx")


def prepare_turn(contender: Contender, setup: Setup, task: Task, size: InputSize, student: ExportedStudent) -> Turn:
    """What a contender does in its turn, always with the same random LR batch.

    Raises:
        AbsentError: it is not installed, or has no such precision here.
    """
    batch, height, width = size
    lr = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(setup.device)
    if contender.program == "ONNX Runtime":
        return _onnxruntime_turn(setup, lr, student)
    if contender.program == "OpenVINO":
        return _openvino_turn(contender.precision, setup, lr, student)
    network = student.model.train(task == "training") if contender.program == "dtkd" else spandrel_twin(student.model)
    # Static sizes: torch's CPU back end fails on the padded size's strides with dynamic ones (LOG.md, 2026-11-23).
    forward = torch.compile(network, dynamic=False) if setup.compiled else network
    step = _infer if task == "inference" else _train_step
    return lambda: step(forward, network, lr, contender.precision)


def _infer(forward: Callable[[Tensor], Tensor], network: nn.Module, lr: Tensor, precision: ResolvedPrecision) -> Tensor:
    with torch.inference_mode(), autocast(precision, lr.device.type):
        return forward(lr).float()


def _train_step(
    forward: Callable[[Tensor], Tensor], network: nn.Module, lr: Tensor, precision: ResolvedPrecision
) -> Tensor:
    """Forward, L1 loss against grey, backward."""
    network.zero_grad()
    with autocast(precision, lr.device.type):
        loss = (forward(lr).float() - 0.5).abs().mean()
    loss.backward()
    gradient = network.get_parameter("conv_first.weight").grad
    assert gradient is not None
    return gradient.clone()


def spandrel_twin(model: SwinIR) -> nn.Module:
    """Spandrel's SwinIR with the same weights.

    Raises:
        AbsentError: spandrel is not installed.
    """
    torchvision_guard.apply()
    try:
        import spandrel
    except ImportError as error:
        raise AbsentError(NOT_INSTALLED) from error
    state = {key: value.clone() for key, value in model.state_dict().items()}
    twin = spandrel.ModelLoader(model.mean.device).load_from_state_dict(state).model
    return twin.eval()  # also in training: its stochastic depth would make the gradients differ


def _onnxruntime_turn(setup: Setup, lr: Tensor, student: ExportedStudent) -> Turn:
    try:
        import onnxruntime
    except ImportError as error:
        raise AbsentError(NOT_INSTALLED) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads or 0  # 0: its own choice
    file = _exported(student)
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])


def _openvino_turn(precision: ResolvedPrecision, setup: Setup, lr: Tensor, student: ExportedStudent) -> Turn:
    try:
        import openvino
    except ImportError as error:
        raise AbsentError(NOT_INSTALLED) from error
    core: Any = openvino.Core()
    graph = core.read_model(_exported(student))
    graph.reshape(list(lr.shape))  # a fixed size is what it is fastest with
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}
    if setup.threads:
        settings["INFERENCE_NUM_THREADS"] = setup.threads
    compiled = core.compile_model(graph, "CPU", settings)
    if precision == "bf16" and compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        raise AbsentError("has no bf16 on this processor")
    request = compiled.create_infer_request()
    return lambda: torch.from_numpy(request.infer([lr.numpy()])[0].copy())


def _exported(student: ExportedStudent) -> Path:
    """The student's ONNX file, written when first asked for.

    Raises:
        AbsentError: onnx is not installed.
    """
    from student.export import export

    if not student.onnx.exists():
        try:
            import onnx  # noqa: F401
        except ImportError as error:
            raise AbsentError(NOT_INSTALLED) from error
        weights = student.onnx.with_suffix(".safetensors")
        save_student(student.model, weights, {})
        export(weights, student.onnx)
    return student.onnx
