"""Image files as users have them: odd modes, odd metadata, damage."""

import io
import os
import pickle
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pipeline import images
from pipeline.images import ImageError, Size, load_rgb, probe
from pipeline.system.errors import DtkdError


def photo(h: int = 24, w: int = 32) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 7 % 256, y * 9 % 256, (x + y) * 4 % 256], axis=2).astype(np.uint8)


def store(path, image, **options):
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    """A PNG from its parts; `pixels` is the compressed stream."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def header(width: int, height: int) -> bytes:
    """A 1-bit PNG of any size whose pixels are missing."""
    return png(width, height, 1, 0, zlib.compress(b""))


def png16(levels: np.ndarray) -> bytes:
    """A 16-bit PNG, grey (H, W) or RGB (H, W, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(levels.shape[1], levels.shape[0], 16, 0 if levels.ndim == 2 else 2, zlib.compress(rows))


@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES))
def test_plain_images(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    path = store(tmp_path / f"a{suffix}", photo(), **options)
    assert probe(path) == Size(32, 24)
    image = load_rgb(path)
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8 and image.flags.writeable
    if suffix not in (".jpg", ".jpeg"):
        assert np.array_equal(image, photo())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = store(
        tmp_path / f"a{suffix}", photo(), exif=exif, **({"quality": 100} if suffix in (".jpg", ".webp") else {})
    )
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    upright = load_rgb(path)
    assert np.array_equal(upright, expected)
    assert probe(path) == (upright.shape[1], upright.shape[0]) == ((24, 32) if orientation > 4 else (32, 24))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_is_ignored(tmp_path):
    path = store(tmp_path / "a.jpg", photo(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert probe(path) == Size(32, 24)
    assert load_rgb(path).shape == (24, 32, 3)


def test_grey(tmp_path):
    grey = photo()[..., 0]
    for image, name in ((Image.fromarray(grey), "l.png"), (Image.fromarray(grey).convert("1"), "1.png")):
        rgb = load_rgb(store(tmp_path / name, image))
        assert np.array_equal(rgb, np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2))


def test_transparency_lies_over_white(tmp_path):
    rgba = np.dstack([photo(), np.full((24, 32), 255, np.uint8)])
    rgba[:12, :, 3] = 0
    rgba[12:14, :, 3] = 128
    rgb = load_rgb(store(tmp_path / "rgba.png", rgba))
    assert (rgb[:12] == 255).all()
    assert np.array_equal(rgb[14:], photo()[14:])
    assert np.abs(rgb[12:14].astype(int) - np.rint(photo()[12:14] * (128 / 255) + 127)).max() <= 1
    grey_alpha = np.stack([photo()[..., 0], rgba[..., 3]], axis=2)
    assert (load_rgb(store(tmp_path / "la.png", Image.fromarray(grey_alpha, "LA")))[:12] == 255).all()


def test_palette_with_transparency(tmp_path):
    palette = Image.fromarray(photo()).quantize(16)
    solid = load_rgb(store(tmp_path / "solid.png", palette))
    assert np.array_equal(solid, np.asarray(palette.convert("RGB")))
    clear = load_rgb(store(tmp_path / "clear.png", palette, transparency=3))
    where = np.asarray(palette) == 3
    assert where.any() and (clear[where] == 255).all() and np.array_equal(clear[~where], solid[~where])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    levels = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    colour = np.stack([levels, levels[::-1], levels[:, ::-1]], axis=2)
    if suffix == ".png":
        (tmp_path / "g.png").write_bytes(png16(levels))
        (tmp_path / "c.png").write_bytes(png16(colour))
    else:
        tifffile.imwrite(tmp_path / "g.tif", levels)
        tifffile.imwrite(tmp_path / "big.tif", levels, byteorder=">")
        tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb")
        assert np.array_equal(load_rgb(tmp_path / "big.tif"), load_rgb(tmp_path / "g.tif"))
    grey = load_rgb(tmp_path / f"g{suffix}")
    assert np.array_equal(grey[..., 0], np.rint(levels / 257)) and (np.ptp(grey, axis=2) == 0).all()
    # Pillow reads 16-bit colour as its high bytes: scaled, at most one level below the nearest
    assert np.array_equal(load_rgb(tmp_path / f"c{suffix}"), colour >> 8)


def test_thirty_two_bits_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", np.ones((9, 9), np.float32))
    with pytest.raises(ImageError, match="32 bits a channel"):
        load_rgb(tmp_path / "f.tif")


def test_cmyk(tmp_path):
    cmyk = Image.fromarray(photo()).convert("CMYK")
    rgb = load_rgb(store(tmp_path / "a.jpg", cmyk, quality=95))
    assert np.abs(rgb.astype(int) - photo()).mean() < 6


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_the_first_frame_counts(tmp_path, suffix):
    frames = [Image.fromarray(np.full((10, 12, 3), level, np.uint8)) for level in (40, 200)]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert probe(path) == Size(12, 10)
    assert (load_rgb(path) == 40).all()


def gif() -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(photo()), Image.fromarray(photo()[::-1].copy())]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG"),
        (b"This is text.\n", "not a PNG"),
        (gif(), "not a PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a PNG"),
        (header(30_000, 30_000), "too large, at most 268435456 pixels"),
        (header(20_000, 20_000), "too large, at most 268435456 pixels"),
        (header(2**31 - 1, 2**31 - 1), "too large, at most 268435456 pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not a PNG"),
    ],
)
def test_unusable_files(tmp_path, data, reason):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for read in (probe, load_rgb):
        with pytest.raises(ImageError, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_full_png_of_900_megapixels_is_refused_unread(tmp_path):
    """Valid to its last byte; decoding it would take seconds and 2.7 GB."""
    rows = zlib.compressobj(1)
    line = b"\0" + bytes(30_000 // 8)
    data = b"".join(rows.compress(line * 1000) for _ in range(30)) + rows.flush()
    path = tmp_path / "huge.png"
    path.write_bytes(png(30_000, 30_000, 1, 0, data))
    with pytest.raises(ImageError, match="too large"):
        load_rgb(path)


def test_below_the_limit_pillow_does_not_interfere(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(header(16_000, 16_000))  # 256 megapixels: Pillow's own limit is 179
    assert probe(path) == Size(16_000, 16_000)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_files_that_are_cut_off(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = store(tmp_path / f"a{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ImageError):
        load_rgb(path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_flipped_bytes_never_give_anything_but_an_image_error(tmp_path, suffix):
    path = store(tmp_path / f"a{suffix}", photo(40, 40))
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, min(len(data), 400), 3):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        for read in (probe, load_rgb):
            try:
                read(path)
            except ImageError as error:
                assert "\n" not in str(error)


def test_missing_folder_and_forbidden(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        load_rgb(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="Is a directory"):
        probe(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    for read in (probe, load_rgb):
        with pytest.raises(ImageError, match="no regular file"):
            read(tmp_path / "pipe.png")
    path = store(tmp_path / "a.png", photo())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ImageError, match="Permission denied"):
        probe(path)


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ImageError("a/b.png", "damaged")))
    assert (str(error), error.path, error.reason) == ("a/b.png: damaged", "a/b.png", "damaged")


# Writing


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_save_and_load(tmp_path, suffix):
    images.save(tmp_path / f"a{suffix}", photo()[:, ::-1])
    assert np.array_equal(load_rgb(tmp_path / f"a{suffix}"), photo()[:, ::-1])
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_save_jpeg(tmp_path):
    images.save(tmp_path / "a.jpg", photo())
    assert np.abs(load_rgb(tmp_path / "a.jpg").astype(int) - photo()).mean() < 4


def test_save_refuses(tmp_path):
    with pytest.raises(DtkdError, match=r"cannot write images as \.gif"):
        images.save(tmp_path / "a.gif", photo())
    with pytest.raises(DtkdError, match="choose another folder"):
        images.save(tmp_path / "none" / "a.png", photo())
    with pytest.raises(DtkdError, match="at most 16383 pixels a side, got 16384x1"):
        images.save(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_webp_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    data = images.encode_webp(noise)
    assert np.array_equal(images.decode_webp(data), noise)
    assert data == images.encode_webp(noise)
    for bad in (data[:-20], b"", b"RIFF", store_png(noise)):
        with pytest.raises(ImageError, match="WebP data: "):
            images.decode_webp(bad)


def store_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_tensors_and_images():
    import torch

    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([every, every[::-1], every.T], axis=2)
    tensor = images.to_tensor(image)
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.from_numpy(image).permute(2, 0, 1).float() / 255)
    assert np.array_equal(images.to_image(tensor), image)
    assert np.array_equal(images.to_image(tensor.double() + 0.4 / 255), image)
    assert images.to_image(torch.tensor([-3.0, 7.0, 0.5]).view(3, 1, 1)).ravel().tolist() == [0, 255, 128]


# Pictures that threads share -----------------------------------------------------------------------------------------


def test_threads_that_want_one_picture_decode_it_once(tmp_path):
    path = store(tmp_path / "a.png", photo())
    arrived, loads = threading.Barrier(3), []

    def load(path):
        loads.append(path)
        return load_rgb(path)

    def want(_):
        arrived.wait(30)
        return recent.get(path)

    recent = images.RecentImages(load, lambda picture: picture[..., 0].size)
    with ThreadPoolExecutor(3) as pool:
        first, second, third = pool.map(want, range(3))
    assert loads == [path] and first is second is third
    assert np.array_equal(first, photo())


def test_pictures_that_fail_are_tried_again_and_old_ones_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "RECENT_PIXELS", 2 * photo()[..., 0].size)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    loads = []
    recent = images.RecentImages(
        lambda path: loads.append(path.name) or load_rgb(path), lambda picture: picture[..., 0].size
    )
    for _ in range(2):
        with pytest.raises(ImageError):
            recent.get(paths[0])
    for path in paths:
        store(path, photo())
    for index in (0, 1, 0, 2, 0, 1):
        assert np.array_equal(recent.get(paths[index]), photo())
    assert loads == ["a.png", "a.png", "a.png", "b.png", "c.png", "b.png"], "the least recent one goes first"
