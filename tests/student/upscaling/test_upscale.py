import inspect
import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from skimage import data
from spandrel.architectures.Compact import Compact
from swinir_oracle import SMALL, oracle, randomised
from typer.testing import CliRunner

import cli
from pipeline.filters import resize_bicubic
from pipeline.system.errors import DtkdError, UsageError
from student import networks
from student.model import SwinIR, build
from student.model.weight_files import save_student
from student.networks import Network, load_network
from student.upscaling.memory import fit_into_memory
from student.upscaling.png import Metadata
from student.upscaling.reading import read_picture
from student.upscaling.upscale import UpscaleSettings, upscale
from student.upscaling.writing import Form, write_picture

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def nearest(scale: int = 2) -> Network:
    """An upscaler whose result is known exactly."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    return Network("nearest", scale, 8, "cpu", 1000, forward)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, 0).repeat(2, 1)


def save_any(path: Path, pixels: np.ndarray) -> None:
    form = Form(pixels.shape[1], pixels.shape[0], pixels.shape[2], pixels.dtype)
    write_picture(path, form, [pixels], Metadata())


def upscale_one(source: Path, target: Path, **settings) -> np.ndarray:
    result = upscale([str(source)], target, nearest(), UpscaleSettings(**settings))
    assert not result.failed, result.failed
    return read_picture(target).pixels


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_alpha_and_16_bits_survive(tmp_path, suffix, dtype, channels):
    if (suffix, dtype, channels) == (".tif", np.uint16, 2):
        pytest.skip("Pillow reads no 16-bit grey TIFF with alpha")
    pixels = noise(75, 61, channels, dtype=dtype)
    save_any(tmp_path / f"in{suffix}", pixels)
    result = upscale_one(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", tile=64, overlap=16)
    np.testing.assert_array_equal(result, doubled(pixels))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name, options", [("a.png", []), ("a.tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5])])  # LZW
def test_16_bit_files_of_others_are_read_and_ours_by_others(tmp_path, channels, name, options):
    pixels = noise(40, 30, channels, dtype=np.uint16)
    theirs = pixels if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]]
    cv2.imwrite(str(tmp_path / name), theirs, options)
    np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)
    save_any(tmp_path / f"b{name}", pixels)
    read = cv2.imread(str(tmp_path / f"b{name}"), cv2.IMREAD_UNCHANGED).reshape(40, 30, channels)
    np.testing.assert_array_equal(read, theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_result_is_upright_and_says_so(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "in.png", exif=exif)
    with Image.open(tmp_path / "in.png") as image:
        from PIL import ImageOps

        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upscale_one(tmp_path / "in.png", tmp_path / "out.png"), doubled(upright))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_profile_and_resolution_are_kept(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Zeiss", 6
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: 0.25, ExifTags.Base.ExifImageWidth: 30}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    picture = Image.fromarray(data.astronaut()[:64, :80])
    picture.save(tmp_path / "in.jpg", exif=exif, icc_profile=ICC, dpi=(300, 300))
    upscale_one(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.size == (128, 160) and image.info["icc_profile"] == ICC
        if suffix != ".webp":
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        kept = image.getexif()
        assert kept[ExifTags.Base.Make] == "Zeiss"
        assert kept.get(ExifTags.Base.Orientation, 1) == 1
        inner = kept.get_ifd(ExifTags.IFD.Exif)
        assert inner[ExifTags.Base.ExposureTime] == 0.25 and ExifTags.Base.ExifImageWidth not in inner
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "PA"])
def test_other_modes_become_grey_or_rgb(tmp_path, mode):
    picture = Image.fromarray(data.astronaut()[:32, :40])
    picture = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    name = "in.png" if mode in ("1", "P") else "in.tif"
    if mode == "PA":
        buffer = io.BytesIO()
        picture.convert("RGBA").quantize(64).save(buffer, "PNG")
        (tmp_path / "in.png").write_bytes(buffer.getvalue())
        name = "in.png"
    else:
        picture.save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        wanted = np.asarray(opened.convert({"1": "L", "PA": "RGBA"}.get(mode, "RGB")))
    result = upscale_one(tmp_path / name, tmp_path / "out.png")
    np.testing.assert_array_equal(result, doubled(wanted.reshape(32, 40, -1)))


def test_alpha_goes_through_the_network_by_itself(tmp_path):
    pixels = np.concatenate([data.astronaut()[:48, :56], noise(48, 56, 1)], axis=2)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    student = randomised(SwinIR(SMALL["light"])).eval()
    save_student(student, tmp_path / "s.safetensors", {})
    network = load_network(str(tmp_path / "s.safetensors"), "cpu")
    assert not upscale([str(tmp_path / "in.png")], tmp_path / "out.png", network).failed
    result = read_picture(tmp_path / "out.png").pixels

    def restored(rgb: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        with torch.no_grad():
            return student(x)[0]

    colour = (restored(pixels[..., :3]).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    alpha = (restored(np.repeat(pixels[..., 3:], 3, axis=2)).mean(0).clamp(0, 1) * 255).round().byte().numpy()
    assert np.abs(result[..., :3].astype(int) - colour).max() <= 1
    assert np.abs(result[..., 3].astype(int) - alpha).max() <= 1


def test_tiled_equals_whole_away_from_the_overlaps(tmp_path):
    torch.manual_seed(0)
    network_ = Network("tiny", 4, 8, "cpu", 1000, build("tiny").eval())
    Image.fromarray(data.astronaut()[100:260, 100:300]).save(tmp_path / "in.png")
    for name, tile in (("whole", 256), ("tiled", 128)):
        done = upscale([str(tmp_path / "in.png")], tmp_path / f"{name}.png", network_, UpscaleSettings(tile=tile))
        assert not done.failed
    whole, tiled = (read_picture(tmp_path / f"{name}.png").pixels.astype(int) for name in ("whole", "tiled"))
    tiling = fit_into_memory(network_, 200, 160, 128, 32).tiling
    assert tiling.count == 4
    keep = np.ones(whole.shape[:2], bool)
    for axis, mask in ((tiling.rows, keep), (tiling.columns, keep.T)):
        for start, end in zip(axis.starts[1:], [s + axis.tile for s in axis.starts], strict=False):
            mask[start * 4 : end * 4] = False
    difference = np.abs(whole - tiled).max(axis=2)
    assert difference[keep].max() <= 1, f"max {difference[keep].max()} in {(difference[keep] > 1).sum()} pixels"
    assert difference.max() <= 4, f"in the overlaps: {difference.max()}"


def test_odd_files_are_named_and_the_others_done(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    save_any(folder / "a.png", noise(16, 16, 3))
    save_any(folder / "deep" / "z.webp", noise(16, 16, 3))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("these are words")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    frames = [Image.fromarray(noise(8, 8, 3) // n) for n in (1, 2)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moves.webp", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    Image.new("L", (10_000, 10_000)).save(folder / "huge.png")
    result = upscale([str(folder)], out, nearest(4))
    assert [w.target for w in result.written] == [out / "a.png", out / "deep" / "z.webp"]
    assert all(w.target.exists() for w in result.written)
    reasons = {failed.source.name: failed.reason for failed in result.failed}
    assert set(reasons) == {"empty.png", "text.png", "cut.png", "moves.gif", "moves.webp", "pages.tif", "huge.png"}
    assert reasons["text.png"] == reasons["empty.png"] == "not a PNG, JPEG, WebP, TIFF or BMP image"
    assert "damaged" in reasons["cut.png"]
    assert "animated" in reasons["moves.webp"] and "several pages" in reasons["pages.tif"]
    assert "40000x40000 = 1600 megapixels, more than 1100" in reasons["huge.png"]
    assert all("\n" not in reason for reason in reasons.values())
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["a.png", "z.webp"]  # and nothing half-written


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (2, 1), (2, 4), (3, 3), (4, 3)])
def test_a_smaller_scale_reduces_the_networks_result(tmp_path, dtype, scale, channels):
    pixels = noise(75, 61, channels, dtype=dtype)
    save_any(tmp_path / "in.png", pixels)
    settings = UpscaleSettings(tile=64, overlap=16, scale=scale)
    result = upscale([str(tmp_path / "in.png")], tmp_path / "out.png", nearest(4), settings)
    assert (result.written[0].width, result.written[0].height) == (61 * scale, 75 * scale)
    whole = pixels.repeat(4, 0).repeat(4, 1).astype(np.float64)
    expected = np.clip(np.rint(resize_bicubic(whole, 75 * scale, 61 * scale)), 0, np.iinfo(dtype).max)
    written = read_picture(tmp_path / "out.png").pixels
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("scale", [0, 5])
def test_a_scale_that_the_network_does_not_reach_is_refused(tmp_path, scale):
    save_any(tmp_path / "in.png", noise(8, 8, 3))
    with pytest.raises(UsageError, match=f"scale must be 1 to 4, that of nearest, got {scale}"):
        upscale([str(tmp_path / "in.png")], tmp_path / "out.png", nearest(4), UpscaleSettings(scale=scale))


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
    np.testing.assert_allclose(load_network(str(tmp_path / "official.pth"), "cpu")(x), expected, atol=1e-4)

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_24_megapixels_stay_within_3_gigabytes(tmp_path):
    """All the way of a 6000x4000 photo to 24000x16000.

    The light network restores one tile in 25, which costs the memory that all would; the others are only repeated.
    """
    code = """
        import dataclasses, itertools, resource, sys
        from pathlib import Path
        import numpy as np
        import torch
        from PIL import Image
        from skimage import data
        from student.model import build
        from student.networks import load_network
        from student.upscaling.upscale import upscale
        from student.model.weight_files import save_student

        folder = Path(sys.argv[1])
        photo = np.tile(data.astronaut(), (8, 12, 1))[:4000, :6000]
        Image.fromarray(photo).save(folder / "in.png", compress_level=1)
        save_student(build("light"), folder / "light.safetensors", {})
        light, count = load_network(str(folder / "light.safetensors"), "cpu"), itertools.count()

        def forward(x):
            return x.repeat_interleave(4, 2).repeat_interleave(4, 3) if next(count) % 25 else light.forward(x)

        network = dataclasses.replace(light, forward=forward)
        result = upscale([str(folder / "in.png")], folder / "out.png", network)
        assert not result.failed, result.failed
        print(next(count), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tiles, gigabytes = map(float, done.stdout.split())
    assert tiles > 100 and gigabytes < 3.0, f"{tiles} tiles, {gigabytes} GB"
    with open(tmp_path / "out.png", "rb") as file:
        header = file.read(24)
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (24000, 16000)
