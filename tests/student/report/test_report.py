import re
from base64 import b64decode
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from cache_support import NoisyBicubic, make_corpus, settings
from page_support import Elements, loads_nothing, page_data

from pipeline import config, images
from pipeline.system.errors import DtkdError, UsageError
from student.evaluation.scores import Score
from student.report import curves
from student.report.figures import figures
from student.report.pair import DTKD, GT_ONLY, _headline
from student.report.write import write_report
from student.stream import open_cache
from student.training.loop import RunSettings, train
from teacher_cache.building.build import build_cache

BUDGET = [
    "model.preset=tiny", "train.steps=6", "train.batch_size=1", "train.patch=8", "train.log_every=1",
    "train.val_every=3", "train.device=cpu", "data.workers=0", "loss.schedule=constant",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with two held-out photos, a GT-only and a DTKD run, and their report."""
    folder = tmp_path_factory.mktemp("report")
    corpus = make_corpus(folder / "photos <with> & odd name")
    for photo in list(corpus.iterdir()):
        photo.rename(photo.with_name(f"<img src=x onerror=alert(1)>{photo.name}"))
    build_cache(str(corpus), folder / "cache", NoisyBicubic(), settings(hold_out=2))
    train(folder / "cache", folder / "gt", config.load(RunSettings, None, [*BUDGET, "loss.lambda_max=0"]))
    train(folder / "cache", folder / "dtkd", config.load(RunSettings, None, BUDGET))
    return write_report(folder / "cache", folder / "dtkd", folder / "out" / "report.html", gt_only=folder / "gt")


@pytest.fixture(scope="module")
def page(made):
    return made.path.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(page):
    assert loads_nothing(page)


def test_the_pictures_are_the_cached_ones_bit_for_bit(made, page):
    [about], records = page_data(page, "set-data"), page_data(page, "image-data")
    assert about["labels"] == ["LR (bicubic)", GT_ONLY, DTKD, "teacher", "GT"]
    held_out = open_cache(made.path.parents[1] / "cache", "val")
    for index, record in enumerate(records):
        pictures = [
            images.decode_webp(b64decode(record["pictures"][str(place)].removeprefix("data:image/webp;base64,")))
            for place in range(5)
        ]
        np.testing.assert_array_equal(pictures[3], held_out[index].teacher)
        np.testing.assert_array_equal(pictures[4], held_out[index].gt)
        assert len(record["maps"]) == 4
    assert len(records) == 2


def test_every_figure_of_the_evaluation_stands_in_the_table(made, page):
    found = made.evaluation
    assert found.metric_names == ["psnr_y", "ssim_y", "dss", "piqe", "teacher_psnr_y"]
    text = re.sub(r"<[^>]+>", " ", page[page.index("<table") : page.index("</table>")])
    for candidate in found.candidates:
        for name in found.metric_names:
            mean = candidate.mean(name)
            if mean is not None:
                assert (f"{mean:.4f}" if name == "ssim_y" else f"{mean:.2f}") in text, (candidate.name, name)
    assert made.ratio == made.teacher_seconds / made.student_seconds


def test_curves_show_both_runs_every_group_and_lambda(page):
    drawn = re.findall(r"<svg.*?</svg>", page[page.index('id="curves"') :], re.DOTALL)
    assert len(drawn) == 3
    texts = [" ".join(ElementTree.fromstring(svg).itertext()) for svg in drawn]
    assert GT_ONLY in texts[0]
    assert DTKD in texts[0]
    assert all(group in texts[1] for group in ("low", "mid", "high", "lambda"))
    assert "psnr_y" in texts[2]


def test_ids_of_the_curves_do_not_collide(page):
    ids = re.findall(r'\bid="([^"]+)"', "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)))
    assert len(ids) == len(set(ids))


def test_names_are_escaped_and_settings_differ_visibly(page):
    assert "photos &lt;with&gt; &amp; odd name" in page
    assert "<with>" not in page
    assert re.search(r'<code>loss\.lambda_max</code></th><td class="wrap">0\.0</td><td class="wrap">1\.0</td>', page)
    assert "started from scratch" in page


def test_a_photo_that_is_named_like_an_element_stays_text(page):
    elements = Elements(page).found
    assert not [tag for tag, attributes in elements if "onerror" in attributes or attributes.get("src") == "x"]
    assert page.count("<span>&lt;img src=x onerror=alert(1)&gt;") == 4  # to pick, and in the table of all images


def test_where_all_photos_are_exact_the_page_says_so_instead_of_a_mean(made):
    """As for flat pictures, which bicubic restores exactly: their psnr_y is infinite."""
    found = made.evaluation
    exact = {"psnr_y": tuple(score.id for score in found.candidates[0].images)}
    report = replace(
        made, evaluation=replace(found, candidates=tuple(replace(c, exact=exact) for c in found.candidates))
    )
    assert re.fullmatch(r"The distilled student: [\d.]+ times faster than its teacher", _headline(report))
    assert _headline(replace(report, teacher_seconds=None)) == "The distilled student"
    assert "left out of all its means" in figures(report.evaluation, report.labels).note


@pytest.mark.parametrize(
    ("photos", "gain", "expected"),
    [
        (12, 0.5, "The distilled student: 0.50 dB above bicubic"),
        (9, 0.5, "The distilled student"),
        (12, 0.0, "The distilled student"),
    ],
)
def test_the_headline_claims_what_enough_photos_show(made, photos, gain, expected):
    """Of differences that vary around the gain by .2 dB."""
    found, values = made.evaluation, [20.0 + i for i in range(photos)]
    figures = {"baseline": values, "student": [v + gain + 0.2 * (-1) ** i for i, v in enumerate(values)]}

    def scored(candidate):
        rows = figures.get(candidate.role, values)
        scores = tuple(Score(str(i), {"psnr_y": value}, None) for i, value in enumerate(rows))
        return replace(candidate, images=scores, exact={})

    many = replace(found, candidates=tuple(map(scored, found.candidates)))
    headline = _headline(replace(made, evaluation=many, teacher_seconds=None))
    assert headline == expected


def test_without_a_gt_only_run_the_rest_stands(made, tmp_path):
    folder = made.path.parents[1]
    alone = write_report(folder / "cache", folder / "dtkd", tmp_path / "alone.html")
    assert [alone.labels[c.name] for c in alone.evaluation.candidates] == ["LR (bicubic)", DTKD, "teacher", "GT"]


def test_refuses_a_folder_that_is_no_run(made, tmp_path):
    folder = made.path.parents[1]
    with pytest.raises(DtkdError, match="is no run folder"):
        write_report(folder / "cache", tmp_path / "nowhere", tmp_path / "r.html")
    with pytest.raises(DtkdError, match=r"config\.toml"):
        write_report(folder / "cache", tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


class TestCurves:
    def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_told(self, tmp_path):
        log = tmp_path / "log.jsonl"
        log.write_text('{"step": 1, "total": 0.5}\n{"st')
        assert curves.read_curves(tmp_path).series["total"].values == (0.5,)
        log.write_text('{"st\n{"step": 1, "total": 0.5}\n')
        with pytest.raises(DtkdError, match="damaged"):
            curves.read_curves(tmp_path)
        log.unlink()
        with pytest.raises(DtkdError, match=r"no log\.jsonl"):
            curves.read_curves(tmp_path)

    def test_a_moving_mean_keeps_length_and_level(self):
        assert curves._moving_mean((1.0,) * 9, 2) == pytest.approx((1.0,) * 9)
        assert curves._moving_mean((0.0, 3.0, 0.0), 1) == pytest.approx((1.5, 1.0, 1.5))
        assert curves._moving_mean((1.0, 2.0), 0) == (1.0, 2.0)


def test_a_report_without_pyiqa_has_the_other_figures(made, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyiqa", None)
    folder = made.path.parents[1]
    report = write_report(folder / "cache", folder / "dtkd", tmp_path / "r.html")
    assert report.evaluation.metric_names == ["psnr_y", "ssim_y", "dss", "teacher_psnr_y"]
    assert "piqe is missing: pyiqa cannot be imported" in report.path.read_text()
    assert replace(report, teacher_seconds=None).ratio is None


class TestWhatIsThere:
    """Nothing that we did not make is replaced; all of it is found before the work, so a cache need not even exist."""

    @pytest.mark.parametrize("name", ["photo.png", "report", "page.html.bak"])
    def test_another_suffix_is_refused(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(UsageError, match=r"is no name for a report: expected \.html or \.htm"):
            write_report(tmp_path / "cache", tmp_path / "run", tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_bytes() == b"mine"

    def test_a_page_of_someone_else_is_never_replaced(self, tmp_path):
        (tmp_path / "index.html").write_text("<!doctype html><title>My garden</title>")
        for overwrite in (False, True):
            with pytest.raises(DtkdError, match=r"index\.html exists and is not a report of ours"):
                write_report(tmp_path / "cache", tmp_path / "run", tmp_path / "index.html", overwrite=overwrite)
        (tmp_path / "folder.html").mkdir()
        with pytest.raises(DtkdError, match=r"folder\.html is a folder"):
            write_report(tmp_path / "cache", tmp_path / "run", tmp_path / "folder.html")

    def test_an_earlier_report_is_replaced_when_asked(self, made):
        folder, before = made.path.parents[1], made.path.read_bytes()
        with pytest.raises(DtkdError, match=r"report\.html exists: pass --overwrite"):
            write_report(folder / "cache", folder / "dtkd", made.path)
        assert made.path.read_bytes() == before
        try:
            write_report(folder / "cache", folder / "dtkd", made.path, overwrite=True)
            assert GT_ONLY not in made.path.read_text()
        finally:
            made.path.write_bytes(before)


def test_a_student_of_another_cache_is_refused(made, tmp_path):
    """Its training photos may be the ones that are held out here."""
    folder = made.path.parents[1]
    build_cache(str(make_corpus(tmp_path / "photos")), tmp_path / "cache", NoisyBicubic(), settings(hold_out=2, seed=1))
    with pytest.raises(DtkdError, match=r"dtkd was not trained on the samples of .*cache: it may have seen the photos"):
        write_report(tmp_path / "cache", folder / "dtkd", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
