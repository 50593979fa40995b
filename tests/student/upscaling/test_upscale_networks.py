"""Networks that are found, that fail, and memory that is short."""

import inspect

import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact
from swinir_oracle import SMALL, oracle, randomised
from upscale_support import nearest, noise, save_any

import cli
from pipeline.system.errors import DtkdError
from student import networks
from student.model import SwinIR, build
from student.model.weight_files import save_student
from student.networks import Network, load_network
from student.upscaling.memory import fit_into_memory
from student.upscaling.upscale import UpscaleSettings, upscale


def test_webp_is_too_small_for_large_results(tmp_path):
    save_any(tmp_path / "in.png", noise(2, 9000, 3))
    result = upscale([str(tmp_path / "in.png")], tmp_path / "out.webp", nearest())
    assert "holds at most 16383 pixels a side, got 18000x4: write .png or .tif" in result.failed[0].reason


def test_an_output_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    save_any(tmp_path / "in.png", noise(8, 8, 3))
    (tmp_path / "file").write_text("")
    with pytest.raises(DtkdError, match="a file is in the way"):
        upscale([str(tmp_path)], tmp_path / "file", nearest())

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(DtkdError, match=r"cannot write into .*Permission denied"):
        upscale([str(tmp_path)], tmp_path / "locked", nearest())


def test_a_network_that_breaks_leaves_nothing_behind(tmp_path):
    save_any(tmp_path / "in.png", noise(8, 8, 3))
    broken = Network("broken", 2, 8, "cpu", 1000, lambda x: torch.full((1, 3, 16, 16), float("nan")))
    result = upscale([str(tmp_path / "in.png")], tmp_path / "out.png", broken)
    assert "values that are not finite" in result.failed[0].reason
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "smaller --tile"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "smaller --tile"),
        (RuntimeError("sizes do not match\nand more"), "the network failed: sizes do not match"),
    ],
)
def test_a_picture_that_the_network_fails_on_does_not_stop_the_others(tmp_path, error, reason):
    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.min() == 0:
            raise error
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    for name, value in (("a", 0), ("b", 9)):
        save_any(tmp_path / f"{name}.png", np.full((8, 8, 3), value, np.uint8))
    result = upscale([str(tmp_path)], tmp_path / "out", Network("moody", 2, 8, "cpu", 1000, forward))
    assert [written.source.name for written in result.written] == ["b.png"]
    assert [refused.source.name for refused in result.failed] == ["a.png"] and reason in result.failed[0].reason


def test_progress_counts_tiles_and_says_how_large_the_result_is(tmp_path):
    save_any(tmp_path / "a.png", noise(100, 60, 3))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    events = []
    upscale([str(tmp_path)], tmp_path / "out", nearest(), UpscaleSettings(tile=64, overlap=16), events.append)
    assert events[0].note == "a.png to 120x200 (0.0 megapixels)" and events[0].done == 0
    assert (events[-1].done, events[-1].total, events[-1].unit) == (2, 4, "tiles")


def test_shipped_students_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    with pytest.raises(DtkdError, match=r"no student 'tiny-x4' is shipped \(there are: none\)"):
        load_network()
    save_student(build("tiny"), tmp_path / "tiny-x4.safetensors", {})
    with pytest.raises(DtkdError, match=r"no student 'heavy' is shipped \(there are: tiny-x4\)"):
        load_network("heavy")
    with pytest.raises(DtkdError, match="cannot read the checkpoint"):
        load_network("no/such/file.pth")
    assert load_network(device="cpu").scale == 4


def test_the_command_takes_the_default_student():
    assert inspect.signature(cli.upscale).parameters["checkpoint"].default == networks.DEFAULT


def test_official_and_spandrel_files_load(tmp_path):
    student = randomised(SwinIR(SMALL["classical"])).eval()
    torch.save({"params": student.state_dict()}, tmp_path / "official.pth")
    x = np.random.default_rng(0).random((1, 3, 16, 24), dtype=np.float32)
    expected = oracle(student)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(load_network(str(tmp_path / "official.pth"), "cpu", "fp32")(x), expected, atol=1e-4)

    torch.manual_seed(0)
    compact = Compact(num_feat=8, num_conv=2, upscale=2).eval()
    torch.save({"params": compact.state_dict()}, tmp_path / "compact.pth")
    found = load_network(str(tmp_path / "compact.pth"), "cpu")
    assert (found.scale, found.name) == (2, "compact")
    np.testing.assert_allclose(found(x), compact(torch.from_numpy(x)).clamp(0, 1).detach().numpy(), atol=1e-5)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(DtkdError, match="is no SwinIR checkpoint"):
        load_network(str(tmp_path / "junk.pth"), "cpu")


def test_tiles_shrink_with_the_memory(monkeypatch):
    network_ = Network("n", 4, 8, "cpu", 4000, lambda x: x)
    for free, expected in ((64e9, 512), (1e9, 192), (1e7, 64)):
        monkeypatch.setattr("student.upscaling.memory.free_memory", lambda device="cpu", free=free: int(free))
        tiling = fit_into_memory(network_, 6000, 4000, None, 32).tiling
        assert tiling.rows.tile <= expected and tiling.rows.tile > expected // 2, (free, tiling.rows.tile)
