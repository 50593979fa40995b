"""Protocols: the published scripts' metrics with their arguments, and sets of images as wholes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_support import make_corpus
from typer.testing import CliRunner

import cli
from pipeline import fidelity, images
from pipeline.filters import bicubic
from pipeline.system.errors import UsageError
from student.evaluation.evaluate import EvaluationSettings, evaluate
from student.evaluation.examples import open_examples
from student.evaluation.protocols import PROTOCOLS

SHARED = Path(__file__).parents[4] / "shared/data"
REALSR = SHARED / "eval/RealSR100"
OSEDIFF = SHARED / "teacher_outputs/osediff_realsr100"
"""All of OSEDiff's outputs, where somebody has them."""
PUBLISHED = {
    "psnr": 25.1511, "ssim": 0.7341, "lpips": 0.2921, "dists": 0.2128, "clipiqa": 0.6693, "niqe": 5.6476,
    "musiq": 69.0896, "maniqa-pipal": 0.6331, "fid": 123.49,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "HR")
    return folder


def test_osediff_calls_every_metric_as_its_script_does(photos, monkeypatch):
    """https://github.com/cswry/OSEDiff, test_metrics.py: psnr and ssim on YCbCr luma, all else by pyiqa's defaults."""
    import pyiqa

    asked, real = {}, pyiqa.create_metric

    def create(name, **options):
        asked[name] = {key: value for key, value in options.items() if key != "device"}
        return real("psnr" if name == "fid" else name if name in ("psnr", "ssim") else "piqe", device=options["device"])

    monkeypatch.setattr(pyiqa, "create_metric", create)
    found = evaluate(["bicubic"], photos, EvaluationSettings(protocol="osediff", limit=1))
    luma = {"test_y_channel": True, "color_space": "ycbcr"}
    plain = ("lpips", "dists", "clipiqa", "niqe", "musiq", "maniqa-pipal", "fid")
    assert asked == {"psnr": luma, "ssim": luma} | {name: {} for name in plain}
    assert (found.protocol, found.crop_border) == ("osediff", 0)


def test_the_settings_of_a_published_figure_stand_in_the_result(photos):
    by_script = evaluate(["bicubic"], photos, EvaluationSettings(protocol="osediff", metrics=("psnr", "ssim"), limit=2))
    assert by_script.to_json()["protocol"] == "osediff" and by_script.to_json()["schema"] == 1
    settings = by_script.to_json()["metrics"]["psnr"]["settings"]
    assert settings["color_space"] == "ycbcr" and settings["source"].startswith("pyiqa ")
    ours = evaluate(["bicubic"], photos, EvaluationSettings(metrics=("psnr_y", "ssim_y"), crop_border=0, limit=2))
    for name, other in (("psnr", "psnr_y"), ("ssim", "ssim_y")):
        assert by_script.candidates[0].mean(name) == pytest.approx(ours.candidates[0].mean(other), abs=1e-3)


@pytest.mark.parametrize("name", ["Set5", "Set14", "RealSR100"])
def test_our_fidelity_is_that_of_the_published_script(name, monkeypatch):
    """Both on the same pictures: pyiqa with osediff's arguments, ours without a border."""
    data = SHARED / "eval" / name
    if not data.is_dir():
        pytest.skip(f"{name} is not at hand")
    how = EvaluationSettings(protocol="osediff", metrics=("psnr", "psnr_y", "ssim", "ssim_y"), limit=5)
    for score in evaluate(["bicubic"], data, how).candidates[0].images:
        assert score.values["psnr_y"] == pytest.approx(score.values["psnr"], abs=1e-3)
        assert score.values["ssim_y"] == pytest.approx(score.values["ssim"], abs=2e-3)
    luma = fidelity.luma  # what is left of ssim: pyiqa rounds luma, and cuts negative structure at 0
    monkeypatch.setattr(fidelity, "luma", lambda image: luma(image).round())
    monkeypatch.setattr("pyiqa.archs.ssim_arch.F.relu", lambda x: x)
    for score in evaluate(["bicubic"], data, how).candidates[0].images:
        assert score.values["ssim_y"] == pytest.approx(score.values["ssim"], abs=1e-4)


def test_osediffs_published_line():
    if not OSEDIFF.is_dir() or not REALSR.is_dir():
        pytest.skip("OSEDiff's outputs for all of RealSR are not at hand")
    found = evaluate([f"images:{OSEDIFF}"], REALSR, EvaluationSettings(protocol="osediff"))
    if found.metrics.unavailable:
        pytest.skip(f"weights are not at hand: {', '.join(u.name for u in found.metrics.unavailable)}")
    row = found.candidates[1]
    assert {name: row.mean(name) for name in PUBLISHED} == pytest.approx(PUBLISHED, rel=2e-3)


