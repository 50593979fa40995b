"""A page: one HTML file with pictures, style and script inside, which loads nothing and runs no other script.

Templates stand in `assets/`, Jinja2, which escape whatever they are given. A policy inside the page forbids every
request, and every script but ours, which it knows by its hash: also if some text were not escaped, it could do nothing.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from student.evaluation.scores import Evaluation
from student.report.figures import Figures, decimals, figures, metric_label, per_image, signed
from student.report.pictures.choice import Choice
from student.report.pictures.gallery import Gallery, PageImage
from student.report.scatter import Scatter, scatters

STYLES = ("page.css", "figures.css", "viewer.css")
SCRIPTS = ("tables.js", "zoom.js", "viewer.js", "gallery.js")


class Pick(NamedTuple):
    """An image that can be opened."""

    place: int
    image: PageImage
    gain: str


class GalleryView(NamedTuple):
    """The images of one set as a page shows them."""

    choice: Choice
    images: Sequence[PageImage]
    strips: list[tuple[str, list[Pick]]]
    text: str


class SetView(NamedTuple):
    """One set of images as a page shows it."""

    name: str
    anchor: str
    lead: str
    figures: Figures
    scatters: list[Scatter]
    gallery: GalleryView
    data: dict[str, Any]
    """What the script knows of the gallery besides the pictures."""


def set_view(
    name: str,
    index: int,
    lead: str,
    found: Evaluation,
    labels: Mapping[str, str],
    gallery: Gallery,
    ours: str | None = None,
) -> SetView:
    """Everything that the page shows of a set.

    Args:
        name: of the set.
        index: its place on the page.
        lead: what it is, a sentence.
        found: its figures.
        labels: what the page calls a candidate, by its name.
        gallery: its pictures.
        ours: name of the candidate that the page is about, where it is about one.
    """
    names, choice = [row.name for row in found.candidates], gallery.choice
    data = {
        "labels": [labels[candidate] for candidate in names],
        "metrics": found.metric_names,
        "figures": per_image(found),
        "left": names.index(choice.baseline or choice.candidate),
        "right": names.index(choice.candidate if choice.baseline else names[-1]),
        "difference": choice.baseline is not None,
    }
    return SetView(
        name,
        f"set-{index}",
        lead,
        figures(found, labels, ours),
        scatters(found, labels),
        _gallery_view(found, labels, gallery),
        data,
    )


def _gallery_view(found: Evaluation, labels: Mapping[str, str], gallery: Gallery) -> GalleryView:
    choice, metric = gallery.choice, metric_label(gallery.choice.metric.name)
    digits = decimals(found, choice.metric.name)
    places = {image.id: place for place, image in enumerate(gallery.images)}
    sign = -1 if choice.metric.lower_is_better else 1

    def strip(ids: Sequence[str]) -> list[Pick]:
        shown = [(image, choice.gains.get(image)) for image in ids if gallery.images[places[image]].record]
        return [
            Pick(places[image], gallery.images[places[image]], "" if gain is None else signed(sign * gain, digits))
            for image, gain in shown
        ]

    who = labels[choice.candidate]
    if choice.baseline:
        titles = (f"largest gains of {who}", f"smallest gains, or losses, of {who}", "others")
        by = f"by the difference of {who} to {labels[choice.baseline]} in {metric}"
    else:
        titles, by = ("best", "worst", "others"), f"by {metric} of {who}"
    groups = zip(titles, (choice.best, choice.worst, choice.others), strict=True)
    strips = [(f"{title}: {metric}", picks) for title, ids in groups if (picks := strip(ids))]
    large = len(choice.shown)
    text = "All images are shown at full size"
    if large < len(gallery.images):
        text = f"{large} of {len(gallery.images)} images are shown at full size, the best and the worst {by}"
    return GalleryView(choice, gallery.images, strips, " ".join((f"{text}.", *gallery.notes)))


def render(template: str, **context: Any) -> bytes:
    """A page from a template of `assets/` and what it shows."""
    loader = PackageLoader("student.report", "assets")
    pages = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    script = _assets(SCRIPTS)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = pages.get_template(template).render(
        style=Markup(_assets(STYLES)), script=Markup(script), script_hash=digest, **context
    )
    return text.encode()


def is_page(path: Path, kind: str) -> bool:
    """Whether a file is a page of ours, `kind` its first word: `report` or `evaluation`."""
    with open(path, "rb") as file:
        return f"<title>DTKD {kind}: ".encode() in file.read(1000)


def _assets(names: tuple[str, ...]) -> str:
    folder = resources.files("student.report") / "assets"
    return "\n" + "".join((folder / name).read_text(encoding="utf-8") for name in names)
