import csv
import json
import os
import shutil

import numpy as np
import pytest
import skimage.data
import torch
from cache_support import NoisyBicubic, make_corpus, settings
from spandrel.architectures.Compact import Compact
from typer.testing import CliRunner

import cli
from pipeline import images
from pipeline.filters import bicubic
from pipeline.system.errors import DtkdError
from student import checkpoint, networks
from student.evaluation import metrics
from student.evaluation.evaluate import EvaluationSettings, evaluate
from student.evaluation.examples import open_examples
from student.model import build
from teacher_cache.building.build import build_cache

FIDELITY = EvaluationSettings(metrics=("psnr_y", "ssim_y"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """HR/ with five real photos of 130 x 128, and LR/ with their bicubic downscale."""
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "HR")
    make_corpus(folder / "LR")
    for path in (folder / "HR").iterdir():
        hr = images.load_rgb(path)
        images.save(folder / "LR" / path.name, images.to_image(_down(images.to_tensor(hr))))
        images.save(path, np.pad(hr, ((0, 0), (0, 2), (0, 0))))  # a rest that the scale does not divide
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage-one")
    build_cache(str(make_corpus(folder / "photos")), folder / "cache", NoisyBicubic(), settings(hold_out=2))
    return folder / "cache"


def _down(hr):
    return torch.nn.functional.interpolate(hr[None], scale_factor=0.25, mode="area")[0]


def row(found, name):
    return next(candidate for candidate in found.candidates if candidate.name == name)


def test_real_pairs_figures_are_those_of_the_written_pictures(photos, student, tmp_path):
    found = evaluate([student], photos, FIDELITY, out=tmp_path)
    assert [candidate.role for candidate in found.candidates] == ["baseline", "student", "gt"]
    scores = row(found, student.parent.name)
    assert scores.parameters == sum(p.numel() for p in build("tiny", 4).parameters())
    assert all(score.seconds > 0 for score in scores.images)
    for score in scores.images:
        sr = images.load_rgb(tmp_path / scores.name / f"{score.id}.png")
        gt = images.load_rgb(photos / "HR" / f"{score.id}.png")[:128, :128]
        assert score.values == {"psnr_y": metrics.psnr_y(sr, gt, 4), "ssim_y": metrics.ssim_y(sr, gt, 4)}
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 + 3
    mean = next(r for r in rows if r["candidate"] == scores.name and r["image"] == "MEAN")
    assert float(mean["psnr_y"]) == pytest.approx(np.mean([score.values["psnr_y"] for score in scores.images]))


def test_hr_only_makes_lr_by_the_bicubic_degradation(photos, tmp_path):
    (tmp_path / "HR").symlink_to(photos / "HR")
    found = evaluate(["bicubic"], tmp_path, FIDELITY)
    example = next(iter(open_examples(tmp_path)))
    assert example.lr.shape == (32, 32, 3)
    sr = bicubic(example.lr, 4)
    assert row(found, "bicubic").images[0].values["psnr_y"] == metrics.psnr_y(sr, example.gt, 4)
    assert [candidate.name for candidate in found.candidates] == ["bicubic", "gt"]


def test_lr_only_runs_no_reference_metrics_and_says_why_not_the_others(photos, student, tmp_path):
    (tmp_path / "LR").symlink_to(photos / "LR")
    found = evaluate([student], tmp_path, EvaluationSettings(metrics=("psnr_y", "piqe"), limit=2))
    assert found.metric_names == ["piqe"]
    assert found.metrics.unavailable[0].name == "psnr_y"
    assert [candidate.role for candidate in found.candidates] == ["baseline", "student"]
    assert all(len(candidate.images) == 2 for candidate in found.candidates)


def test_a_cache_gives_its_held_out_photos_with_the_teacher(cache):
    found = evaluate([], cache, EvaluationSettings(metrics=("psnr_y", "teacher_psnr_y", "piqe")))
    teacher, truth = row(found, "teacher"), row(found, "gt")
    assert len(teacher.images) == 2
    assert teacher.seconds > 0
    assert "teacher_psnr_y" not in teacher.images[0].values
    assert "psnr_y" not in truth.images[0].values
    assert truth.images[0].values["teacher_psnr_y"] == pytest.approx(teacher.images[0].values["psnr_y"])


def test_crop_border_is_the_scale_unless_given(photos):
    default = evaluate(["bicubic"], photos, EvaluationSettings(metrics=("psnr_y",)))
    none = evaluate(["bicubic"], photos, EvaluationSettings(metrics=("psnr_y",), crop_border=0))
    assert (default.crop_border, none.crop_border) == (4, 0)
    assert default.candidates[0].mean("psnr_y") != none.candidates[0].mean("psnr_y")


def test_a_metric_that_fails_on_an_image_does_not_take_the_others_with_it(photos):
    found = evaluate(["bicubic"], photos, EvaluationSettings(metrics=("ms_ssim", "psnr_y"), limit=1))
    assert found.metric_names == ["psnr_y"]  # 128 pixels are too few for five scales
    assert found.metrics.unavailable[0].name == "ms_ssim"


def test_images_that_a_candidate_restores_exactly_are_in_nobodys_mean(photos, student, tmp_path):
    (tmp_path / "HR").mkdir()
    images.save(tmp_path / "HR" / "flat.png", np.full((64, 64, 3), 90, np.uint8))
    found = evaluate([student], tmp_path, FIDELITY)
    assert row(found, "bicubic").mean("psnr_y") is None and row(found, "bicubic").mean("ssim_y") == pytest.approx(1)
    assert row(found, "gt").mean("psnr_y") is None
    assert '"psnr_y": null' in json.dumps(found.to_json(), allow_nan=False)

    textured = min((photos / "HR").iterdir())
    shutil.copy(textured, tmp_path / "HR" / "textured.png")
    found = evaluate([student], tmp_path, FIDELITY)
    for name in ("bicubic", student.parent.name):
        _, other = row(found, name).images
        assert other.id == "textured" and row(found, name).mean("psnr_y") == other.values["psnr_y"]
    assert found.exact == {"psnr_y": ("flat",)}
    assert found.to_json()["exact"] == {"psnr_y": ["flat"]}
    done = CliRunner().invoke(cli.app, ["evaluate", "bicubic", "--data", str(tmp_path), "--metrics", "psnr_y"])
    assert "psnr_y is infinite on flat, which a candidate restored exactly" in done.stdout


@pytest.mark.parametrize("metrics", ["niqe", "teacher_psnr_y", "ms_ssim"])
def test_when_nothing_can_be_measured_the_command_fails(photos, monkeypatch, tmp_path, metrics):
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("student.evaluation.libraries.offline.reachable", lambda url: False)
    done = CliRunner().invoke(cli.app, ["evaluate", "bicubic", "--data", str(photos), "--metrics", metrics])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"dtkd: nothing that was asked for can be measured: {metrics}: ")


