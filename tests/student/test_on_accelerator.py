"""Student and loss on an accelerator, compiled and not, against the CPU's fp32 results."""

from dataclasses import replace

import pytest
import torch

from pipeline.images import to_tensor
from pipeline.system.device import autocast
from student.loss import MODES, GroupWeights, distillation_loss
from student.model import build
from student.networks import load_network

pytestmark = pytest.mark.gpu
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])
COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


@pytest.fixture(scope="module")
def photo():
    from skimage import data

    return to_tensor(data.astronaut()[40:83, 200:261].copy())[None]  # sides that no window divides


@pytest.fixture(autouse=True)
def forget_compiled():
    yield
    torch.compiler.reset()


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@COMPILED
@PRECISIONS
@pytest.mark.parametrize("name", ["tiny-x4", "tiny-x4-bicubic-gt"])
def test_a_shipped_student_gives_the_picture_of_the_cpu(accelerator, photo, name, precision, compiled):
    expected = load_network(name, "cpu", "fp32").restore(photo)
    network = load_network(name, accelerator, precision)
    if compiled:
        network = replace(network, forward=torch.compile(network.forward, dynamic=False))
    error = (network.restore(photo) - expected).abs()
    limit = {"fp32": 2e-3, "bf16": 0.06}[precision]
    assert error.max() < limit, f"mean {error.mean():.1e}, max {error.max():.1e}"
    assert error.mean() < limit / 10, f"mean {error.mean():.1e}"


@PRECISIONS
@pytest.mark.parametrize("preset", ["light", "classical", "real-m", "real-l"])
def test_every_preset(accelerator, preset, precision):
    torch.manual_seed(0)
    network, lr = build(preset).eval(), noise(0, 2, 3, 13, 16)
    with torch.no_grad():
        expected = network(lr)
        with autocast(precision, accelerator):
            got = network.to(accelerator)(lr.to(accelerator)).float().cpu()
    error, scale = (got - expected).abs().max(), expected.abs().max()
    assert error < {"fp32": 2e-3, "bf16": 0.05}[precision] * scale, f"{error:.1e} of {scale:.1e}"


@COMPILED
@PRECISIONS
def test_the_gradient_of_a_training_step(accelerator, precision, compiled):
    torch.manual_seed(0)
    network = build("tiny").train()
    pictures = noise(0, 2, 3, 16, 16), noise(1, 2, 3, 64, 64), noise(2, 2, 3, 64, 64)
    weights = GroupWeights(*MODES["mid"], energy=1.0)

    def gradient(device: str, precision: str, compiled: bool) -> torch.Tensor:
        network.to(device).zero_grad()
        lr, gt, teacher = (picture.to(device) for picture in pictures)
        forward = torch.compile(network, dynamic=False) if compiled else network
        with autocast(precision, device):
            sr = forward(lr)
        distillation_loss(sr, gt, teacher, weights, 1.0, (5, 3)).total.backward()
        return torch.cat([parameter.grad.flatten().cpu() for parameter in network.parameters()])

    expected = gradient("cpu", "fp32", False)
    got = gradient(accelerator, precision, compiled)
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < {"fp32": 5e-3, "bf16": 0.1}[precision]


@pytest.mark.parametrize(
    ("weights", "shift"),
    [
        (GroupWeights(*MODES["mid"]), (0, 0)),
        (GroupWeights(*MODES["high"], levels=3, energy=16.0, energy_floor=1.0), (5, 3)),
        (GroupWeights(*MODES["uniform"], levels=1, gt="low"), (0, 0)),
        (GroupWeights(*MODES["low"], levels=0), (0, 0)),
        (GroupWeights(*MODES["mid"], wavelet="db2"), (0, 0)),
    ],
    ids=["haar", "energy", "gt low", "pixels", "db2"],
)
def test_the_loss_and_its_gradient(accelerator, weights, shift):
    pictures = [noise(seed, 2, 3, 64, 64) for seed in range(3)]
    results = []
    for device in ("cpu", accelerator):
        sr, gt, teacher = (picture.to(device) for picture in pictures)
        sr.requires_grad_()
        parts = distillation_loss(sr, gt, teacher, weights, 2.0, shift)
        parts.total.backward()
        results.append((torch.stack(parts).detach().cpu(), sr.grad.cpu()))
    (expected, slope), (got, other) = results
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert slope.norm() > 0 and (other - slope).norm() < 1e-2 * slope.norm()
