"""What results are called, what they replace, and what is refused before the work."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from typer.testing import CliRunner
from upscale_support import nearest, noise, save_any

import cli
from pipeline.system.errors import DtkdError, UsageError
from student import networks
from student.networks import Network
from student.upscaling.reading import read_picture
from student.upscaling.upscale import UpscaleSettings, upscale


def test_nothing_is_overwritten_unasked(tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    save_any(source, noise(8, 8, 3))
    target.write_bytes(b"mine")
    result = upscale([str(source)], target, nearest())
    assert result.failed[0].reason == f"{target} exists: pass --overwrite to replace it"
    assert target.read_bytes() == b"mine"
    assert upscale([str(source)], target, nearest(), UpscaleSettings(overwrite=True)).written
    assert read_picture(target).pixels.shape == (16, 16, 3)


def test_a_folder_goes_on_where_it_stopped(tmp_path):
    for name in ("a.png", "b.png"):
        save_any(tmp_path / name, noise(8, 8, 3))
    out = tmp_path / "out"  # inside the input: results are no inputs of the next run
    assert len(upscale([str(tmp_path)], out, nearest()).written) == 2
    (out / "b.png").unlink()
    result = upscale([str(tmp_path)], out, nearest())
    assert [w.source.name for w in result.written] == ["b.png"] and not result.failed
    assert [e.source.name for e in result.existing] == ["a.png"]


def test_inputs_are_safe_and_names_unique(tmp_path):
    save_any(tmp_path / "a.png", noise(8, 8, 3))
    save_any(tmp_path / "a.webp", noise(8, 8, 3))
    before = (tmp_path / "a.png").read_bytes()
    result = upscale([str(tmp_path)], tmp_path, nearest(), UpscaleSettings(overwrite=True))
    assert len(result.failed) == 2 and "is a picture to upscale itself" in result.failed[0].reason
    assert (tmp_path / "a.png").read_bytes() == before
    result = upscale([str(tmp_path)], tmp_path / "out", nearest(), UpscaleSettings(suffix=".png"))
    assert len(result.written) == 1 and "is the result of" in result.failed[0].reason


def test_results_may_go_above_the_pictures(tmp_path):
    folder = tmp_path / "photos" / "2024"
    folder.mkdir(parents=True)
    save_any(folder / "a.png", noise(9, 9, 3))
    for source in (folder / "a.png", folder):
        result = upscale([str(source)], tmp_path / "photos", nearest(), UpscaleSettings(overwrite=True))
        assert [written.target for written in result.written] == [tmp_path / "photos" / "a.png"]


def test_a_format_beside_another_name_is_refused(tmp_path):
    save_any(tmp_path / "a.png", noise(9, 9, 3))
    with pytest.raises(DtkdError, match=r"b\.jpg is no \.png file"):
        upscale([str(tmp_path / "a.png")], tmp_path / "b.jpg", nearest(), UpscaleSettings(suffix=".png"))


def test_exif_that_jpeg_cannot_hold_is_refused_before_the_work(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "a.png", exif=exif)
    result = upscale([str(tmp_path / "a.png")], tmp_path / "b.jpg", nearest())
    assert "JPEG holds 64 KB of EXIF, and this picture has 68" in result.failed[0].reason
    assert not upscale([str(tmp_path / "a.png")], tmp_path / "b.png", nearest()).failed


def test_patterns_and_several_inputs(tmp_path):
    for name in ("x/1.png", "x/y/2.png", "z/3.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / name)
    result = upscale([f"{tmp_path}/x/**/*.png", str(tmp_path / "z" / "3.bmp")], tmp_path / "out", nearest())
    targets = [str(w.target.relative_to(tmp_path / "out")) for w in result.written]
    assert targets == ["1.png", os.path.join("y", "2.png"), "3.png"]
    with pytest.raises(DtkdError, match="no picture there"):
        upscale([f"{tmp_path}/*.jpg"], tmp_path / "out", nearest())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("out.jpg", "JPEG holds no transparency"),
        ("out.webp", ""),
    ],
)
def test_formats_that_cannot_hold_it_are_refused(tmp_path, name, expected):
    save_any(tmp_path / "in.png", noise(8, 8, 4))
    result = upscale([str(tmp_path / "in.png")], tmp_path / name, nearest())
    assert bool(result.failed) == bool(expected)
    if expected:
        assert expected in result.failed[0].reason and not (tmp_path / name).exists()


@pytest.mark.parametrize("suffix", [".webp", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_not_cut_down_to_8(tmp_path, suffix, channels):
    save_any(tmp_path / "in.png", noise(8, 8, channels, dtype=np.uint16))
    result = upscale([str(tmp_path / "in.png")], tmp_path / f"out{suffix}", nearest())
    assert f"{suffix} holds 8 bits a channel, and this picture has 16: write .png or .tif" in result.failed[0].reason
    assert not (tmp_path / f"out{suffix}").exists()


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["a.png"], "out.gif", r"out\.gif is no name for a picture that can be written: expected \.png or"),
        (["a.png", "b.png"], "o.png", r"o\.png is a picture's name, and there may be several results: name a folder"),
        (["*.png"], "o.webp", r"o\.webp is a picture's name, and there may be several"),
        (["."], "o.gif", r"o\.gif is a picture's name, and there may be several"),
    ],
)
def test_the_name_of_the_output_is_checked_before_the_work(tmp_path, monkeypatch, inputs, output, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        save_any(Path(name), noise(8, 8, 3))
    with pytest.raises(UsageError, match=message):
        upscale(inputs, Path(output), nearest(), UpscaleSettings(overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_is_no_picture_takes_nobodys_name(tmp_path):
    """The results of a.gif and a.jpg would be called as that of a.png is, and neither can be read."""
    frames = [Image.fromarray(noise(8, 8, 3) // n) for n in (1, 2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "a.jpg").write_text("words")
    save_any(tmp_path / "a.png", noise(8, 8, 3))
    result = upscale([str(tmp_path)], tmp_path / "out", nearest(), UpscaleSettings(suffix=".png"))
    assert [written.source.name for written in result.written] == ["a.png"]
    assert {refused.source.name for refused in result.failed} == {"a.gif", "a.jpg"}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    result = upscale([str(tmp_path / "x.png")], tmp_path / "out.png", nearest())
    assert result.failed[0].reason == "no regular file"
    save_any(tmp_path / "in.png", noise(8, 8, 3))
    assert len(upscale([str(tmp_path)], tmp_path / "out", nearest()).written) == 1
    os.mkfifo(tmp_path / "out.png")
    result = upscale([str(tmp_path / "in.png")], tmp_path / "out.png", nearest(), UpscaleSettings(overwrite=True))
    assert "is no regular file" in result.failed[0].reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_half_a_picture(tmp_path, monkeypatch, number):
    save_any(tmp_path / "in.png", noise(100, 60, 3))
    before, whole = signal.getsignal(signal.SIGTERM), nearest()

    def forward(x: torch.Tensor) -> torch.Tensor:
        if list(tmp_path.glob(".out.png.*.tmp")):
            os.kill(os.getpid(), number)
        return whole.forward(x)

    network = Network("nearest", 2, 8, "cpu", 1000, forward)
    monkeypatch.setattr(networks, "load_network", lambda *_: network)
    command = ["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--tile", "64"]
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        done = CliRunner().invoke(cli.app, command)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert (done.exit_code, done.stderr.splitlines()[-1].partition(";")[0]) == (1, "dtkd: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
    assert signal.getsignal(signal.SIGTERM) is before
