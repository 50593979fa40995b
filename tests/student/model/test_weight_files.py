"""Weight files: ours, official ones, and files that only pretend."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import spandrel
import torch
from swinir_oracle import SMALL, assert_close, random_image, randomised

from pipeline.system.errors import DtkdError
from student.model import SwinIR, build
from student.model.weight_files import load_student, read_metadata, save_student
from student.networks import WEIGHTS


class Opaque:
    """An object that only running code from the file could bring back."""


def model_of(name: str = "light", seed: int = 0) -> SwinIR:
    return randomised(SwinIR(SMALL[name]), seed).eval()


def assert_same_weights(actual: SwinIR, expected: SwinIR) -> None:
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_bit_exact_and_spandrel_reads_it(name, tmp_path):
    model = model_of(name)
    save_student(model, tmp_path / "student.safetensors", {})
    loaded = load_student(tmp_path / "student.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    assert_same_weights(loaded, model)
    descriptor = spandrel.ModelLoader().load_from_file(tmp_path / "student.safetensors")
    assert (descriptor.architecture.id, descriptor.scale) == ("SwinIR", model.scale)
    lr = random_image(1, 3, 17, 19)
    with torch.no_grad():
        assert_close(loaded(lr), descriptor.model.eval()(lr), 1e-5)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"params": s}, lambda s: {"params_ema": s, "params": {}}])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_official_wrappers_load(wrap, legacy, tmp_path):
    model = model_of()
    torch.save(wrap(model.state_dict()), tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    assert_same_weights(load_student(tmp_path / "model.pth"), model)


def test_averaged_weights_win_and_parallel_prefixes_go(tmp_path):
    trained, averaged = model_of(seed=1), model_of(seed=2)
    prefixed = {"module." + key: value for key, value in averaged.state_dict().items()}
    torch.save({"params": trained.state_dict(), "params_ema": prefixed}, tmp_path / "model.pth")
    assert_same_weights(load_student(tmp_path / "model.pth"), averaged)


def test_missing_buffers_and_half_precision_are_filled_in(tmp_path):
    model = model_of()
    state = {k: v.half() for k, v in model.state_dict().items() if "attn_mask" not in k and "index" not in k}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    loaded = load_student(tmp_path / "model.safetensors")
    assert loaded.conv_first.weight.dtype == torch.float32
    assert loaded.config.img_size == 64
    assert torch.equal(loaded.conv_first.weight, model.conv_first.weight.half().float())


def test_presets_are_told_from_shapes(tmp_path):
    for preset, scale in [("tiny", 4), ("light", 2)]:
        save_student(build(preset, scale), tmp_path / "m.safetensors", {})
        loaded = load_student(tmp_path / "m.safetensors")
        assert (loaded.preset, loaded.scale) == (preset, scale)


def test_metadata_comes_back(tmp_path):
    path = tmp_path / "runs" / "student.safetensors"
    metadata = {"step": 7, "name": "größe", "loss": {"weights": [0.25, 1, 0.5]}, "note": None}
    save_student(model_of(), path, metadata)
    assert read_metadata(path) == metadata | {"preset": "custom", "scale": 4}
    torch.save({}, tmp_path / "other.pth")
    assert read_metadata(tmp_path / "other.pth") == {}


def test_saving_replaces_a_file_whole_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(model_of(seed=1), path, {})
    with pytest.raises(TypeError):
        save_student(model_of(seed=2), path, {"no json": object()})
    assert_same_weights(load_student(path), model_of(seed=1))
    save_student(model_of(seed=2), path, {})
    assert_same_weights(load_student(path), model_of(seed=2))
    assert [p.name for p in tmp_path.iterdir()] == ["student.safetensors"]


def test_the_same_student_is_the_same_bytes(tmp_path):
    """safetensors itself writes its metadata in another order every time."""
    metadata = {"step": 7, "name": "größe"}
    for number in range(8):
        save_student(model_of(), tmp_path / f"{number}.safetensors", metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("extra", [{"epoch": Path("a")}, {"optimizer": Opaque()}])
def test_a_file_with_objects_is_refused_without_advice_to_run_its_code(tmp_path, extra):
    torch.save({"params": model_of().state_dict(), **extra}, tmp_path / "model.pth")
    with pytest.raises(DtkdError, match="holds Python objects beside tensors, which are not loaded") as caught:
        load_student(tmp_path / "model.pth")
    assert "weights_only" not in str(caught.value)


def test_a_tiny_student_stores_the_smallest_masks_that_spandrel_takes(tmp_path):
    model = randomised(build("tiny"), seed=3).eval()
    save_student(model, tmp_path / "student.safetensors", {})
    assert (tmp_path / "student.safetensors").stat().st_size < 2.2e6
    descriptor = spandrel.ModelLoader().load_from_file(tmp_path / "student.safetensors")
    lr = random_image(1, 3, 40, 65)
    with torch.no_grad():
        assert_close(model(lr), descriptor.model.eval()(lr), 1e-5)
    with pytest.raises(DtkdError, match="divide a larger img_size"):
        replace(model.config, img_size=8)  # one window: its loaders shift nothing then, and build another network


def test_the_shipped_student_is_small_and_whole():
    path = WEIGHTS / "tiny-x4.safetensors"
    assert path.stat().st_size < 2.2e6
    student, descriptor = load_student(path), spandrel.ModelLoader().load_from_file(path)
    lr = random_image(1, 3, 33, 50)
    with torch.no_grad():
        assert_close(student(lr), descriptor.model.eval()(lr), 1e-5)


def damaged_files() -> dict[str, bytes]:
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = safetensors.torch.save(model_of().state_dict())
    return {
        "empty": b"",
        "text": b"this is no checkpoint",
        "cut safetensors": whole[: len(whole) // 2],
        "foreign safetensors": len(header).to_bytes(8, "little") + header + bytes(16),
        "zip": b"PK\x03\x04 and then nothing",
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }


@pytest.mark.parametrize(("name", "data"), damaged_files().items(), ids=damaged_files().keys())
def test_files_that_are_no_checkpoint(name, data, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with pytest.raises(DtkdError, match=r"is no SwinIR checkpoint \(.+\): give a") as error:
        load_student(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DtkdError, match="No such file"):
        load_student(tmp_path / "absent.pth")
    with pytest.raises(DtkdError, match="Is a directory"):
        load_student(tmp_path)


def change(state: dict, what: str) -> dict:
    block = "layers.0.residual_group.blocks.1."
    if what == "missing parameter":
        del state[block + "norm2.bias"]
    elif what == "extra tensor":
        state["absolute_pos_embed"] = torch.zeros(1)
    elif what == "wrong shape":
        state[block + "mlp.fc2.bias"] = torch.zeros(3)
    elif what == "wrong mask":
        state[block + "attn_mask"] = state[block + "attn_mask"] * 2
    elif what == "wrong index":
        state[block + "attn.relative_position_index"] = state[block + "attn.relative_position_index"].t().contiguous()
    elif what == "no upsampler":
        return {key: value for key, value in state.items() if not key.startswith("upsample")}
    elif what == "no heads":
        state["layers.0.residual_group.blocks.0.attn.relative_position_bias_table"] = torch.zeros(225, 0)
    return state


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing parameter", "missing tensor layers.0.residual_group.blocks.1.norm2.bias"),
        ("extra tensor", "unexpected tensor absolute_pos_embed"),
        ("wrong shape", r"expected \(20,\)"),
        ("wrong mask", "attn_mask has other values"),
        ("wrong index", "relative_position_index has other values"),
        ("no upsampler", "no upsampler"),
        ("no heads", "is no SwinIR checkpoint"),
    ],
)
def test_other_architectures_are_refused(what, message, tmp_path):
    torch.save(change(model_of().state_dict(), what), tmp_path / "model.pth")
    with pytest.raises(DtkdError, match=message):
        load_student(tmp_path / "model.pth")
