"""Pictures of every mode, decoded for upscaling: grey, alpha and 16 bits stay, EXIF and colour profile too.

H W height and width, C channels: 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA.

Pillow has no 16-bit colour mode, but its decoders read such files (PNG, and TIFF of any compression) and keep one byte
of each sample: the high one, or, told that the samples have the other byte order, the low one. Decoding twice gives all
16 bits, at the speed of C. Of the other libraries pypng takes 1.2 s a megapixel, tifffile reads no LZW without another
package, and OpenCV is not among our dependencies (measured: LOG.md, 2026-11-23).
"""

import io
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

from pipeline import images
from pipeline.images import ImageError
from student.upscaling.png import Metadata

_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_TURNS = {
    None: lambda a: a,
    Image.Transpose.FLIP_LEFT_RIGHT: lambda a: a[:, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda a: a[::-1],
    Image.Transpose.ROTATE_90: lambda a: np.rot90(a, 1),
    Image.Transpose.ROTATE_180: lambda a: np.rot90(a, 2),
    Image.Transpose.ROTATE_270: lambda a: np.rot90(a, 3),
    Image.Transpose.TRANSPOSE: lambda a: a.swapaxes(0, 1),
    Image.Transpose.TRANSVERSE: lambda a: np.rot90(a, 2).swapaxes(0, 1),
}
# EXIF's first directory is TIFF's own: what describes the layout of the old file says nothing about the new one.
_LAYOUT_TAGS = {254, 255, *range(256, 270), *range(273, 285), 296, *range(317, 326), *range(330, 348), *range(512, 533)}
_LAYOUT_TAGS |= {700, 33723, 34377, 34665, 34675, 34853, 37724, 40965}
_SIZE_TAGS = {ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, ExifTags.Base.ExifInteroperabilityOffset}


class Picture(NamedTuple):
    """A decoded picture, the right way up."""

    pixels: np.ndarray
    """uint8 or uint16 (H, W, C)."""
    metadata: Metadata


def read_picture(path: Path) -> Picture:
    """Decode a picture without loss; palette, CMYK and other colour spaces become RGB.

    Raises:
        ImageError: what `pipeline.images` refuses, an animation or several pages, or 32 bits a channel.
    """
    with images.opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # in MPO, the JPEG of phones, the others are previews or depth
            raise ImageError(path, f"animated or of several pages ({frames}): save them as single pictures first")
        turn, raw_mode = images.turn_of(image), _raw_mode(image)
        metadata = _metadata(image)
        if ";16" in raw_mode and image.mode in ("RGB", "RGBA"):
            pixels = _sixteen_bit_colour(path, raw_mode)
        else:
            pixels, metadata = _decoded(image, metadata, path)
    pixels = _TURNS[turn](pixels.reshape(*pixels.shape[:2], -1))
    return Picture(np.ascontiguousarray(pixels), metadata)


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, as Pillow calls it: `RGB;16B`."""
    tiles = getattr(image, "tile", None)
    return _mode_of(tiles[0]) if tiles else ""


def _mode_of(tile: tuple) -> str:
    return str(tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0])


def _sixteen_bit_colour(path: Path, raw_mode: str) -> np.ndarray:
    if raw_mode == "LA;16B":  # 32 bits a pixel, as 8-bit RGBA has them
        both = _decoded_as(path, "RGBA")
        return both.view(">u2").astype(np.uint16)
    if raw_mode[:-1] not in ("RGB;16", "RGBA;16"):
        raise ImageError(path, f"16-bit samples of an unusual kind ({raw_mode}): save it as a PNG first")
    high, low = _decoded_as(path, raw_mode), _decoded_as(path, raw_mode[:-1] + _OTHER_BYTE[raw_mode[-1]])
    return high.astype(np.uint16) << 8 | low


def _decoded_as(path: Path, raw_mode: str) -> np.ndarray:
    with images.opened(path) as image:
        tiles = []
        for tile in image.tile:  # pyright: ignore[reportAttributeAccessIssue]
            args = raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:])
            tiles.append(tile._replace(args=args))
        image.tile = tiles  # pyright: ignore[reportAttributeAccessIssue]
        return np.asarray(image)


def _decoded(image: Image.Image, metadata: Metadata, path: Path) -> tuple[np.ndarray, Metadata]:
    """Pixels of everything but 16-bit colour."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return np.asarray(image).astype(np.uint16), metadata
    if image.mode in ("I", "F"):
        raise ImageError(path, "32 bits a channel: save it with 8 or 16 bits")
    if image.mode == "CMYK":
        return np.asarray(_from_cmyk(image, metadata.icc)), metadata._replace(icc=None)
    grey = image.mode in ("1", "L", "LA", "La")
    wanted = ("LA" if grey else "RGBA") if image.has_transparency_data else ("L" if grey else "RGB")
    return np.asarray(image if image.mode == wanted else image.convert(wanted)), metadata


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    """To sRGB, by the picture's own profile where it has a usable one."""
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except ImageCms.PyCMSError:
            pass  # a profile that is damaged or not for CMYK: as without one
    return image.convert("RGB")


def _metadata(image: Image.Image) -> Metadata:
    dpi = image.info.get("dpi") or (0, 0)
    horizontal, vertical = float(dpi[0]), float(dpi[-1])
    valid = 0 < horizontal < 1e6 and 0 < vertical < 1e6
    return Metadata(image.info.get("icc_profile") or None, _exif(image), (horizontal, vertical) if valid else None)


def _exif(image: Image.Image) -> bytes | None:
    """EXIF without what the upscaled picture no longer has: orientation, pixel sizes, the thumbnail."""
    try:
        old, new = image.getexif(), Image.Exif()
        for tag, value in old.items():
            if tag not in _LAYOUT_TAGS:
                new[tag] = value
        for pointer in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            inner = {tag: value for tag, value in old.get_ifd(pointer).items() if tag not in _SIZE_TAGS}
            if inner:
                new[pointer] = inner
        return new.tobytes().removeprefix(b"Exif\0\0") if len(new) else None
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return None  # damaged EXIF is no reason not to upscale
