import math

import pytest
from page_support import evaluation

from student.report.pictures.choice import choose

FLAT = [20.0] * 6


def test_a_half_with_the_largest_gains_and_a_half_with_the_smallest():
    found = evaluation({"bicubic": {"psnr_y": FLAT}, "ours": {"psnr_y": [21.0, 19, 25, 20, 17, 22]}})
    choice = choose(found, 4)
    assert (choice.best, choice.worst, choice.others) == (("i2", "i5"), ("i4", "i1"), ())
    assert (choice.candidate, choice.baseline, choice.metric.name) == ("ours", "bicubic", "psnr_y")
    assert choice.gains["i4"] == -3


def test_gains_of_a_metric_that_is_better_when_lower():
    rows = {
        "bicubic": {"psnr_y": FLAT, "lpips": [0.5] * 6},
        "ours": {"psnr_y": FLAT, "lpips": [0.6, 0.1, 0.5, 0.9, 0.3, 0.4]},
    }
    choice = choose(evaluation(rows, ("psnr_y", "lpips"), lower=("lpips",)), 4)
    assert choice.metric.name == "lpips"
    assert (choice.best, choice.worst) == (("i1", "i4"), ("i3", "i0"))


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (("psnr_y", "ssim_y"), "psnr_y"),
        (("ssim_y", "gmsd"), "ssim_y"),
        (("psnr_y", "niqe", "dists"), "dists"),
        (("psnr_y", "niqe"), "niqe"),
        (("teacher_psnr_y", "psnr_y"), "psnr_y"),
    ],
)
def test_a_perceptual_metric_decides_where_there_is_one(metrics, expected):
    rows = {name: dict.fromkeys(metrics, FLAT) for name in ("bicubic", "ours")}
    assert choose(evaluation(rows, metrics, no_reference=("niqe",)), 4).metric.name == expected


@pytest.mark.parametrize(
    ("order", "roles", "expected"),
    [
        (("bicubic", "a", "b", "gt"), {}, "b"),
        (("bicubic", "a", "b", "teacher", "gt"), {"teacher": "teacher", "b": "outputs"}, "a"),
        (("bicubic", "a", "gt"), {"a": "outputs"}, "a"),
        (("bicubic", "gt"), {}, "bicubic"),
    ],
)
def test_the_last_student_is_the_subject(order, roles, expected):
    choice = choose(evaluation({name: {"psnr_y": FLAT} for name in order}, roles=roles), 4)
    assert choice.candidate == expected
    assert choice.baseline == (None if expected == "bicubic" else "bicubic")


def test_the_baseline_is_never_the_subject():
    found = evaluation({"bicubic": {"psnr_y": FLAT}, "a": {"psnr_y": FLAT}, "b": {"psnr_y": FLAT}}, baseline="b")
    assert (choose(found, 4).candidate, choose(found, 4).baseline) == ("a", "b")


def test_a_metric_of_the_whole_set_cannot_decide():
    rows = {name: {"psnr_y": FLAT} for name in ("bicubic", "ours")}
    assert choose(evaluation(rows, ("fid", "psnr_y"), lower=("fid",)), 4).metric.name == "psnr_y"


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_few_images_are_all_shown_once(images):
    found = evaluation({"bicubic": {"psnr_y": FLAT[:images]}, "ours": {"psnr_y": [20.0 + i for i in range(images)]}})
    assert sorted(choose(found, 12).shown) == [f"i{i}" for i in range(images)]


def test_images_without_a_gain_come_last():
    """Restored exactly, by one or by both, or not measured."""
    ours, base = [math.inf, math.inf, 21.0, math.nan, 22.0], [20.0, math.inf, 20.0, 20.0, 20.0]
    found = evaluation({"bicubic": {"psnr_y": base}, "ours": {"psnr_y": ours}})
    choice = choose(found, 4)
    assert (choice.best, choice.worst, choice.others) == (("i4",), ("i2",), ("i0", "i1"))