def test_sizes_may_differ_and_the_scale_need_not_divide_them(tmp_path, student):
    (tmp_path / "HR").mkdir()
    photo = skimage.data.astronaut()
    for name, (height, width) in {"a": (131, 70), "b": (64, 97), "c": (129, 128)}.items():
        images.save(tmp_path / "HR" / f"{name}.png", photo[:height, :width])
    found = evaluate([student], tmp_path, FIDELITY, out=tmp_path / "out")
    for score in row(found, student.parent.name).images:
        gt = images.load_rgb(tmp_path / "HR" / f"{score.id}.png")
        gt = gt[: gt.shape[0] // 4 * 4, : gt.shape[1] // 4 * 4]
        sr = images.load_rgb(tmp_path / "out" / student.parent.name / f"{score.id}.png")
        assert score.values == {"psnr_y": metrics.psnr_y(sr, gt, 4), "ssim_y": metrics.ssim_y(sr, gt, 4)}
    (tmp_path / "HR" / "a.png").unlink()
    (tmp_path / "HR" / "b.png").unlink()
    alone = evaluate([student], tmp_path, FIDELITY)
    (only,) = row(alone, student.parent.name).images
    assert only.values == row(found, student.parent.name).images[2].values
    assert row(alone, student.parent.name).mean("psnr_y") == only.values["psnr_y"]


def test_a_pipe_is_not_waited_for(photos, tmp_path):
    for kind in ("HR", "LR"):
        (tmp_path / kind).mkdir()
        os.mkfifo(tmp_path / kind / "x.png")
        shutil.copy(min((photos / kind).iterdir()), tmp_path / kind / "y.png")
    found = evaluate(["bicubic"], tmp_path, FIDELITY)
    assert [(item.id, item.reason) for item in found.skipped] == [
        ("LR/x.png", "no regular file"),
        ("x.png", "no regular file"),
    ]
    assert len(found.candidates[0].images) == 1


class TestWhatIsThere:
    def test_a_folder_of_others_is_left_alone(self, photos, tmp_path):
        (tmp_path / "bicubic").mkdir()
        (tmp_path / "bicubic" / "astronaut.png").write_bytes(b"mine")
        for record in (None, '{"mine": 1}', "no json"):
            if record:
                (tmp_path / "metrics.json").write_text(record)
            for overwrite in (False, True):
                with pytest.raises(DtkdError, match="and is not an evaluation of ours: it is left alone"):
                    evaluate(["bicubic"], photos, FIDELITY, out=tmp_path, overwrite=overwrite)
        assert (tmp_path / "bicubic" / "astronaut.png").read_bytes() == b"mine"

    def test_an_evaluation_is_replaced_when_asked(self, photos, tmp_path):
        one = EvaluationSettings(metrics=("psnr_y",), limit=1)
        evaluate(["bicubic"], photos, one, out=tmp_path)
        before = (tmp_path / "metrics.json").read_bytes()
        with pytest.raises(DtkdError, match="holds an evaluation: pass --overwrite"):
            evaluate(["bicubic"], photos, FIDELITY, out=tmp_path)
        assert (tmp_path / "metrics.json").read_bytes() == before
        evaluate(["bicubic"], photos, FIDELITY, out=tmp_path, overwrite=True)
        assert "ssim_y" in (tmp_path / "metrics.csv").read_text()

    def test_pictures_of_earlier_candidates_do_not_stay(self, photos, tmp_path):
        one = EvaluationSettings(metrics=("psnr_y",), limit=1)
        evaluate(["tiny-x4"], photos, one, out=tmp_path)
        (tmp_path / "tiny-x4" / "mine.txt").write_text("mine")
        evaluate(["tiny-x4-gt"], photos, one, out=tmp_path, overwrite=True)
        assert sorted(p.parent.name for p in tmp_path.glob("*/*.png")) == ["bicubic", "tiny-x4-gt"]
        assert [p.name for p in (tmp_path / "tiny-x4").iterdir()] == ["mine.txt"]

    def test_a_record_of_anybodys_making_reaches_no_other_folder(self, photos, tmp_path):
        one, out = EvaluationSettings(metrics=("psnr_y",), limit=1), tmp_path / "out"
        evaluate(["bicubic"], photos, one, out=out)
        (tmp_path / "mine.png").write_bytes(b"mine")
        record = json.loads((out / "metrics.json").read_text())
        record["candidates"] += [{"name": ".."}, {"name": str(tmp_path)}, {}]
        (out / "metrics.json").write_text(json.dumps(record))
        evaluate(["bicubic"], photos, one, out=out, overwrite=True)
        assert (tmp_path / "mine.png").read_bytes() == b"mine"

    def test_one_that_was_stopped_is_known_as_ours(self, photos, tmp_path):
        def stop(event):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(["bicubic"], photos, FIDELITY, out=tmp_path, on_progress=stop)
        with pytest.raises(DtkdError, match="holds an evaluation: pass --overwrite"):
            evaluate(["bicubic"], photos, FIDELITY, out=tmp_path)


def test_a_file_of_another_architecture_is_measured_too(photos, tmp_path):
    torch.manual_seed(0)
    compact = Compact(num_feat=8, num_conv=2, upscale=4).eval()
    torch.save({"params": compact.state_dict()}, tmp_path / "compact.pth")
    found = evaluate([tmp_path / "compact.pth"], photos, EvaluationSettings(metrics=("psnr_y",), limit=1))
    example = next(iter(open_examples(photos)))
    with torch.no_grad():
        sr = images.to_image(compact(images.to_tensor(example.lr)[None])[0])
    assert row(found, "compact").mean("psnr_y") == pytest.approx(metrics.psnr_y(sr, example.gt, 4), abs=1e-3)
    assert row(found, "compact").parameters == sum(p.numel() for p in compact.parameters())


def test_two_files_of_one_name_stay_apart(photos, student, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "student.safetensors").symlink_to(student)
    found = evaluate([tmp_path / "a/run", tmp_path / "b/run"], photos, EvaluationSettings(metrics=("psnr_y",), limit=1))
    assert [c.name for c in found.candidates if c.role == "student"] == ["run", "run-2"]


def test_an_unusable_image_is_skipped_with_its_reason(photos, tmp_path):
    (tmp_path / "LR").mkdir()
    for path in (photos / "LR").iterdir():
        (tmp_path / "LR" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "HR").mkdir()
    for path in (photos / "HR").iterdir():
        (tmp_path / "HR" / path.name).write_bytes(path.read_bytes())
    first = min((tmp_path / "HR").iterdir())
    first.write_bytes(first.read_bytes()[:2000])  # the header is whole
    for name, side in (("HR", 16), ("LR", 4)):
        images.save(tmp_path / name / "small.png", np.zeros((side, side, 3), np.uint8))
    found = evaluate(["bicubic"], tmp_path, FIDELITY, out=tmp_path / "out")
    reasons = {item.id: item.reason for item in found.skipped}
    assert set(reasons) == {first.stem, "small"}
    assert "damaged" in reasons[first.stem] and str(tmp_path) not in reasons[first.stem]
    assert [len(candidate.images) for candidate in found.candidates] == [4, 4]
    assert len(list((tmp_path / "out" / "bicubic").iterdir())) == 4
    done = CliRunner().invoke(cli.app, ["evaluate", "bicubic", "--data", str(tmp_path), "--metrics", "psnr_y,ssim_y"])
    assert done.exit_code == 1 and "skipped small: " in done.stdout and f"skipped {first.stem}: " in done.stdout


def test_a_set_without_any_usable_image_is_refused(tmp_path):
    (tmp_path / "HR").mkdir()
    images.save(tmp_path / "HR" / "small.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DtkdError, match=r"no image of .* could be measured: small: "):
        evaluate([], tmp_path, FIDELITY)


def test_a_broken_checkpoint_ends_the_evaluation(photos, tmp_path):
    model = build("tiny", 4)
    torch.nn.init.constant_(model.conv_first.bias, float("nan"))
    checkpoint.save(model, tmp_path / "bad.safetensors", {})
    with pytest.raises(DtkdError, match="bad gives values that are not finite"):
        evaluate([tmp_path / "bad.safetensors"], photos, FIDELITY)


def test_a_shipped_student_goes_by_its_name(photos, student, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    (tmp_path / "tiny-x4.safetensors").write_bytes(student.read_bytes())
    found = evaluate(["tiny-x4"], photos, EvaluationSettings(metrics=("psnr_y",), limit=1))
    assert row(found, "tiny-x4").path == str(tmp_path / "tiny-x4.safetensors")
    with pytest.raises(DtkdError, match=r"no student 'light-x4' is shipped \(there are: tiny-x4\)"):
        evaluate(["light-x4"], photos, FIDELITY)


def test_photos_that_differ_in_their_suffix_have_ids_of_their_own(tmp_path):
    (tmp_path / "LR").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        images.save(tmp_path / "LR" / name, np.zeros((8, 8, 3), np.uint8))
    assert open_examples(tmp_path).ids == ("a.jpg", "a.png", "b")
    assert open_examples(tmp_path, limit=1).ids == ("a.jpg",)
    images.save(tmp_path / "LR" / "a.jpg.png", np.zeros((8, 8, 3), np.uint8))
    assert open_examples(tmp_path).ids == ("a.jpg", "a.jpg.png", "a.png", "b.png")


def test_scale_0_is_no_default(photos):
    with pytest.raises(DtkdError, match="scale must be at least 1, got 0"):
        open_examples(photos, 0)
    with pytest.raises(DtkdError, match="scale must be at least 1, got 0"):
        EvaluationSettings(scale=0)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: None, "expected a folder with HR/ or LR/"),
        (lambda d: (d / "HR").mkdir(), "HR"),
    ],
)
def test_refuses_data_that_is_none(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DtkdError, match=message):
        evaluate([], tmp_path, FIDELITY)


def test_refuses_a_missing_folder_a_run_without_weights_and_mixed_scales(photos, student, tmp_path):
    with pytest.raises(DtkdError, match="does not exist"):
        evaluate([], tmp_path / "nowhere", FIDELITY)
    with pytest.raises(DtkdError, match=r"holds no student\.safetensors"):
        evaluate([tmp_path], photos, FIDELITY)
    with pytest.raises(DtkdError, match="one scale"):
        evaluate([student], photos, EvaluationSettings(metrics=("psnr_y",), scale=2))
    with pytest.raises(DtkdError, match="limit must be at least 1, got 0"):
        EvaluationSettings(limit=0)


def test_refuses_pairs_that_do_not_fit(photos, tmp_path):
    for name in ("HR", "LR"):
        (tmp_path / name).mkdir()
        images.save(tmp_path / name / "x.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DtkdError):
        evaluate(["bicubic"], tmp_path, FIDELITY)
