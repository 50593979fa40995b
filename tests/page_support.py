"""Small sets to evaluate and show, names like elements, and the parts of a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from student.evaluation.metrics import Loaded, Metric
from student.evaluation.scores import CandidateScores, Evaluation, Score, exact_images

HOSTILE = ("<img src=x onerror=alert(1)>", "a</script><script>alert(2)", "{{ 7 * 7 }} & \"quoted' `name`")


def texture(seed, height=72, width=72):
    """A picture with some structure, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(height, width, 3)), (1 + seed % 3, 1, 0))
    return np.clip(128 + 160 * noise, 0, 255).astype(np.uint8)


def write_set(folder: Path, names, size=(72, 72)):
    """HR pictures by their names, and outputs of another system, which errs more on every next one."""
    for index, name in enumerate(names):
        image = texture(index, *size)
        blurred = gaussian_filter(image.astype(np.float32), (0.3 + 0.1 * index, 0.5, 0))
        for root, picture in ((folder / "data" / "HR", image), (folder / "other", blurred)):
            path = root / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(picture).astype(np.uint8)).save(path)
    return folder / "data", f"images:{folder / 'other'}"


def evaluation(values, metrics=("psnr_y",), lower=(), no_reference=(), roles=None, baseline="bicubic"):
    """An evaluation of figures `values[candidate][metric]`, one an image."""
    loaded = tuple(Metric(m, None if m in no_reference else "gt", m in lower, {}, lambda *_: 0.0) for m in metrics)
    rows = {}
    for name, figures in values.items():
        count = len(next(iter(figures.values())))
        rows[name] = tuple(Score(f"i{i}", {m: figures[m][i] for m in figures}, None) for i in range(count))
    exact = exact_images([score for scores in rows.values() for score in scores])
    roles = {"bicubic": "baseline", "gt": "gt"} | (roles or {})
    candidates = tuple(
        CandidateScores(name, roles.get(name, "student"), None, None, None, scores, exact)
        for name, scores in rows.items()
    )
    return Evaluation("data", "HR", 4, 4, "cpu", Loaded(loaded, ()), candidates, (), None, baseline)


def page_data(page, kind):
    """JSON blocks of a page: `set-data` or `image-data`."""
    blocks = re.findall(rf'<script type="application/json" class="{kind}"[^>]*>(.*?)</script>', page, re.DOTALL)
    return [json.loads(block) for block in blocks]


class Elements(HTMLParser):
    """Every element of a page with its attributes; complains about elements that are not closed."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "use", "path", "rect"})

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def loads_nothing(page):
    """Whether no element names anything outside the page."""
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    return "@import" not in page and not re.search(r"url\((?!#)", page)
