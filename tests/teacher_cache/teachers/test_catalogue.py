"""Loading teachers by name, and what all of them promise."""

import json
import shutil

import pytest
import torch
from teacher_support import haar_pipeline

from pipeline.system.errors import DtkdError, UsageError
from teacher_cache import teachers
from teacher_cache.teachers.diffusers_teacher import repository


@pytest.mark.parametrize(
    ("kind", "steps"), [("haar_folder", None), ("ldm_folder", 2), ("sd_folder", 2)], ids=["embedded", "ldm", "sd-x4"]
)
def test_a_teacher_is_a_function_of_lr_and_seed(kind, steps, request):
    folder = request.getfixturevalue(kind)
    name = {"ldm_folder": "ldm:", "sd_folder": "sd-x4:"}.get(kind, "") + str(folder)
    teacher = teachers.load(name, steps=steps)
    lr = torch.rand(3, 3, 10, 13, generator=torch.Generator().manual_seed(2))  # sides that no pipeline takes unpadded
    out = teacher.restore(lr, [5, 6, 7])
    assert out.shape == (3, 3, 40, 52)
    assert out.dtype == torch.float32
    assert 0 <= out.min() < out.max() <= 1
    again = teacher.restore(lr.flip(0), [7, 6, 5]).flip(0)
    torch.testing.assert_close(again, out, atol=1e-5, rtol=0)  # companions and order do not matter
    assert (teacher.restore(lr, [5, 6, 8])[2] - out[2]).abs().max() > 1e-3  # the seed does
    assert json.dumps(teacher.fingerprint())


def test_weights_of_a_teacher_are_in_its_fingerprint(haar_folder, tmp_path):
    other = haar_pipeline(steps=3)
    other.unet.conv_in.bias.data[0] += 1e-3
    other.save_pretrained(tmp_path)
    one, two = teachers.load(str(haar_folder)).fingerprint(), teachers.load(str(tmp_path)).fingerprint()
    assert one["weights"] != two["weights"]
    assert teachers.load(str(haar_folder)).fingerprint() == one
    assert teachers.load(str(haar_folder), steps=4).fingerprint()["steps"] == 4


def test_sd_x4_sees_the_lr_image_in_minus_one_to_one(sd_folder, monkeypatch):
    """A dark LR image must not be taken for one in [-1, 1] that needs no mapping (or the reverse)."""
    teacher = teachers.load(f"sd-x4:{sd_folder}", steps=1)
    seen = []
    original = teacher._pipe.unet.forward
    monkeypatch.setattr(teacher._pipe.unet, "forward", lambda x, *a, **k: (seen.append(x), original(x, *a, **k))[1])
    teacher._pipe.low_res_scheduler.add_noise = lambda image, noise, level: image
    teacher.restore(torch.full((1, 3, 8, 8), 0.1), [0])
    torch.testing.assert_close(seen[0][:, 4:], torch.full((1, 3, 8, 8), -0.8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "no teacher 'nonsense': expected embedded"),
        ("embedded", {"steps": 0}, "steps must be at least 1, got 0"),
        ("embedded", {"steps": 2000}, r"knows 1000 noise levels: steps must be 1\.\.1000, got 2000"),
        ("import:", {}, "import: names no folder"),
        ("import:nowhere", {}, "no such folder"),
        ("ldm:nowhere-at-all", {}, "cannot load a LDMSuperResolutionPipeline from nowhere-at-all"),
        ("ldm", {"dtype": "bf16"}, "fp32 only"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(name, options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DtkdError, match=message) as error:
        teachers.load(name, **options)
    assert isinstance(error.value, UsageError) == ("nowhere" not in name)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_scale_is_refused(haar_folder):
    with pytest.raises(DtkdError, match="made for scale 4, got --scale 3"):
        teachers.load(str(haar_folder), scale=3)


def test_a_folder_with_pickled_weights_is_refused(haar_folder, tmp_path):
    pipe = haar_pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(DtkdError, match="cannot load a HaarDiffusionPipeline"):
        teachers.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["", "ldm", "sd-x4"])
def test_where_a_teacher_lies_is_not_in_its_fingerprint(
    kind, haar_folder, ldm_folder, sd_folder, tmp_path, monkeypatch
):
    folder = {"": haar_folder, "ldm": ldm_folder, "sd-x4": sd_folder}[kind]
    copy = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    names = [f"{kind}:{place}".removeprefix(":") for place in (folder, copy, ".")]
    loaded = [teachers.load(name, steps=2) for name in names]
    assert [teacher.name for teacher in loaded] == names
    one, *others = (teacher.fingerprint() for teacher in loaded)
    assert others == [one, one]
    assert one["name"] == (kind or folder.name)
    assert "repository" not in one
    assert str(folder.parent) not in json.dumps(one)


def test_a_repository_is_in_the_fingerprint():
    assert repository("somebody/some-model") == {"repository": "somebody/some-model"}
