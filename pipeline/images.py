"""Image files in and out: every kind of photo becomes uint8 RGB (H, W, 3), or an `ImageError` of one line.

Pillow decodes; of several frames or pages the first counts; colour profiles are not applied. 16-bit grey is scaled to 8
bits by rounding; of 16-bit RGB Pillow keeps the high byte, at most one level below.
"""

import io
import os
import stat
import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes

if TYPE_CHECKING:
    from torch import Tensor

Rgb = NDArray[np.uint8]
"""A picture, (H, W, 3)."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
"""File names that count as images, in lower case."""
MAX_PIXELS = 2**28
"""Largest image that is decoded: 16,384 x 16,384, or 0.8 GB as RGB."""
MAX_BYTES = 2**31
"""Largest file that is opened, in bytes: MAX_PIXELS of 16-bit RGB, uncompressed. Some decoders read a file whole."""
WEBP_MAX_SIDE = 16383
RECENT_PIXELS = 2**26
"""Pixels (3 bytes each) of decoded images that `RecentImages` keeps."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # JPEG opens MPO, the JPEG of phones, too; EPS and the like stay shut
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNS = {  # EXIF orientation -> what sets it right
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]

# One limit for the whole process: Pillow's own would refuse 180 megapixels. What exceeds it is an ImageError here, and
# so is damage that matters: Pillow's warnings about size and metadata would only print between the lines of a progress.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageError(DtkdError):
    """An image that cannot be used: `path` says which, `reason` why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        """Keep both as the exception's arguments, so that it survives pickling between processes."""
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        """The line that a user reads."""
        return f"{self.path}: {self.reason}"


class Size(NamedTuple):
    """Width and height in pixels, the right way up."""

    width: int
    height: int


_Key = TypeVar("_Key")
_Entry = TypeVar("_Entry")


class RecentImages(Generic[_Key, _Entry]):
    """What was decoded last, up to RECENT_PIXELS but one entry at least: several tiles in a row are of one photo.

    Threads may share it: they decode at the same time, and wait for an entry that another one is decoding.
    """

    def __init__(self, load: Callable[[_Key], _Entry], pixels: Callable[[_Entry], int]) -> None:
        """Keep nothing yet; `load` decodes, `pixels` says how much an entry takes."""
        self._load, self._pixels = load, pixels
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, Future[_Entry]] = OrderedDict()

    def get(self, key: _Key) -> _Entry:
        """The entry, loaded where it is not kept any more; raises what `load` raises."""
        with self._lock:
            entry = self._kept.get(key)
            if mine := entry is None:
                entry = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if mine:
            self._fill(key, entry)
        return entry.result()

    def _fill(self, key: _Key, entry: "Future[_Entry]") -> None:
        try:
            entry.set_result(self._load(key))
        except BaseException as error:  # for those who wait, too; whoever asks next tries again
            entry.set_exception(error)
        with self._lock:
            if entry.exception() and self._kept.get(key) is entry:
                del self._kept[key]
            while len(self._kept) > 1 and self._held() > RECENT_PIXELS:
                self._kept.popitem(last=False)

    def _held(self) -> int:
        return sum(
            self._pixels(entry.result()) for entry in self._kept.values() if entry.done() and not entry.exception()
        )


def probe(path: str | Path) -> Size:
    """Size of an image after its EXIF orientation, read from the header.

    Raises:
        ImageError: unreadable, no image, or more than MAX_PIXELS.
    """
    with opened(path) as image:
        width, height = image.size
        return Size(height, width) if turn_of(image) in _SIDEWAYS else Size(width, height)


def load_rgb(path: str | Path) -> Rgb:
    """Decode an image to uint8 RGB (H, W, 3), the right way up; transparent parts lie over white.

    Raises:
        ImageError: unreadable, no image, damaged, cut off, 32 bits a channel, or more than MAX_PIXELS.
    """
    with opened(path) as image:
        turn = turn_of(image)  # before decoding, as in probe: Pillow then knows the same metadata
        image.load()
        return _to_rgb(image if turn is None else image.transpose(turn), path)


