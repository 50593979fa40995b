"""The pictures of a page within its size: large ones, details and thumbnails, as the page's script takes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.system.words import listed, plural
from student.evaluation.scores import Evaluation
from student.report.pictures.bands import BandMaps, band_maps, can_be_mapped
from student.report.pictures.choice import Choice, choose
from student.report.pictures.encoding import DETAIL_STEPS, STEPS, Step, data_uri, decode, uri_length
from student.report.pictures.fitting import Stored, StoredImage, fit
from student.report.pictures.spool import DETAIL, Spool, SpooledImage

LARGE, FEWEST = 12, 4
"""Images at full size on a page; of a set at least, where there are many sets."""
PAGE_BYTES = 19_500_000
"""What a page may take, style, script and figures included."""
THUMBNAILS, DETAILS, MAPS = 0.15, 0.25, 0.15
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
    rest = [key for key in page.images if key in spool.images and key not in set(large)]
    rest.sort(key=lambda key: -abs(choices[key[0]].gains.get(key[1], 0.0)))  # the telling ones first
    page.add_thumbnails([*large, *rest], int(THUMBNAILS * budget))
    details = page.add_details(rest, int(DETAILS * budget))
    stored = page.add_large(large, int(MAPS * budget))
    made = {}
    for name in found:
        images = tuple(image for key, image in page.images.items() if key[0] == name)
        partly = len(images) > len(choices[name].shown)
        notes = (*(_detail_notes(details) if partly else ()), *_storage_notes(stored), *_gaps(images))
        made[name] = Gallery(choices[name], images, notes)
    return made


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
            uri = data_uri(self.spool.images[key].thumbnail.read_bytes())
            share -= len(uri)
            if share < 0:
                return
            self.images[key].thumbnail = uri
            self.left -= len(uri)

    def add_details(self, keys: Sequence[Key], share: int) -> Stored | None:
        spooled = [self.spool.images[key] for key in keys]
        details = [replace(image, kept=image.detail, pictures=image.details) for image in spooled]
        stored = _as_many(details, share, DETAIL_STEPS)
        for key, image in zip(keys, stored.images if stored else (), strict=False):
            self.images[key].record = self._record(key, image)
            self.left -= sum(map(uri_length, image.pictures.values()))
        return stored

    def add_large(self, keys: Sequence[Key], map_share: int) -> Stored | None:
        """The last to be added: they take what is left."""
        records = []
        for key in keys:
            maps = _maps(self.spool.images[key])
            size = sum(uri_length(found.picture) for found in maps.maps.values()) if maps else 0
            map_share -= size
            fits = map_share >= 0
            self.left -= size if fits else 0
            records.append(self._map_record(key, maps) if maps and fits else {"left_out": True} if maps else {})
        stored = _as_many([self.spool.images[key] for key in keys], self.left, STEPS)
        for key, image, record in zip(keys, stored.images if stored else (), records, strict=False):
            self.images[key].record = self._record(key, image) | record
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

    def _map_record(self, key: Key, maps: BandMaps) -> dict[str, Any]:
        places = self._places(key)
        return {
            "white": f"{maps.white:.0f}",
            "maps": {places[name]: data_uri(found.picture) for name, found in maps.maps.items()},
            "errors": {
                places[name]: "   ".join(f"{group} {mean:.2f}" for group, mean in found.means.items())
                for name, found in maps.maps.items()
            },
        }


def _as_many(images: Sequence[SpooledImage], budget: int, steps: Sequence[Step]) -> Stored | None:
    """All of them, or the first half, quarter, ..., as they have room."""
    stored = None
    while images and not stored:
        stored = fit(images, budget, steps)
        images = images[: len(images) // 2]
    return stored


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


def _detail_notes(stored: Stored | None) -> list[str]:
    text = f"Of the others stands here the square of {DETAIL} pixels with the most detail"
    return [f"{text}, as {stored.step.text}."] if stored else []


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
    missing = {
        "pictures": sum(not image.record for image in images),
        "thumbnail": sum(not image.thumbnail for image in images),
        "error maps": sum("left_out" in (image.record or {}) for image in images),
    }
    told = [f"{plural(count, 'image')} without {what}" for what, count in missing.items() if count]
    return [f"The size of the page leaves {listed(told)}."] if told else []


def _text_bytes(found: Mapping[str, Evaluation]) -> int:
    """What style, script, tables and figures take, about."""
    cells = sum(len(row.images) * (60 + 10 * len(e.metric_names)) for e in found.values() for row in e.candidates)
    images = sum(len(e.candidates[0].images) for e in found.values())
    return 100_000 + cells + 500 * images
