"""The table of an evaluation."""

import math

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
    head, row, last = score_lines(evaluation(run=[20.0, 30.5]), {"run": "DTKD student"})
    assert head.split() == ["psnr_y", "^", "parameters", "precision", "s/image"]
    assert row == "DTKD student   25.2500       1,000       bf16    0.500"
    assert last == "2 images, x4, border 4; ^ higher is better, v lower"
    assert score_lines(evaluation(run=[20.0]), {})[-1].startswith("1 image, ")


def test_an_image_that_one_restored_exactly_is_in_nobodys_mean():
    lines = score_lines(evaluation(some=[20.0, math.inf, 30.0], none=[20.0, 21.0, 22.0]), {})
    assert [line.split()[1] for line in lines[1:3]] == ["25.0000", "21.0000"]
    assert "psnr_y is infinite on 1, which a candidate restored exactly: left out of all its means" in lines


def test_a_candidate_that_is_exact_everywhere_is_equal():
    lines = score_lines(evaluation(every=[math.inf] * 2, other=[20.0, 21.0]), {})
    assert [line.split()[1] for line in lines[1:3]] == ["equal", "-"]
