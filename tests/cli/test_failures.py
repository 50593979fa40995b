"""Mistakes, failures and signals: one line, the right exit code, and JSON where it was asked for."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from cache_support import settings
from cli_support import SET, dtkd, refused, start, wait_for

from pipeline import images
from pipeline.system.errors import DtkdError
from teacher_cache.building.build import build_cache, prepare
from teacher_cache.teachers.imported import ImportedTeacher

INTERRUPTED = "dtkd: interrupted; run the same command again to go on"


def test_wrong_usage_ends_with_2():
    assert "no-such-command" in dtkd("no-such-command", code=2)[1]
    assert "RUN" in dtkd("train-student", "only-one-argument", code=2)[1]
    assert "blurry" in dtkd("teacher-cache", "sample", "x", "--degradation", "blurry", code=2)[1]


class TestMistakes:
    def test_missing_and_empty_corpus(self, outputs, tmp_path):
        teacher = ("--teacher", f"import:{outputs}")
        assert "nowhere" in refused("teacher-cache", tmp_path / "nowhere", tmp_path / "c", *teacher)
        (tmp_path / "empty").mkdir()
        assert "empty" in refused("teacher-cache", tmp_path / "empty", tmp_path / "c", *teacher)
        assert not (tmp_path / "c").exists()

    def test_photos_smaller_than_a_tile(self, photos, outputs, tmp_path):
        line = refused("teacher-cache", photos, tmp_path / "c", "--teacher", f"import:{outputs}", "--tile", 256)
        assert "256" in line

    def test_a_bad_tile_and_an_unknown_key_are_wrong_usage(self, cache, photos, tmp_path):
        line = refused("teacher-cache", photos, tmp_path / "c", "--tile", 100, code=2)
        assert "tile must be a multiple of 8, got 100" in line
        line = refused("train-student", cache, tmp_path / "r", "--set", "train.step=3", code=2)
        assert "did you mean train.steps?" in line

    def test_a_damaged_photo_is_skipped_and_reported(self, photos, outputs, tmp_path):
        corpus = tmp_path / "photos"
        corpus.mkdir()
        for path in photos.iterdir():
            shutil.copy(path, corpus / path.name)
        (corpus / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
        out, err = dtkd("teacher-cache", corpus, tmp_path / "c", "--teacher", f"import:{outputs}", "--tile", 64)
        assert "skipped broken.jpg" in err
        assert "14 of 14 samples" in out

    def test_a_photo_cut_off_in_its_body_is_reported(self, photos, outputs, tmp_path):
        """Its header is sound, so that only decoding finds out."""
        corpus, made = tmp_path / "photos", tmp_path / "made"
        for folder, origin in ((corpus, photos), (made, outputs)):
            folder.mkdir()
            for path in origin.iterdir():
                shutil.copy(path, folder / path.name)
        images.save(corpus / "cut.jpg", images.load_rgb(photos / "coffee.png"))
        data = (corpus / "cut.jpg").read_bytes()
        (corpus / "cut.jpg").write_bytes(data[: len(data) // 2])
        (made / "cut.png").symlink_to(outputs / "coffee.png")
        stage_one = ("teacher-cache", corpus, tmp_path / "c", "--teacher", f"import:{made}", "--tile", 64)
        out, _ = dtkd(*stage_one, "--hold-out", 0, "--set", "max_failure_fraction=0.5")
        line, total, warning = out.splitlines()
        assert line.startswith("skipped cut.jpg (4 samples): ")
        assert warning.startswith("warning: imported pictures must have been made from the same LR images")
        assert "4 failed" in total

    def test_a_scale_that_the_teacher_is_not_for(self, photos, tmp_path):
        out, err = dtkd("teacher-cache", photos, tmp_path / "c", "--scale", 3, "--tile", 120, code=2)
        assert out == ""
        assert err.splitlines()[-1] == "dtkd: the teacher embedded is made for scale 4, got --scale 3"
        assert not (tmp_path / "c").exists()

    def test_a_number_of_samples_that_cannot_be(self, photos, outputs, tmp_path):
        command = ("teacher-cache", photos, tmp_path / "c", "--teacher", f"import:{outputs}", "--tile", 64, "--samples")
        for count in (0, 17):
            assert f"samples must be 1 to 16, got {count}" in refused(*command, count, code=2)
        _, err = dtkd(*command, 2, code=2)
        assert "has one picture for each photo" in err.splitlines()[-1] and "--samples 1, got 2" in err.splitlines()[-1]
        assert not (tmp_path / "c").exists()

    def test_a_tile_that_does_not_suit_the_scale(self, photos, outputs, tmp_path):
        teacher = ("--teacher", f"import:{outputs}")
        line = refused("teacher-cache", photos, tmp_path / "c", "--scale", 3, *teacher, code=2)
        assert "tile must be a multiple of 24, got 256 (at scale 3)" in line

    def test_imported_pictures_are_compared_again_where_they_are_found(self, photos, outputs, tmp_path):
        build_cache(str(photos), tmp_path, ImportedTeacher(outputs, 4), settings())
        assert "--teacher says where it is now" in refused("verify", tmp_path, "--recompute", 1)
        assert "differs by at most 0" in dtkd("verify", tmp_path, "--recompute", 1, "--teacher", f"import:{outputs}")[0]

    def test_a_cache_of_another_schema(self, cache, tmp_path):
        manifest = json.loads((cache / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema": 7}))
        line = refused("train-student", tmp_path, tmp_path / "run", *SET)
        assert "schema 7" in line
        assert "schema 1" in line

    def test_a_folder_that_is_no_cache_and_a_checkpoint_that_is_none(self, cache, tmp_path):
        assert "no teacher cache" in refused("train-student", tmp_path, tmp_path / "run")
        (tmp_path / "weights.pth").write_bytes(b"not weights at all")
        assert "weights.pth" in refused("evaluate", tmp_path / "weights.pth", "--data", cache)
        assert "nowhere.pth" in refused("evaluate", tmp_path / "nowhere.pth", "--data", cache)

    def test_an_unknown_metric_and_teacher(self, cache, photos, tmp_path):
        assert "'psnr_x'" in refused("evaluate", "bicubic", "--data", cache, "--metrics", "psnr_x", code=2)
        assert "no teacher 'nobody'" in refused("teacher-cache", photos, tmp_path / "c", "--teacher", "nobody", code=2)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_an_output_folder_that_may_not_be_written(self, cache, tmp_path):
        tmp_path.chmod(0o500)
        assert str(tmp_path) in refused("train-student", cache, tmp_path / "run", *SET)

    def test_an_output_below_a_file(self, cache, tmp_path):
        (tmp_path / "file").write_text("")
        assert "file" in refused("train-student", cache, tmp_path / "file" / "run", *SET)
        assert "file" in refused("evaluate", "bicubic", "--data", cache, "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "dtkd: No space left on device"),
        (PermissionError(13, "Permission denied", "/data/x"), "dtkd: /data/x: Permission denied"),
        (KeyboardInterrupt(), "dtkd: interrupted; run the same command again to go on"),
        (DtkdError("two\nlines"), "dtkd: two lines"),
    ],
)
def test_what_may_happen_to_anyone_is_one_line(monkeypatch, cache, error, line):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("student.report.evaluation.evaluate_to_page", fail)
    assert refused("evaluate", "bicubic", "--data", cache) == line


def test_an_interruption_is_an_object_under_json(monkeypatch, cache):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("student.report.evaluation.evaluate_to_page", interrupt)
    out, err = dtkd("evaluate", "bicubic", "--data", cache, "--json", code=1)
    assert json.loads(out) == {"error": INTERRUPTED.removeprefix("dtkd: ")}
    assert err.splitlines() == [INTERRUPTED]


def test_a_bug_keeps_its_traceback(monkeypatch, cache):
    def fail(*args, **kwargs):
        raise ValueError("ours")

    monkeypatch.setattr("student.report.evaluation.evaluate_to_page", fail)
    with pytest.raises(ValueError, match="ours"):
        dtkd("evaluate", "bicubic", "--data", cache)


def test_ctrl_c_stops_training_resumably(cache, tmp_path):
    process = start("train-student", cache, tmp_path / "run", *SET, "--set", "train.steps=100000")
    wait_for(process, "steps")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 1
    assert err.splitlines()[-1] == INTERRUPTED
    assert "of 100000 steps" in out
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_sigterm_is_as_graceful_as_ctrl_c(photos, outputs, tmp_path):
    """Here while waiting for another process's shard; schedulers send it, and the default is to die silently."""
    cache = tmp_path / "cache"
    prepare(str(photos), cache, ImportedTeacher(outputs, 4), settings(kind="real", samples_per_shard=64))
    (cache / "leases" / "shard-00000000.json").write_text('{"host": "elsewhere"}')
    options = ("--teacher", f"import:{outputs}", "--tile", 64, "--micro-batch", 2, "--hold-out", 1)
    process = start("teacher-cache", photos, cache, *options)
    wait_for(process, "waiting for 1 shard of other processes")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == INTERRUPTED


