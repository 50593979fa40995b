import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cache_support import NoisyBicubic, make_corpus, settings
from typer.testing import CliRunner

import cli
from pipeline import images
from pipeline.shards import load_manifest
from pipeline.system.errors import DtkdError
from teacher_cache.building.build import build_cache, prepare
from teacher_cache.teachers.imported import ImportedTeacher

COMMANDS = (
    "teacher-cache", "verify", "train-student", "evaluate", "train-teacher", "report", "upscale", "export", "bench",
)  # fmt: skip
TINY = [
    "model.preset=tiny", "train.steps=4", "train.batch_size=1", "train.patch=8", "train.log_every=1",
    "train.device=cpu", "data.workers=0",
]  # fmt: skip
SET = [word for setting in TINY for word in ("--set", setting)]


def dtkd(*args, code=0):
    """Run a command in this process; returns (standard output, standard error)."""
    done = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def refused(*args, code=1):
    """The one line that a refused command says on standard error."""
    out, err = dtkd(*args, code=code)
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="module")
def outputs(photos, tmp_path_factory):
    """Pictures of another system, for the teacher import:FOLDER."""
    folder = tmp_path_factory.mktemp("outputs")
    for path in photos.iterdir():
        noise = np.random.default_rng(0).integers(-9, 10, (128, 128, 3))
        images.save(folder / path.name, (images.load_rgb(path) + noise).clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def cache(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    build_cache(str(photos), folder, NoisyBicubic(), settings(hold_out=2))
    return folder


def test_help_lists_the_commands_and_loads_nothing_heavy():
    code = (
        "import sys, cli; from typer.testing import CliRunner; r = CliRunner().invoke(cli.app, ['--help']);"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'scipy', 'pyiqa', 'accelerate', 'PIL'};"
        "print(r.exit_code, sorted(heavy & set(sys.modules))); print(r.stdout)"
    )
    first, *rest = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()
    assert first == "0 []"
    assert all(any(line.strip().startswith(command) for line in rest) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command):
    out, _ = dtkd(command, "--help")
    assert "Examples:" in out
    assert f"dtkd {command} " in out
    assert "--json" in out


def test_the_examples_of_the_help_parse(monkeypatch):
    """An example with an option that does not exist would end with 2 before the stage is called."""

    class ReachedError(Exception):
        pass

    def reached(*args, **kwargs):
        raise ReachedError

    places = (
        "teacher_cache.teachers.load", "teacher_cache.teachers.check_name",
        "teacher_cache.building.verify.verify_cache", "student.training.loop.train",
        "student.evaluation.evaluate.evaluate", "teacher_cache.training.loop.train_teacher",
        "student.report.write.write_report",
        "teacher_cache.building.survey.survey", "teacher_cache.building.verify.load_teacher",
        "student.upscaling.upscale.upscale", "student.export.export",
        "student.bench.bench_student", "student.networks.load_network",
    )  # fmt: skip
    for place in places:  # all before the first is replaced: who imports it later would keep the replacement
        importlib.import_module(place.rpartition(".")[0])
    for place in places:
        monkeypatch.setattr(place, reached)
    for command in COMMANDS:
        out, _ = dtkd(command, "--help")
        examples = [line.split() for line in out.partition("Examples:")[2].splitlines() if line.strip()]
        assert examples
        for _, *words in examples:
            with pytest.raises(ReachedError):
                dtkd(*words)


def test_wrong_usage_ends_with_2():
    assert "no-such-command" in dtkd("no-such-command", code=2)[1]
    assert "RUN" in dtkd("train-student", "only-one-argument", code=2)[1]
    assert "blurry" in dtkd("teacher-cache", "sample", "x", "--degradation", "blurry", code=2)[1]


def test_from_photos_to_a_report(photos, outputs, tmp_path):
    cache, gt_only, run, page = tmp_path / "cache", tmp_path / "gt", tmp_path / "run", tmp_path / "report.html"
    stage_one = ("teacher-cache", photos, cache, "--teacher", f"import:{outputs}", "--tile", 64, "--hold-out", 1)
    out, err = dtkd(*stage_one)
    assert "17 of 17 samples, 17 made now" in out
    assert "17/17 tiles" in err
    out, _ = dtkd(*stage_one)
    assert "17 of 17 samples, all reused, nothing was left to do" in out

    out, _ = dtkd("train-student", cache, gt_only, *SET, "--set", "loss.lambda_max=0")
    assert "4 of 4 steps" in out
    dtkd("train-student", cache, run, *SET)
    out, _ = dtkd("train-student", cache, run, *SET)
    assert "finished before, 4 steps; reused as it is" in out

    out, _ = dtkd("evaluate", run, "--data", cache, "--metrics", "psnr_y")
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["bicubic", "run", "teacher", "gt"]
    out, _ = dtkd("report", cache, page, "--dtkd", run, "--gt-only", gt_only)
    assert out.splitlines()[-1] == f"report: {page}"
    assert page.stat().st_size > 10_000
    out, _ = dtkd("verify", cache)
    assert "17 sound samples, 0 failed ones: sound" in out


def test_a_damaged_photo_is_named_and_the_others_are_measured(cache, tmp_path):
    copy, run, page = tmp_path / "cache", tmp_path / "run", tmp_path / "report.html"
    shutil.copytree(cache, copy)
    dtkd("train-student", copy, run, *SET)
    shard, sample = next(iter(load_manifest(copy).samples("val")))
    with open(copy / f"{shard.name}.tar", "r+b") as tar:
        tar.seek(sample.members["gt"].offset + 50)
        tar.write(b"damage")
    out, _ = dtkd("evaluate", run, "--data", copy, "--metrics", "psnr_y", code=1)
    assert sample.key in out and "1 images" in out
    out, _ = dtkd("report", copy, page, "--dtkd", run, code=1)
    assert sample.key in out and out.splitlines()[-1] == f"report: {page}" and page.exists()


def test_json_is_one_object_and_nothing_else(cache, tmp_path):
    out, err = dtkd("train-student", cache, tmp_path / "run", *SET, "--json")
    assert err == ""
    assert json.loads(out)["finished"] is True
    out, err = dtkd("evaluate", "bicubic", "--data", cache, "--json", "--metrics", "ssim_y")
    assert err == ""
    assert json.loads(out)["candidates"][0]["name"] == "bicubic"
    out, _ = dtkd("verify", cache, "--json")
    assert json.loads(out)["ok"] is True


def test_unfinished_without_waiting_ends_with_1(photos, outputs, tmp_path):
    stage_one = ("teacher-cache", photos, tmp_path, "--teacher", f"import:{outputs}", "--no-wait")
    prepare(str(photos), tmp_path, ImportedTeacher(outputs, 4), settings(kind="real", samples_per_shard=64))
    (tmp_path / "leases" / "shard-00000000.json").write_text('{"host": "elsewhere"}')
    options = ("--tile", 64, "--micro-batch", 2, "--hold-out", 1)
    out, _ = dtkd(*stage_one, *options, code=1)
    assert "still at work" in out
    out, _ = dtkd(*stage_one, *options, "--json", code=1)
    assert json.loads(out)["complete"] is False
    (tmp_path / "leases" / "shard-00000000.json").unlink()
    dtkd(*stage_one, *options)


def test_imported_pictures_of_other_lr_images_are_warned_of(photos, outputs, tmp_path):
    for kind, seen in (("real", "no other system has seen"), ("bicubic", "bicubic LR images made here")):
        stage_one = ("teacher-cache", photos, tmp_path / kind, "--teacher", f"import:{outputs}", "--tile", 64)
        _, err = dtkd(*stage_one, "--degradation", kind, "--json")
        (line,) = err.splitlines()
        assert line.startswith("warning: imported pictures must have been made from the same LR images")
        assert seen in line


def test_damage_is_found_and_ends_with_1(photos, tmp_path):
    build_cache(str(photos), tmp_path, NoisyBicubic(), settings())
    shard = tmp_path / "shard-00000000.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    out, _ = dtkd("verify", tmp_path, code=1)
    assert "shard-00000000" in out


def test_options_beat_set_which_beats_the_file(photos, outputs, tmp_path):
    (tmp_path / "stage.toml").write_text('tile = 32\nseed = 5\nhold_out = 2\n[degradation]\nkind = "real"\n')
    out, _ = dtkd(
        "teacher-cache", photos, tmp_path / "cache", "--teacher", f"import:{outputs}", "--json",
        "--config", tmp_path / "stage.toml", "--set", "seed=6", "--set", "tile=128", "--tile", 64,
    )  # fmt: skip
    assert json.loads(out)["ok"] == 3 * 4 + 2
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert (manifest["tile"], manifest["seed"], manifest["degradation"]["kind"]) == (64, 6, "real")


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
            (corpus / path.name).symlink_to(path)
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
                (folder / path.name).symlink_to(path)
        images.save(corpus / "cut.jpg", images.load_rgb(photos / "coffee.png"))
        data = (corpus / "cut.jpg").read_bytes()
        (corpus / "cut.jpg").write_bytes(data[: len(data) // 2])
        (made / "cut.png").symlink_to(outputs / "coffee.png")
        stage_one = ("teacher-cache", corpus, tmp_path / "c", "--teacher", f"import:{made}", "--tile", 64)
        out, _ = dtkd(*stage_one, "--hold-out", 0, "--set", "max_failure_fraction=0.5")
        line, total = out.splitlines()
        assert line.startswith("skipped cut.jpg (4 samples): ")
        assert "4 failed" in total

    def test_a_scale_that_the_teacher_is_not_for(self, photos, tmp_path):
        out, err = dtkd("teacher-cache", photos, tmp_path / "c", "--scale", 3, "--tile", 120, code=2)
        assert out == ""
        assert err.splitlines()[-1] == "dtkd: the teacher embedded is made for scale 4, got --scale 3"
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
        assert "'psnr_x'" in refused("evaluate", "bicubic", "--data", cache, "--metrics", "psnr_x")
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

    monkeypatch.setattr("student.evaluation.evaluate.evaluate", fail)
    assert refused("evaluate", "bicubic", "--data", cache) == line


def test_a_bug_keeps_its_traceback(monkeypatch, cache):
    def fail(*args, **kwargs):
        raise ValueError("ours")

    monkeypatch.setattr("student.evaluation.evaluate.evaluate", fail)
    with pytest.raises(ValueError, match="ours"):
        dtkd("evaluate", "bicubic", "--data", cache)


def test_ctrl_c_stops_training_resumably(cache, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cli",
        "train-student",
        cache,
        tmp_path / "run",
        *SET,
        "--set",
        "train.steps=100000",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(cli.__file__).parent
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "steps" in line:  # training runs
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 1
    assert err.splitlines()[-1] == "dtkd: interrupted; run the same command again to go on"
    assert "of 100000 steps" in out
    assert (tmp_path / "run" / "student.safetensors").exists()
