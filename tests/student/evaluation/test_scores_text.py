"""The table of an evaluation."""

import math
from dataclasses import replace

from student.evaluation.metrics import Loaded, Metric
from student.evaluation.scores import CandidateScores, Evaluation, Score, exact_images
from student.evaluation.scores_text import score_lines


def evaluation(**figures):
    """Of candidates with the given psnr_y on the images 0, 1, ..."""
    metric = Metric("psnr_y", "gt", False, {}, lambda sr, reference, border: 0.0)
    rows = {name: tuple(Score(str(i), {"psnr_y": v}, 0.5) for i, v in enumerate(row)) for name, row in figures.items()}
    exact = exact_images([score for row in rows.values() for score in row])
    candidates = tuple(CandidateScores(name, "student", None, 1000, "bf16", row, exact) for name, row in rows.items())
    return Evaluation("data", "HR", 4, 4, "cpu", Loaded((metric,), ()), candidates, ())


def test_a_table_of_means():
    head, row, last, few = score_lines(evaluation(run=[20.0, 30.5]), {"run": "DTKD student"})
    assert head.split() == ["psnr_y", "^", "parameters", "GFLOPs", "MB", "precision", "s/image"]
    assert row == "DTKD student   25.2500       1,000       -   -       bf16    0.500"
    assert last == "2 images, x4, protocol classical, border 4; ^ higher is better, v lower"
    assert few == "2 images are few: other images may give other figures"
    assert score_lines(evaluation(run=[20.0]), {})[-1].startswith("1 image, ")


def test_an_image_that_one_restored_exactly_is_in_nobodys_mean():
    lines = score_lines(evaluation(some=[20.0, math.inf, 30.0], none=[20.0, 21.0, 22.0]), {})
    assert [line.split()[1] for line in lines[1:3]] == ["25.0000", "21.0000"]
    assert "psnr_y is infinite on 1, which a candidate restored exactly: left out of all its means" in lines


def test_a_candidate_that_is_exact_everywhere_is_equal():
    lines = score_lines(evaluation(every=[math.inf] * 2, other=[20.0, 21.0]), {})
    assert [line.split()[1] for line in lines[1:3]] == ["equal", "-"]


def test_differences_to_the_baseline_are_paired_and_say_how_sure_they_are():
    hard_and_easy = [20.0, 40.0] * 6
    found = replace(
        evaluation(
            base=hard_and_easy,
            better=[value + 0.5 for value in hard_and_easy],
            other=[value + (-1) ** (i // 2) for i, value in enumerate(hard_and_easy)],
        ),
        baseline="base",
    )
    lines = score_lines(found, {"better": "mine", "base": "BASE"})
    at = lines.index("difference to BASE, image by image, with 95 % intervals; ~ where one holds zero:")
    assert lines[at + 2].split(maxsplit=1) == ["mine", "+0.5000 [+0.5000, +0.5000]"]
    assert lines[at + 3].startswith("other  +0.0000 [-0.") and lines[at + 3].endswith("]~")
    assert found.clearly_best("psnr_y") is None
    told = found.to_json()["candidates"]
    assert told[0]["difference"] == {} and told[1]["difference"] == {"psnr_y": [0.5, 0.5, 0.5]}
    assert told[1]["interval"]["psnr_y"][0] < told[1]["mean"]["psnr_y"] < told[1]["interval"]["psnr_y"][1]


def test_the_best_is_who_is_surely_better_than_all_others():
    rows = [20.0, 40.0] * 6
    found = evaluation(bicubic=rows, best=[value + 0.5 for value in rows], gt=[value + 9 for value in rows])
    best = found.clearly_best("psnr_y")
    assert best is not None and best.name == "best"


def test_few_images_say_that_they_are_few_and_nobody_is_best_on_them():
    found = evaluation(bicubic=[20.0, 21.0], best=[22.0, 23.0])
    assert "2 images are few: other images may give other figures" in score_lines(found, {})
    assert found.clearly_best("psnr_y") is None
    assert not [line for line in score_lines(evaluation(bicubic=[20.0], one=[21.0]), {}) if "difference" in line]