def test_sigterm_leaves_no_half_picture(tmp_path):
    images.save(tmp_path / "large.png", np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8))
    process = start("upscale", tmp_path / "large.png", tmp_path / "out.png", "--tile", 64, "--device", "cpu")
    wait_for(process, "left, large.png")  # tiles are being written
    assert list(tmp_path.glob(".out.png.*.tmp"))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == INTERRUPTED
    assert [path.name for path in tmp_path.iterdir()] == ["large.png"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("evaluate", "nowhere.pth", "--data", "."), 1, "nowhere.pth"),
        (("evaluate", "bicubic", "--data", ".", "--crop-border", -1), 2, "crop_border must be at least 0, got -1"),
        (("evaluate", "bicubic"), 2, "--data"),
        (("verify", "nowhere", "--recomputed"), 2, "--recomputed"),
        (("no-such-command",), 2, "no-such-command"),
    ],
)
def test_an_error_is_an_object_too_under_json(words, code, message):
    out, err = dtkd(*words, "--json", code=code)
    (error,) = json.loads(out).values()
    assert list(json.loads(out)) == ["error"]
    assert message in error
    assert error in " ".join(err.split())


def test_options_that_cannot_be_are_wrong_usage(photos, cache, tmp_path):
    out, picture = tmp_path / "out", photos / "coffee.png"
    for words, message in (
        (("upscale", picture, out, "--tile", 7), "tile must be a positive multiple of 8, got 7"),
        (("upscale", picture, out, "--tile", "large"), "--tile must be auto or a multiple of 8, got large"),
        (("upscale", picture, out, "--device", "tpu"), "the device 'tpu' cannot be used here"),
        (("evaluate", "bicubic", "--data", cache, "--limit", 0), "limit must be at least 1, got 0"),
        (("evaluate", "bicubic", "--data", cache, "--metrics", ","), "metrics must name at least one metric"),
        (("bench", "student", "--preset", "huge"), "there is no preset 'huge'"),
        (("teacher-cache", photos, out, "--hold-out", -1), "hold_out must be 0 or more, got -1"),
        (("train-teacher", photos, out, "--scale", 99), "scale must be in 1..16, got 99"),
        (("train-student", cache, out, "--config", tmp_path / "no.toml"), "cannot read the configuration"),
    ):
        assert message in refused(*words, code=2)
    assert "Invalid value for '--steps'" in dtkd("teacher-cache", photos, out, "--steps", 0, code=2)[1]
    assert not out.exists() or not list(out.iterdir())


def test_the_nearest_name_does_not_depend_on_capitals(cache, tmp_path):
    assert "'psnr_y'" in refused("evaluate", "bicubic", "--data", cache, "--metrics", "PSNR_Y", code=2)
    line = refused("train-student", cache, tmp_path / "r", "--set", "TRAIN.STEPS=3", code=2)
    assert "did you mean train.steps?" in line
