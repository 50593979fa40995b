import pytest
import torch
from swinir_oracle import SMALL, randomised

from pipeline.system.errors import DtkdError
from student import checkpoint
from student.model import SwinIR
from student.model.weight_files import read_metadata
from student.study.mix import mix, mix_files


def network(seed: int, kind: str = "light") -> SwinIR:
    torch.manual_seed(seed)
    return randomised(SwinIR(SMALL[kind])).eval()


def test_ends_are_the_two_students_and_the_middle_is_their_mean():
    a, b = network(0), network(1)
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(mix(a, b, 0)(x), a(x)) and torch.equal(mix(a, b, 1)(x), b(x))
    half = mix(a, b, 0.5)
    for name, value in half.named_parameters():
        expected = (a.get_parameter(name).double() + b.get_parameter(name).double()) / 2
        assert (value - expected).abs().max() < 1e-7, name


def test_only_networks_of_one_kind(tmp_path):
    with pytest.raises(DtkdError, match="only networks of one kind can be mixed"):
        mix(network(0), network(0, "real"), 0.5)
    with pytest.raises(DtkdError, match=r"within 0\.\.1 .* got 1\.5"):
        mix(network(0), network(1), 1.5)
    with pytest.raises(DtkdError, match=r"student\.onnx is no name for a mixture"):
        mix_files("a", "b", tmp_path / "student.onnx", 0.5)


def test_a_file_is_written_that_says_where_it_comes_from(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        checkpoint.save(network(seed), tmp_path / f"{name}.safetensors", {"step": seed + 7})
    made = mix_files(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), tmp_path / "m.safetensors", 0.25)
    loaded = checkpoint.load(made.path)
    for name, value in mix(network(0), network(1), 0.25).named_parameters():
        assert torch.equal(loaded.get_parameter(name), value)
    expected = {"a": {"name": "a", "step": 7}, "b": {"name": "b", "step": 8}, "share": 0.25}
    assert read_metadata(made.path)["mixture"] == expected
    assert made.lines() == [f"{made.path}: 75% a, 25% b"]
