import io
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from skimage import data
from swinir_oracle import SMALL, randomised
from upscale_support import ICC, doubled, nearest, noise, save_any, upscale_one

from pipeline.filters import resize_bicubic
from pipeline.system.errors import UsageError
from student.model import SwinIR, build
from student.model.weight_files import save_student
from student.networks import Network, load_network
from student.upscaling.memory import fit_into_memory
from student.upscaling.reading import read_picture
from student.upscaling.upscale import UpscaleSettings, upscale


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
    network = load_network(str(tmp_path / "s.safetensors"), "cpu", "fp32")
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