def save(path: str | Path, image: Rgb) -> None:
    """Write an image (H, W, 3) as PNG, lossless WebP or JPEG (quality 95, 4:4:4) by the suffix; whole or not at all.

    Raises:
        DtkdError: another suffix, the folder is missing or not writable, too large for WebP.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".webp":
        data = encode_webp(image)
    elif suffix == ".png":
        data = _encode(image, "PNG")
    elif suffix in (".jpg", ".jpeg"):
        data = _encode(image, "JPEG", quality=95, subsampling=0)
    else:
        raise DtkdError(f"{path}: cannot write images as {suffix or 'a file without suffix'}: use .png, .webp or .jpg")
    try:
        atomic_write_bytes(path, data)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise DtkdError(f"cannot write {path} ({error.strerror}): choose another folder") from error


def encode_webp(image: Rgb) -> bytes:
    """Encode an image (H, W, 3) as lossless WebP, with the fastest settings, denser than PNG all the same.

    Raises:
        DtkdError: a side above WebP's 16,383 pixels.
    """
    if max(image.shape[:2]) > WEBP_MAX_SIDE:
        raise DtkdError(f"WebP holds at most {WEBP_MAX_SIDE} pixels a side, got {image.shape[1]}x{image.shape[0]}")
    return _encode(image, "WEBP", lossless=True, quality=0, method=0, exact=True)


def decode_webp(data: bytes) -> Rgb:
    """Decode WebP bytes to uint8 RGB (H, W, 3).

    Raises:
        ImageError: other or damaged data, or more than MAX_PIXELS.
    """
    with opened(io.BytesIO(data), "WebP data", ("WEBP",)) as image:
        return np.array(image.convert("RGB"))


def to_tensor(image: Rgb) -> "Tensor":
    """Image (H, W, 3) to a float32 tensor (3, H, W) in [0, 1]."""
    import torch

    planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes).div_(255)


def to_image(tensor: "Tensor") -> Rgb:
    """Tensor (3, H, W), any float type and device, to an image (H, W, 3): clamped to [0, 1] and rounded."""
    levels = tensor.detach().float().clamp(0, 1).mul(255).round().byte()
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


@contextmanager
def opened(
    file: str | Path | io.BytesIO, name: str | Path | None = None, formats: tuple[str, ...] = _FORMATS
) -> Iterator[Image.Image]:
    """Open an image with Pillow, its pixels not read yet, for the block.

    Raises:
        ImageError: whatever the decoder raised, at opening or in the block; no regular file; or more than MAX_PIXELS or
            MAX_BYTES.
    """
    name = name or str(file)
    try:
        if not isinstance(file, io.BytesIO):
            _check_file(file, name)
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            yield image
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"too large, at most {MAX_PIXELS} pixels can be used ({error})") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(name, "not a PNG, JPEG, WebP, TIFF or BMP image") from error
    except OSError as error:  # from the file system with a code, from Pillow with a text
        reason = f"cannot be read ({error.strerror})" if error.strerror else f"damaged ({error})"
        raise ImageError(name, " ".join(reason.split())) from error
    except Exception as error:  # decoders raise nearly anything on damaged data: SyntaxError, struct.error, IndexError
        raise ImageError(name, " ".join(f"damaged ({error or type(error).__name__})".split())) from error


def _check_file(path: str | Path, name: str | Path) -> None:
    """Refuse pipes and devices, because opening a pipe waits for somebody to write into it, and too large files."""
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ImageError(name, "no regular file")
    if status.st_size > MAX_BYTES:
        raise ImageError(name, f"too large, at most {MAX_BYTES} bytes can be used ({status.st_size})")


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What sets an opened image upright, from metadata that precedes the pixels; damaged metadata count as none."""
    if image.format == "TIFF" or (image.format == "PNG" and not {"exif", "xmp"} & image.info.keys()):
        return None  # Pillow turns TIFF by itself, and would decode a PNG in search of trailing EXIF
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return None


def _to_rgb(image: Image.Image, path: str | Path) -> Rgb:
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG"):  # Pillow 11 opens some PNG as I
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError(path, "32 bits a channel: save it with 8 or 16 bits")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(image.convert("RGB"))


def _encode(image: Rgb, kind: str, **options: int) -> bytes:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, f"{image.dtype} {image.shape}"
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, kind, **options)
    return file.getvalue()
