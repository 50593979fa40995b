"""The pictures of a page within its size: large ones, details and thumbnails, as the page's script takes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.system.words import plural
from student.evaluation.scores import Evaluation
from student.report.pictures.bands import BandMaps, band_maps, can_be_mapped
from student.report.pictures.choice import Choice, choose
from student.report.pictures.encoding import data_uri, decode, uri_length
from student.report.pictures.fitting import Stored, StoredImage, fit
from student.report.pictures.spool import Spool, SpooledImage

LARGE, FEWEST = 12, 4
"""Images at full size on a page; of a set at least, where there are many sets."""
PAGE_BYTES = 19_500_000
"""What a page may take, style, script and figures included."""
THUMBNAILS, DETAILS = 0.15, 0.25
"""Shares of the page."""

Key = tuple[str, str]  # names of set and image


@dataclass
class PageImage:
    """One image of a gallery.

    Attributes:
        id: its name.
        thumbnail: address of the whole image, small; None where the page has no room for it.
        record: what the script shows: its size, a remark, and the addresses of pictures and maps by the candidates'
            places in the table; None where there is nothing to show.
    """

    id: str
    thumbnail: str | None = None
    record: dict[str, Any] | None = None


@dataclass(frozen=True)
class Gallery:
    """The pictures of one set: what was chosen, all images, and in sentences how they are stored."""

    choice: Choice
    images: tuple[PageImage, ...]
    notes: tuple[str, ...]


def galleries(found: Mapping[str, Evaluation], spool: Spool, budget: int = PAGE_BYTES) -> dict[str, Gallery]:
    """The pictures of every set, by its name.

    Args:
        found: the sets by name.
        spool: their pictures.
        budget: bytes of the whole page.
    """
    count = max(FEWEST, LARGE // len(found))
    choices = {name: choose(evaluation, count) for name, evaluation in found.items()}
    page = _Page(found, spool, budget - _text_bytes(found))
    large = [(name, image) for name, c in choices.items() for image in c.shown if (name, image) in spool.images]
    rest = [key for key in page.images if key not in set(large)]
    rest.sort(key=lambda key: -abs(choices[key[0]].gains.get(key[1], 0.0)))  # the telling ones first
    page.add_thumbnails([*large, *rest], int(THUMBNAILS * budget))
    page.add_details(rest, int(DETAILS * budget))
    stored = page.add_large(large)
    notes = _storage_notes(stored)
    return {
        name: Gallery(choices[name], images, (*notes, *_gaps(images)))
        for name in found
        if (images := tuple(image for key, image in page.images.items() if key[0] == name))
    }


@dataclass
class _Page:
    """A page that fills with pictures; `left` are the bytes that it still has."""

    found: Mapping[str, Evaluation]
    spool: Spool
    left: int
    images: dict[Key, PageImage] = field(init=False)

    def __post_init__(self) -> None:
        ids = {name: dict.fromkeys(s.id for row in e.candidates for s in row.images) for name, e in self.found.items()}
        self.images = {(name, image): PageImage(image) for name in ids for image in ids[name]}

    def add_thumbnails(self, keys: Iterable[Key], share: int) -> None:
        for key in keys:
            if key in self.spool.images:
                uri = _address(self.spool.images[key].thumbnail)
                share -= len(uri)
                if share < 0:
                    return
                self.images[key].thumbnail = uri
                self.left -= len(uri)

    def add_details(self, keys: Iterable[Key], share: int) -> None:
        for key in keys:
            image = self.spool.images.get(key)
            if image:
                pictures = {name: path.read_bytes() for name, path in image.details.items()}
                size = sum(map(uri_length, pictures.values()))
                share -= size
                if share < 0:
                    return
                self.images[key].record = self._record(key, StoredImage(image.detail, pictures))
                self.left -= size

    def add_large(self, keys: Sequence[Key]) -> Stored | None:
        """The last to be added: they take what is left."""
        maps = {key: _maps(self.spool.images[key]) for key in keys}
        self.left -= sum(uri_length(m.picture) for found in maps.values() if found for m in found.maps.values())
        stored = fit([self.spool.images[key] for key in keys], self.left)
        for key, image in zip(keys, stored.images if stored else (), strict=False):
            self.images[key].record = self._record(key, image) | self._map_record(key, maps[key])
        return stored

    def _places(self, key: Key) -> dict[str, int]:
        return {row.name: place for place, row in enumerate(self.found[key[0]].candidates)}

    def _record(self, key: Key, stored: StoredImage) -> dict[str, Any]:
        image, places = self.spool.images[key], self._places(key)
        return {
            "width": stored.window.width,
            "height": stored.window.height,
            "extent": _extent(image, stored),
            "pictures": {places[name]: data_uri(data) for name, data in stored.pictures.items()},
        }

    def _map_record(self, key: Key, maps: BandMaps | None) -> dict[str, Any]:
        if maps is None:
            return {}
        places = self._places(key)
        return {
            "white": f"{maps.white:.0f}",
            "maps": {places[name]: data_uri(found.picture) for name, found in maps.maps.items()},
            "errors": {
                places[name]: "   ".join(f"{group} {mean:.2f}" for group, mean in found.means.items())
                for name, found in maps.maps.items()
            },
        }


def _address(path: Path) -> str:
    return data_uri(path.read_bytes())


def _maps(image: SpooledImage) -> BandMaps | None:
    if "gt" not in image.pictures:
        return None
    pictures = {name: decode(path.read_bytes()) for name, path in image.pictures.items()}
    gt = pictures.pop("gt")
    return band_maps(pictures, gt) if pictures and can_be_mapped(gt) else None


def _extent(image: SpooledImage, stored: StoredImage) -> str:
    """What is shown of an image, for people."""
    whole, window = f"{image.size.width} x {image.size.height}", stored.window
    if window[2:] == tuple(image.size):
        text = f"{whole} pixels"
    else:
        text = f"part: {window.width} x {window.height} of {whole} pixels, from {window.x}, {window.y}"
    for name, size in image.resized.items():
        text += f"; {name} had {size.width} x {size.height} and is resized here"
    return text


def _storage_notes(stored: Stored | None) -> list[str]:
    if stored is None:
        return []
    text = f"Large pictures are {stored.step.text}"
    if stored.step.lossless:
        return [f"{text}: every pixel as it was measured."]
    return [
        f"{text}, so that the page stays below 20 MB: at least {stored.psnr:.1f} dB from what was measured. "
        "Figures and error maps are of the pictures before."
    ]


def _gaps(images: Sequence[PageImage]) -> list[str]:
    bare, unseen = sum(not image.record for image in images), sum(not image.thumbnail for image in images)
    notes = [f"{plural(bare, 'image')} stand here without details" if bare else ""]
    notes.append(f"{plural(unseen, 'image')} without thumbnail" if unseen else "")
    text = ", ".join(filter(None, notes))
    return [f"For the size of the page, {text}."] if text else []


def _text_bytes(found: Mapping[str, Evaluation]) -> int:
    """What style, script, tables and figures take, about."""
    cells = sum(len(row.images) * (60 + 10 * len(e.metric_names)) for e in found.values() for row in e.candidates)
    images = sum(len(e.candidates[0].images) for e in found.values())
    return 100_000 + cells + 500 * images