def test_unknown_protocols_name_the_known_ones(photos):
    with pytest.raises(
        UsageError, match=r"unknown protocol 'osedif' \(there are: classical, osediff, noref\): the near"
    ):
        EvaluationSettings(protocol="osedif")
    done = CliRunner().invoke(cli.app, ["evaluate", "bicubic", "--data", str(photos), "--protocol", "x"])
    assert done.exit_code == 2 and "unknown protocol 'x'" in done.stderr


def test_what_is_asked_for_stands_above_the_protocol(photos):
    found = evaluate(["bicubic"], photos, EvaluationSettings(protocol="osediff", metrics=("psnr_y",), crop_border=2))
    assert (found.metric_names, found.crop_border) == (["psnr_y"], 2)
    assert PROTOCOLS["classical"].crop_border is None
    assert evaluate(["bicubic"], photos, EvaluationSettings(metrics=("psnr_y",), limit=1)).crop_border == 4


class TestConsistency:
    def test_lr_psnr_is_that_of_the_reduced_image(self, photos):
        from skimage.metrics import peak_signal_noise_ratio

        from pipeline.filters import resize_bicubic

        found = evaluate(["bicubic"], photos, EvaluationSettings(metrics=("lr_psnr", "colour_drift"), limit=2))
        for example, score in zip(open_examples(photos), found.candidates[0].images, strict=False):
            sr = bicubic(example.lr, 4)
            reduced = resize_bicubic(sr.astype(float), *example.lr.shape[:2]).round().clip(0, 255).astype(np.uint8)
            assert score.values["lr_psnr"] == pytest.approx(peak_signal_noise_ratio(example.lr, reduced), abs=1e-9)
            assert score.values["colour_drift"] < 0.2
        assert found.metrics.metrics[1].lower_is_better and not found.metrics.metrics[0].lower_is_better

    def test_a_tinted_output_drifts_by_its_tint(self, photos, tmp_path):
        for example in open_examples(photos):
            grey = np.full((*example.gt.shape[:2], 3), example.lr.mean(axis=(0, 1)).round(), np.uint8)
            path = tmp_path / "tinted" / f"{example.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.save(path, np.clip(grey + np.array([9, 0, 0]), 0, 255).astype(np.uint8))
        how = EvaluationSettings(metrics=("colour_drift",))
        row = evaluate([f"images:{tmp_path / 'tinted'}"], photos, how).candidates[1]
        assert row.mean("colour_drift") == pytest.approx(3, abs=0.5)

    def test_lr_images_alone_are_enough(self, photos, tmp_path):
        (tmp_path / "LR").mkdir()
        for example in open_examples(photos):
            images.save(tmp_path / "LR" / f"{example.id}.png", example.lr)
        found = evaluate(["bicubic"], tmp_path, EvaluationSettings(metrics=("lr_psnr", "psnr_y")))
        assert found.metric_names == ["lr_psnr"] and found.candidates[0].mean("lr_psnr") > 30


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """Weights of the Inception network that FID is measured with, random, where pyiqa looks for the real ones."""
    from pipeline.system import torchvision_guard

    torchvision_guard.apply()
    from pyiqa.archs import inception

    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", lambda *args, **options: None)
        torch.manual_seed(0)
        weights = inception.fid_inception_v3().state_dict()
    torch.save(weights, tmp_path / "hub" / Path(inception.FID_WEIGHTS_URL).name)


@pytest.mark.slow  # the square root of a matrix of 2048 x 2048
def test_fid_is_a_figure_of_the_whole_set(photos, inception, tmp_path):
    import pyiqa

    (tmp_path / "truth").mkdir()
    for example in open_examples(photos):
        path = tmp_path / "truth" / f"{example.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.save(path, example.gt)
    how, out = EvaluationSettings(protocol="osediff", metrics=("psnr_y", "fid")), tmp_path / "out"
    found = evaluate([f"images:{tmp_path / 'truth'}"], photos, how, out=out)
    bicubic_row, truth_row, gt_row = found.candidates
    fid = pyiqa.create_metric("fid", device=torch.device("cpu"))
    expected = fid(str(out / "bicubic"), str(tmp_path / "truth"), mode="clean", num_workers=0, verbose=False)
    assert bicubic_row.mean("fid") == pytest.approx(float(expected), rel=1e-6) and bicubic_row.mean("fid") > 0
    assert abs(truth_row.mean("fid")) < 1e-3 * bicubic_row.mean("fid")
    assert gt_row.mean("fid") is None and bicubic_row.interval("fid") is None
    assert all("fid" not in score.values for score in bicubic_row.images)
    written = json.loads((out / "metrics.json").read_text())
    assert written["candidates"][0]["mean"]["fid"] == bicubic_row.mean("fid")
    assert written["metrics"]["fid"]["settings"]["over"] == "the whole set"
    assert "fid ↓" in (out / "metrics.md").read_text()
    shutil.rmtree(out)
