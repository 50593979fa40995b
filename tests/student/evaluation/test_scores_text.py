"""The table of an evaluation."""

import math

from student.evaluation.evaluate import CandidateScores, Evaluation, Score
from student.evaluation.metrics import Loaded, Metric
from student.evaluation.scores_text import score_lines


def evaluation(**figures):
    """Of candidates with the given psnr_y on the images 0, 1, ..."""
    metric = Metric("psnr_y", "gt", False, {}, lambda sr, reference, border: 0.0)
    candidates = tuple(
        CandidateScores(
            name, "student", None, 1000, tuple(Score(str(i), {"psnr_y": v}, 0.5) for i, v in enumerate(row))
        )
        for name, row in figures.items()
    )
    return Evaluation("data", "HR", 4, 4, "cpu", Loaded((metric,), ()), candidates, ())


def test_a_table_of_means():
    head, row, last = score_lines(evaluation(run=[20.0, 30.5]), {"run": "DTKD student"})
    assert head.split() == ["psnr_y", "^", "parameters", "s/image"]
    assert row == "DTKD student   25.2500       1,000    0.500"
    assert last == "2 images, x4, border 4; ^ higher is better, v lower"
    assert score_lines(evaluation(run=[20.0]), {})[-1].startswith("1 image, ")


def test_equal_pictures_do_not_make_a_mean_infinite():
    lines = score_lines(evaluation(some=[20.0, math.inf, 30.0], every=[math.inf] * 3, none=[20.0, 21.0, 22.0]), {})
    assert [line.split()[1] for line in lines[1:4]] == ["25.0000*", "equal", "21.0000"]
    assert lines[5] == "* without the images that equal their reference, where psnr is infinite"
    assert "inf " not in " ".join(lines)
