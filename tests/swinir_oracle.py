"""Small SwinIRs of every kind, and spandrel's implementation as their oracle."""

import numpy as np
import spandrel
import torch
from torch import Tensor, nn

from student.model import SwinIR, SwinIRConfig

SMALL = {
    "light": SwinIRConfig(4, 20, (2, 3), (2, 2), "pixelshuffledirect", img_size=16),
    "light-x3": SwinIRConfig(3, 20, (2,), (2,), "pixelshuffledirect", img_size=16),
    "classical": SwinIRConfig(4, 24, (2, 2), (2, 3), "pixelshuffle", mlp_hidden=36, img_size=24),
    "classical-x3": SwinIRConfig(3, 12, (2,), (3,), "pixelshuffle", img_size=16),
    "classical-x8": SwinIRConfig(8, 12, (2,), (3,), "pixelshuffle", img_size=16),
    "real": SwinIRConfig(4, 20, (2,), (2,), "nearest+conv", img_size=16),
    "real-x2": SwinIRConfig(2, 20, (2,), (2,), "nearest+conv", img_size=16),
    "real-3conv": SwinIRConfig(4, 24, (2, 2), (4, 4), "nearest+conv", "3conv", img_size=16),
}


def randomised(model: SwinIR, seed: int = 0) -> SwinIR:
    """Weights large enough that attention, biases and norms all matter; fresh ones hardly leave the mean colour."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("relative_position_bias_table"):
                parameter.copy_(noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model


def oracle(model: SwinIR) -> nn.Module:
    """spandrel's network with the same weights, from nothing but the state dict."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    descriptor = spandrel.ModelLoader(torch.device("cpu")).load_from_state_dict(state)
    assert (descriptor.architecture.id, descriptor.scale) == ("SwinIR", model.scale)
    return descriptor.model.eval()


def random_image(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, limit: float, what: str = "output") -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs()
    where = np.unravel_index(int(error.argmax()), error.shape)
    report = f"{what}: mean {error.mean():.2e}, max {error.max():.2e} at {tuple(map(int, where))}"
    assert error.max() <= limit, report
