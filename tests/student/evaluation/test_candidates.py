"""Candidates other than networks: finished pictures, and teachers at work."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cache_support import NoisyBicubic, make_corpus
from typer.testing import CliRunner

import cli
from pipeline import images
from pipeline.filters import bicubic
from pipeline.system.errors import DtkdError, UsageError
from student.evaluation.evaluate import EvaluationSettings, evaluate
from student.evaluation.examples import open_examples

FIDELITY = EvaluationSettings(metrics=("psnr_y", "ssim_y"))
SHARED = Path(__file__).parents[4] / "shared/data"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """HR/ with real photos whose sides the scale divides."""
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "HR")
    return folder


@pytest.fixture
def outputs(photos, tmp_path):
    """Bicubic pictures, as another program would have written them."""
    for example in open_examples(photos):
        path = tmp_path / f"{example.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.save(path, bicubic(example.lr, 4))
    return tmp_path


def scores(found, name):
    row = next(candidate for candidate in found.candidates if candidate.name == name)
    return {score.id: score.values for score in row.images}


def test_finished_pictures_are_measured_as_what_is_computed_here(photos, outputs):
    found = evaluate([f"images:{outputs}"], photos, FIDELITY)
    assert scores(found, outputs.name) == scores(found, "bicubic")
    assert [candidate.role for candidate in found.candidates] == ["baseline", "outputs", "gt"]
    assert found.candidates[1].seconds is None


def test_a_missing_picture_is_named_before_anything_is_measured(photos, outputs):
    gone = next(outputs.rglob("*.png"))
    gone.unlink()
    with pytest.raises(DtkdError, match=f"has no picture for 1 image of the data: {gone.stem}$"):
        evaluate([f"images:{outputs}"], photos, FIDELITY, on_progress=lambda event: pytest.fail("it began"))


def test_one_picture_does_not_serve_two_images(photos, tmp_path):
    photo = next((photos / "HR").iterdir())
    for folder in ("HR/a", "HR/b", "outputs"):
        (tmp_path / folder).mkdir(parents=True)
        images.save(tmp_path / folder / "same.png", images.load_rgb(photo))
    with pytest.raises(DtkdError, match=r"same\.png would serve a/same and b/same"):
        evaluate([f"images:{tmp_path / 'outputs'}"], tmp_path, FIDELITY)


def test_a_picture_of_another_size_is_named_and_left_out_for_all(photos, outputs):
    wrong = next(outputs.rglob("*.png"))
    images.save(wrong, np.zeros((8, 8, 3), np.uint8))
    found = evaluate([f"images:{outputs}"], photos, FIDELITY)
    assert [(item.id, "8x8" in item.reason) for item in found.skipped] == [(wrong.stem, True)]
    assert len(scores(found, "bicubic")) == len(scores(found, outputs.name)) > 0


def test_a_teacher_restores_the_images_with_noise_from_their_names(photos):
    teacher = NoisyBicubic()
    first, again = (evaluate(["teacher:mine"], photos, FIDELITY, {"mine": teacher}) for _ in range(2))
    assert scores(first, "mine") == scores(again, "mine") != scores(first, "bicubic")
    assert first.candidates[1].role == "teacher" and first.candidates[1].seconds
    with pytest.raises(DtkdError, match="teacher:other: hand over"):
        evaluate(["teacher:other"], photos, FIDELITY, {"mine": teacher})


def test_the_baseline_is_one_of_the_candidates(photos, outputs):
    how = replace(FIDELITY, baseline=outputs.name)
    found = evaluate([f"images:{outputs}"], photos, how)
    assert found.differences(found.candidates[0])["psnr_y"] == (0, 0, 0) and not found.differences(found.candidates[1])
    for wrong in ("gt", "tiny-x4"):
        with pytest.raises(UsageError, match=f"baseline must be one of the candidates, bicubic, .* got {wrong}"):
            evaluate([f"images:{outputs}"], photos, replace(FIDELITY, baseline=wrong))


def test_the_command_loads_the_teacher(photos):
    command = ["evaluate", "teacher:embedded-bicubic", "--data", str(photos), "--metrics", "psnr_y", "--limit", "1"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0 and "embedded-bicubic" in done.stdout
    refused = CliRunner().invoke(cli.app, [*command[:1], "teacher:imbedded", *command[2:]])
    assert refused.exit_code == 2 and "imbedded" in refused.stderr


@pytest.mark.skipif(not (SHARED / "eval/RealSR100").is_dir(), reason="needs RealSR100 and OSEDiff's outputs beside it")
def test_published_outputs_have_the_figures_of_an_independent_judge():
    outputs, data = SHARED / "teacher_outputs/osediff_realsr20", SHARED / "eval/RealSR100"
    how = EvaluationSettings(metrics=("psnr_y", "ssim_y"), crop_border=0, limit=20)
    row = evaluate([f"images:{outputs}"], data, how).candidates[1]
    assert row.mean("psnr_y") == pytest.approx(24.6784, abs=1e-3)
    assert row.mean("ssim_y") == pytest.approx(0.7237, abs=1e-3)
