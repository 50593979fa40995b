"""Validation by several measures: figures are the evaluation's own, the best follows one of them, nothing is silent."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from safetensors.torch import load_file
from tiny_cache import write_cache

from pipeline import config
from pipeline.images import save, to_image, to_tensor
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from student import checkpoint
from student.evaluation import metrics
from student.evaluation.evaluate import EvaluationSettings, evaluate
from student.evaluation.libraries import packages
from student.model.weight_files import read_metadata
from student.stream import open_cache
from student.training import validation
from student.training.loop import train
from student.training.run import BEST
from student.training.settings import RunSettings
from student.training.state import Best, read_state

BASE = (
    "model.preset=tiny", "train.steps=4", "train.batch_size=2", "train.patch=8", "train.lr=2e-3", "train.lr_warmup=0",
    "train.save_every=2", "train.val_every=1", "train.log_every=2", "train.device=cpu", "data.workers=0",
    "train.precision=fp32", "train.ema=0",
)  # fmt: skip


def settings(*overrides: str) -> RunSettings:
    return config.load(RunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", val=2)


def remarks(run: Path) -> list[str]:
    return [row["remark"] for row in read_log(run) if "remark" in row]


def scripted(monkeypatch, figures: Mapping[str, list[float]]) -> None:
    """Measures whose means are these, validation by validation."""

    def means(found, names):
        return {name: figures[name].pop(0) for name in names}

    monkeypatch.setattr(validation, "_means", means)


def test_figures_are_those_of_the_evaluation(cache, tmp_path):
    told = []
    given = settings("train.val_metrics=psnr_y,dss,mdsi,teacher_psnr_y,colour_drift", "train.best_by=mdsi")
    result = train(cache, tmp_path, given, on_progress=lambda event: told.append(event.note))
    student, held_out = checkpoint.load(result.student), open_cache(cache, "val")
    with torch.inference_mode():
        pictures = [(to_image(student(to_tensor(lr)[None])[0]), gt, teacher, lr)
                    for lr, gt, teacher in map(held_out.images, range(2))]  # fmt: skip
    assert list(result.validation) == ["psnr_y", "dss", "mdsi", "teacher_psnr_y", "colour_drift"]
    for metric in metrics.load(tuple(result.validation)).metrics:
        place = {"gt": 1, "teacher": 2, "lr": 3}[metric.reference]
        expected = np.mean([metric.measure(picture[0], picture[place], 4) for picture in pictures])
        assert result.validation[metric.name] == pytest.approx(expected, rel=1e-6), metric.name
    log = [row for row in read_log(tmp_path) if "val_dss" in row]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert {f"val_{name}": figure for name, figure in result.validation.items()}.items() <= log[-1].items()
    lowest = min(log, key=lambda row: row["val_mdsi"])  # of mdsi, less is better
    assert result.best == Best("mdsi", lowest["val_mdsi"], lowest["step"])
    found = json.loads(json.dumps(result.to_json()))
    assert found["validation"] == result.validation
    assert found["best"] == {"metric": "mdsi", "figure": lowest["val_mdsi"], "step": lowest["step"], "data": ""}
    text = "\n".join(result.lines())
    dss = f"dss {result.validation['dss']:.4f}"
    assert dss in text.splitlines()[0] and dss in told[-1]
    assert f"best by mdsi {result.best.figure:.4f} at step {result.best.step}: {tmp_path / BEST}" in text


@pytest.mark.parametrize(("best_by", "step"), [("dss", 3), ("psnr_y", 2)])
def test_the_best_weights_follow_one_measure(cache, tmp_path, monkeypatch, best_by, step):
    figures = {"psnr_y": [20.0, 24.0, 23.0, 24.0], "dss": [0.5, 0.4, 0.7, 0.7]}
    scripted(monkeypatch, figures)
    averaged = {}
    export = validation.export
    monkeypatch.setattr(
        validation,
        "export",
        lambda path, ema, state: (
            averaged.update({state.step: ema.conv_first.weight.clone()}),
            export(path, ema, state),
        ),
    )
    result = train(cache, tmp_path, settings(f"train.best_by={best_by}"))
    assert (result.best.metric, result.best.step) == (best_by, step)
    assert torch.equal(load_file(tmp_path / BEST)["conv_first.weight"], averaged[step])
    assert max(averaged) == step
    made = read_metadata(tmp_path / BEST)
    assert (made["step"], made["best_by"]) == (step, best_by)
    assert made["validation"] == {"psnr_y": [20, 24, 23][step - 1], "dss": [0.5, 0.4, 0.7][step - 1]}
    assert read_state(newest(tmp_path)).best == result.best


def test_a_measure_that_refuses_the_samples_is_told_and_another_decides(cache, tmp_path, monkeypatch):
    dss = packages.METRICS["dss"]
    larger = packages.Packaged(dss.package, dss.licence, False, 128, dss.settings, dss.make)
    monkeypatch.setattr(packages, "METRICS", {**packages.METRICS, "dss": larger})
    validation.load_measures.cache_clear()
    told = []
    result = train(cache, tmp_path, settings("train.steps=3"), on_progress=lambda event: told.append(event.summary))
    validation.load_measures.cache_clear()
    assert list(result.validation) == ["psnr_y"]
    assert result.best.metric == "psnr_y"
    assert (tmp_path / BEST).exists()
    assert remarks(tmp_path) == [  # of the first validation: the others would say the same
        "validation: dss leaves out 2 of 2 held-out samples: it needs 128 pixels a side at least, got 64x64",
        "validation: dss has no figure, so best.safetensors follows psnr_y",
    ]
    assert [text for text in told[1:] if text] == ["; ".join(remarks(tmp_path))]


def test_a_run_that_validated_by_psnr_y_alone_goes_on(cache, tmp_path):
    """Its state as it was written then."""
    train(cache, tmp_path / "whole", settings())
    run = tmp_path / "old"

    def stop_it(event):
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, run, settings(), on_progress=stop_it)
    path = newest(run) / "state.json"
    state = json.loads(path.read_text())
    assert state["step"] == 2
    for name in ("validation", "best", "recent"):
        del state[name]
    for section, names in {"train": ("val_metrics", "best_by", "spike"), "data": ("stall_seconds",)}.items():
        for name in names:
            del state["settings"][section][name]
    path.write_text(json.dumps({**state, "psnr_y": 21.5, "best_psnr_y": 22.5, "best_step": 1}))
    assert read_state(newest(run)).best == Best("psnr_y", 22.5, 1)
    result = train(cache, run, settings())
    assert result.best.metric == "dss"
    told = (
        "validation: best.safetensors follows dss from now on; what it held (best psnr_y 22.5000 at step 1) is replaced"
    )
    assert remarks(run) == [told]
    one, other = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("whole", "old"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_validation_measures_may_change_and_changes_no_weights(cache, tmp_path):
    one = train(cache, tmp_path / "one", settings())
    other = train(cache, tmp_path / "other", settings("train.val_metrics=psnr_y", "train.best_by=psnr_y"))
    weights = [load_file(newest(result.run) / "model.safetensors") for result in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert train(cache, one.run, settings("train.val_metrics=psnr_y", "train.best_by=psnr_y")).reused


@pytest.fixture
def photos(tmp_path):
    """Two pairs, one of wrong size and one HR photo that is cut off."""
    folder, photo = tmp_path / "photos", skimage.data.astronaut()
    for name, top in {"a": 0, "b": 128}.items():
        hr = photo[top : top + 128, :160]
        save(ensure_dir(folder / "HR") / f"{name}.png", hr)
        save(ensure_dir(folder / "LR") / f"{name}.png", np.ascontiguousarray(hr[::4, ::4]))
    save(folder / "HR" / "wrong.png", photo[:128, :128])
    save(folder / "LR" / "wrong.png", photo[:30, :40])
    save(folder / "HR" / "cut.png", photo[:128, :128])
    save(folder / "LR" / "cut.png", photo[:32, :32])
    whole = (folder / "HR" / "cut.png").read_bytes()
    (folder / "HR" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def test_a_folder_is_validated_on_as_it_is_evaluated_on(cache, tmp_path, photos):
    run = tmp_path / "run"
    result = train(cache, run, settings(f"data.val={photos}"))
    found = evaluate([str(run)], photos, EvaluationSettings(metrics=("psnr_y", "dss"), device="cpu", precision="fp32"))
    student = next(row for row in found.candidates if row.name != "bicubic")
    assert len(student.images) == 2
    for name in ("psnr_y", "dss"):
        assert result.validation[name] == pytest.approx(student.mean(name), rel=1e-6)
    assert result.best.data == str(photos)
    (said, same) = remarks(run)
    assert "psnr_y leaves out 1 of 3 held-out samples" in said and "cut.png" in said and "dss" in same


def test_other_pictures_to_validate_on_change_no_weights_and_the_best_begins_anew(cache, tmp_path, photos):
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(cache, whole, settings())

    def stop_it(event):
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, run, settings(), on_progress=stop_it)
    result = train(cache, run, settings(f"data.val={photos}"))
    assert result.best.data == str(photos) and result.best.step > 2
    assert any(f"follows dss on {photos} from now on" in text for text in remarks(run))
    one, other = (load_file(newest(path) / "model.safetensors") for path in (whole, run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pictures_that_no_measure_can_take_are_refused_before_the_first_step(cache, tmp_path, photos):
    (photos / "HR").rename(photos / "high")
    run = tmp_path / "run"
    with pytest.raises(DtkdError, match=r"psnr_y compares with gt, which .* does not have: take other measures"):
        train(cache, run, settings(f"data.val={photos}"))
    with pytest.raises(DtkdError, match=r"data\.val: .*nowhere does not exist"):
        train(cache, run, settings(f"data.val={tmp_path}/nowhere"))
    assert not run.exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.best_by=mdsi",), r"train\.best_by must be one of train\.val_metrics \(psnr_y, dss\), got mdsi"),
        (("train.val_metrics=psnr_y,dsss", "train.best_by=psnr_y"), "unknown metric 'dsss': the nearest .* 'dss'"),
    ],
)
def test_measures_that_cannot_be_are_refused_before_the_first_step(cache, tmp_path, overrides, words):
    with pytest.raises(DtkdError, match=words) as caught:
        train(cache, tmp_path, settings(*overrides), on_progress=lambda event: pytest.fail("a step was taken"))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_refused_with_its_remedy(cache, tmp_path, monkeypatch):
    def missing(name, device):
        return metrics.Unavailable(name, "piq cannot be imported", "pip install piq") if name == "dss" else None

    monkeypatch.setattr(metrics, "_packaged", missing)
    validation.load_measures.cache_clear()
    with pytest.raises(DtkdError, match=r"dss cannot run here \(piq .*: pip install piq, or set train.val_metrics=psn"):
        train(cache, tmp_path, settings())


def test_validation_is_left_out_without_held_out_samples(tmp_path):
    cache = write_cache(tmp_path / "c", val=0)
    result = train(cache, tmp_path / "run", settings("train.steps=1"))
    assert (result.validation, result.best) == ({}, None)
    assert not (tmp_path / "run" / BEST).exists()
