"""The commands, from photos to a report."""

import json
import shutil

import numpy as np
import pytest
from cache_support import NoisyBicubic, settings
from cli_support import SET, dtkd
from PIL import Image

from pipeline.shards import load_manifest
from teacher_cache.building.build import build_cache, prepare
from teacher_cache.teachers.imported import ImportedTeacher


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
    assert sample.key in out and "\n1 image, x4" in out
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_can_be_chosen_and_is_told(cache, tmp_path, precision):
    out, _ = dtkd("train-student", cache, tmp_path / "run", *SET, "--set", f"train.precision={precision}", "--json")
    assert json.loads(out)["precision"] == precision
    choice = ("--precision", precision)
    out, _ = dtkd("evaluate", "tiny-x4", "--data", cache, "--json", "--metrics", "psnr_y", *choice)
    found = {row["role"]: row["precision"] for row in json.loads(out)["candidates"]}
    assert found == {"baseline": None, "student": precision, "teacher": None, "gt": None}
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    out, _ = dtkd("upscale", tmp_path / "a.png", tmp_path / "b.png", "--json", *choice)
    assert json.loads(out)["precision"] == precision
    out, _ = dtkd("upscale", tmp_path / "a.png", tmp_path / "c.png", *choice)
    assert out.splitlines()[-1] == f"1 written, 0 left alone, 0 failed; {precision}"


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
        out, err = dtkd(*stage_one, "--degradation", kind, "--json")
        (line,) = json.loads(out)["warnings"]
        assert err == ""
        assert line.startswith("imported pictures must have been made from the same LR images")
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
    (tmp_path / "stage.toml").write_text('tile = 32\nseed = 5\nhold_out = 1\n[degradation]\nkind = "real"\n')
    (tmp_path / "later.toml").write_text("hold_out = 2\n")
    out, _ = dtkd(
        "teacher-cache", photos, tmp_path / "cache", "--teacher", f"import:{outputs}", "--json",
        "--config", tmp_path / "stage.toml", "--config", tmp_path / "later.toml",
        "--set", "seed=6", "--set", "tile=128", "--tile", 64,
    )  # fmt: skip
    assert json.loads(out)["ok"] == 3 * 4 + 2
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert (manifest["tile"], manifest["seed"], manifest["degradation"]["kind"]) == (64, 6, "real")
