"""The page of any evaluation."""

import hashlib
import json
import math
import re
from base64 import b64decode, b64encode
from dataclasses import replace

import numpy as np
import pytest
from cache_support import NoisyBicubic, make_corpus, settings
from page_support import HOSTILE, Elements, evaluation, loads_nothing, page_data, texture, write_set
from PIL import Image

from pipeline import images
from pipeline.system.errors import DtkdError, UsageError
from student.evaluation.evaluate import EvaluationSettings
from student.report.evaluation import evaluate_to_page, render_evaluation
from student.report.pictures.spool import Spool
from student.report.provenance import tables
from teacher_cache.building.build import build_cache

FIDELITY = EvaluationSettings(metrics=("psnr_y", "ssim_y"), device="cpu")
NAMES = [*HOSTILE, *(f"photo {i}" for i in range(11))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Fourteen photos, of which two are not shown at full size, with names like elements everywhere."""
    folder = tmp_path_factory.mktemp("page") / "<b>set & 'co'"
    data, other = write_set(folder, NAMES, (128, 128))
    chosen = replace(FIDELITY, metrics=("psnr_y", "ssim_y", "piqe"))
    return evaluate_to_page([other], [data], folder / "out" / "page.html", chosen)


@pytest.fixture(scope="module")
def page(made):
    return made.path.read_text(encoding="utf-8")


def test_nothing_is_loaded_and_nothing_else_could_be(page):
    assert loads_nothing(page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy and "img-src data: blob:" in policy
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_names_stay_text(page):
    elements = Elements(page).found
    assert not [tag for tag, attributes in elements if {"onerror", "onclick"} & attributes.keys()]
    assert [tag for tag, attributes in elements if tag == "script"].count("script") == 1 + 1 + len(NAMES)
    assert "<b>set" not in page and "49 & " not in page
    assert page.count("<span>&lt;img src=x onerror=alert(1)&gt;</span>") == 2  # to pick, and in the table of all


def test_the_pictures_are_the_measured_ones(made, page):
    [about], records = page_data(page, "set-data"), page_data(page, "image-data")
    assert about["labels"] == ["bicubic", "other", "gt"]
    assert len(records) == len(NAMES)
    ids = [score.id for score in made.found.candidates[0].images]
    for name, record in zip(ids, records, strict=True):
        stored = images.decode_webp(b64decode(record["pictures"]["2"].removeprefix("data:image/webp;base64,")))
        np.testing.assert_array_equal(stored, images.load_rgb(made.path.parents[1] / "data" / "HR" / f"{name}.png"))
    assert sum("maps" in record for record in records) == 12
    assert (
        "12 of 14 images are shown at full size, the best and the worst by the difference of other to bicubic" in page
    )


def test_every_figure_stands_in_the_page(made, page):
    found = made.found
    text = re.sub(r"<[^>]+>", " ", page[page.index("<table") : page.index("</table>")])
    figures = page_data(page, "set-data")[0]["figures"]
    for place, row in enumerate(found.candidates):
        for metric, name in enumerate(found.metric_names):
            mean = row.mean(name)
            assert mean is None or (f"{mean:.4f}" if name == "ssim_y" else f"{mean:.2f}") in text
            for image, score in enumerate(row.images):
                shown = figures[image][metric][place]
                assert shown is None or float(shown) == pytest.approx(score.values[name], abs=0.006)
        for name, difference in found.differences(row).items():
            digits = 4 if name == "ssim_y" else 3
            told = f"{difference.value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
            assert told in text
    assert page.count('class="unclear"') == sum(
        not d.is_clear_of_zero for row in found.candidates for d in found.differences(row).values()
    )


def test_best_is_marked_only_where_it_is_clear(made, page):
    best = [made.found.clearly_best(name) for name in made.found.metric_names]
    assert page.count('class="best"') == len([row for row in best if row])
    assert len(page_data(page, "set-data")) == 1


def test_perception_is_drawn_against_distortion(page):
    [drawing] = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert drawing.count("<circle") == 2
    assert "psnr_y, dB" in drawing and "piqe, lower is better" in drawing


def test_the_result_knows_its_text_and_json(made):
    assert made.lines() == [*made.found.lines(), f"report: {made.path}"]
    assert json.loads(json.dumps(made.to_json())) == {"report": str(made.path), **made.found.to_json()}
    assert made.failure is None
    assert [p.name for p in made.path.parent.iterdir()] == ["page.html"]


class TestOtherData:
    def test_without_ground_truth_there_are_no_error_maps(self, tmp_path):
        path = tmp_path / "data" / "LR" / "photo.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(texture(0, 40, 50)).save(path)
        made = evaluate_to_page(
            ["bicubic"], [tmp_path / "data"], tmp_path / "p.html", replace(FIDELITY, metrics=("piqe",))
        )
        page = made.path.read_text()
        [record] = page_data(page, "image-data")
        assert "maps" not in record and list(record["pictures"]) == ["0"]
        assert "no-reference metrics" in page and "<svg" not in page
        assert "All images are shown at full size." in page

    def test_bicubic_alone(self, tmp_path):
        data, _ = write_set(tmp_path, ["a", "b"])
        page = evaluate_to_page(["bicubic"], [data], tmp_path / "p.html", FIDELITY).path.read_text()
        assert "<h1>bicubic on data</h1>" in page
        [about] = page_data(page, "set-data")
        assert (about["left"], about["right"], about["labels"]) == (0, 1, ["bicubic", "gt"])

    def test_several_sets_stand_one_below_the_other(self, tmp_path):
        sets = [
            write_set(tmp_path / name, [f"{name}{i}" for i in range(8)])[0].rename(tmp_path / f"{name} <i>")
            for name in "xy"
        ]
        made = evaluate_to_page(["bicubic"], sets, tmp_path / "p.html", FIDELITY)
        page = made.path.read_text()
        assert re.findall(r'<h2 id="set-\d-name">(.*?)</h2>', page) == ["x &lt;i&gt;", "y &lt;i&gt;"]
        assert len(page_data(page, "image-data")) == 16 and len(page_data(page, "set-data")) == 2
        assert page.count("6 of 8 images are shown at full size") == 2
        assert list(made.to_json()["sets"]) == ["x <i>", "y <i>"]
        overview = page[page.index("all-sets") : page.index('id="set-1"')]
        for found in made.found.sets.values():
            assert f"<b>{found.candidates[0].mean('psnr_y'):.2f}</b>" in overview
        ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
        assert len(ids) == len(set(ids))

    def test_large_photos_are_shown_in_part_and_it_is_said(self, tmp_path):
        data, other = write_set(tmp_path, ["large"], (1100, 1300))
        page = evaluate_to_page([other], [data], tmp_path / "p.html", FIDELITY).path.read_text()
        [record] = page_data(page, "image-data")
        assert re.match(r"part: \d+ x \d+ of 1300 x 1100 pixels, from \d+, \d+$", record["extent"])
        assert len(page) < 20_000_000

    def test_a_candidate_without_a_picture_and_one_of_another_size(self, tmp_path):
        """As a cache has samples without teacher output, and pictures of other programs may be smaller."""
        data, other = write_set(tmp_path, ["a", "b"])
        found = evaluate_to_page([other], [data], tmp_path / "p.html", FIDELITY).found
        (tmp_path / "spool").mkdir()
        spool = Spool(tmp_path / "spool")
        for image in ("a", "b"):
            for name, side in (("bicubic", 72), ("other", 60), ("gt", 72)):
                if (image, name) != ("b", "other"):
                    spool.add("data", name, image, texture(0, side, side))
        spool.finish()
        first, second = page_data(render_evaluation({"data": found}, spool).decode(), "image-data")
        assert list(first["pictures"]) == ["0", "1", "2"] and list(second["pictures"]) == ["0", "2"]
        assert first["extent"] == "72 x 72 pixels; other had 60 x 60 and is resized here"

    def test_a_damaged_image_is_told_and_the_rest_shown(self, tmp_path):
        data, other = write_set(tmp_path, ["a", "b", "c"])
        whole = (data / "HR" / "b.png").read_bytes()
        (data / "HR" / "b.png").write_bytes(whole[: len(whole) // 2])
        made = evaluate_to_page([other], [data], tmp_path / "p.html", FIDELITY)
        page = made.path.read_text()
        assert made.failure == "1 image could not be measured"
        assert "1 image could not be measured" in page and ">Left out<" in page
        assert len(page_data(page, "image-data")) == 2

    def test_held_out_samples_of_a_cache(self, tmp_path):
        build_cache(str(make_corpus(tmp_path / "photos")), tmp_path / "cache", NoisyBicubic(), settings(hold_out=2))
        made = evaluate_to_page(["bicubic"], [tmp_path / "cache"], tmp_path / "p.html", FIDELITY)
        assert page_data(made.path.read_text(), "set-data")[0]["labels"] == ["bicubic", "teacher", "gt"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Figures of thirty images, and pictures that are hard to store."""
    names = [f"i{i}" for i in range(30)]
    figures = {"bicubic": [20.0 + i % 7 for i in range(30)], "other": [21.0 + i % 5 for i in range(30)]}
    rows = {name: {"psnr_y": values} for name, values in figures.items()} | {"gt": {"psnr_y": [math.nan] * 30}}
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for index, image in enumerate(names):
        for place, name in enumerate(rows):
            spool.add("data", name, image, texture(3 * index + place, 200, 200))
    spool.finish()
    return {"data": evaluation(rows)}, spool


@pytest.mark.parametrize("budget", [3_000_000, 1_600_000, 600_000])
def test_a_page_keeps_its_budget(many, budget):
    """In worse quality, then in part."""
    page = render_evaluation(*many, budget)
    assert 0.5 * budget < len(page) < budget
    records = page_data(page.decode(), "image-data")
    large = [record for record in records if not record["extent"].startswith("part: 128 x 128")]
    assert len(large) == 12 or budget < 1_000_000
    assert len(records) >= 12
    assert "Large pictures are JPEG of quality" in page.decode()


def test_what_has_no_room_is_told(many):
    page = render_evaluation(*many, 330_000).decode()
    assert len(page) < 330_000
    assert re.search(r"The size of the page leaves \d+ images without pictures", page)
    assert len(page_data(page, "set-data")[0]["figures"]) == 30


class TestWhatIsThere:
    """Nothing that we did not make is replaced, and it is found out before the work: the data need not even exist."""

    def test_another_suffix_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match=r"is no name for a page: expected \.html or \.htm"):
            evaluate_to_page(["bicubic"], [tmp_path / "none"], tmp_path / "page.png", FIDELITY)

    def test_a_page_of_someone_else_is_never_replaced(self, tmp_path):
        (tmp_path / "p.html").write_text("<!doctype html><title>DTKD report: mine</title>")
        for overwrite in (False, True):
            with pytest.raises(DtkdError, match=r"p\.html exists and is not a page of an evaluation of ours"):
                evaluate_to_page(["bicubic"], [tmp_path / "none"], tmp_path / "p.html", FIDELITY, overwrite=overwrite)

    def test_an_earlier_page_is_replaced_when_asked(self, tmp_path):
        data, _ = write_set(tmp_path, ["a"])
        evaluate_to_page(["bicubic"], [data], tmp_path / "p.html", FIDELITY)
        with pytest.raises(DtkdError, match=r"p\.html exists: pass --overwrite"):
            evaluate_to_page(["bicubic"], [tmp_path / "none"], tmp_path / "p.html", FIDELITY)
        evaluate_to_page(["bicubic"], [data], tmp_path / "p.html", FIDELITY, overwrite=True)

    def test_a_failure_leaves_nothing(self, tmp_path):
        data, _ = write_set(tmp_path, ["a"])
        (data / "HR" / "a.png").write_bytes((data / "HR" / "a.png").read_bytes()[:-400])
        with pytest.raises(DtkdError, match=r"no image of .* could be measured"):
            evaluate_to_page(["bicubic"], [data], tmp_path / "out" / "p.html", FIDELITY)
        assert not list((tmp_path / "out").iterdir())


def test_provenance_names_everything_that_decides_a_figure(made):
    titles = {table.title: dict(table.rows) for table in tables(made.found, {"bicubic": "B", "other": "O", "gt": "G"})}
    assert titles["Protocol"]["scale"] == ["x4"] and titles["Candidates"]["O"][0].startswith("outputs, ")
    assert "BT.601" in titles["Metrics"]["psnr_y"][0]
    assert {"device", "python", "torch"} <= titles["Environment"].keys()
