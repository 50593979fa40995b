"""Students in bfloat16: as good as in float32 on photos, of any size and in tiles; other networks stay in float32."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from spandrel.architectures.Compact import Compact

from pipeline.fidelity import psnr_y
from pipeline.filters import resize_bicubic_uint8
from pipeline.images import load_rgb, to_image, to_tensor
from pipeline.system.errors import UsageError
from student.networks import load_network
from student.upscaling.upscale import UpscaleSettings, upscale

SIDES = (85, 107)
"""Height and width of the LR photo: no multiples of a window."""


@pytest.fixture(scope="module")
def photo():
    """A photo, and its LR image."""
    height, width = SIDES
    hr = np.ascontiguousarray(skimage.data.astronaut()[: 4 * height, : 4 * width])
    return hr, resize_bicubic_uint8(hr, height, width)


@pytest.fixture(scope="module", params=["tiny-x4", "tiny-x4-gt"])
def networks(request):
    return {precision: load_network(request.param, "cpu", precision) for precision in ("fp32", "bf16")}


def test_a_whole_photo(photo, networks):
    hr, lr = photo
    found = {name: network.restore(to_tensor(lr)[None])[0] for name, network in networks.items()}
    assert all(sr.dtype == torch.float32 and sr.shape == (3, *hr.shape[:2]) for sr in found.values())
    assert not torch.equal(found["fp32"], found["bf16"])
    score = {name: psnr_y(to_image(sr), hr, 4) for name, sr in found.items()}
    assert score["bf16"] == pytest.approx(score["fp32"], abs=0.01)


def test_in_tiles(photo, networks, tmp_path):
    hr, lr = photo
    Image.fromarray(lr).save(tmp_path / "lr.png")
    pictures = {}
    for name, (precision, tile) in {"fp32": ("fp32", 64), "bf16": ("bf16", 64), "whole": ("bf16", 256)}.items():
        target, settings = tmp_path / f"{name}.png", UpscaleSettings(tile=tile)
        result = upscale([str(tmp_path / "lr.png")], target, networks[precision], settings)
        assert (result.failed, result.precision) == ((), precision)
        pictures[name] = load_rgb(target)
    score = {name: psnr_y(picture, hr, 4) for name, picture in pictures.items()}
    assert score["bf16"] == pytest.approx(score["fp32"], abs=0.01)
    assert score["bf16"] == pytest.approx(score["whole"], abs=0.01)
    difference = np.abs(pictures["bf16"].astype(int) - pictures["whole"])
    assert difference.mean() < 0.2 and (difference > 4).mean() < 1e-3, (difference.mean(), difference.max())


@pytest.mark.parametrize("fast", [True, False])
def test_auto_follows_the_hardware(fast, monkeypatch):
    monkeypatch.setattr("pipeline.system.device.fast_bf16", lambda device: fast)
    assert load_network(device="cpu").precision == ("bf16" if fast else "fp32")


def test_networks_of_other_projects_stay_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.system.device.fast_bf16", lambda device: True)
    compact = Compact(num_feat=8, num_conv=2, upscale=2).eval()
    path = tmp_path / "compact.pth"
    torch.save({"params": compact.state_dict()}, path)
    network, lr = load_network(str(path), "cpu"), torch.rand(1, 3, 9, 11)
    assert network.precision == "fp32"
    with torch.inference_mode():
        assert torch.equal(network.restore(lr), compact(lr).clamp(0, 1))
    with pytest.raises(UsageError, match=r"compact\.pth holds a RealESRGAN Compact, which runs in fp32 only"):
        load_network(str(path), "cpu", "bf16")
