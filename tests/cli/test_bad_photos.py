"""Three bad photos of a hundred, each bad in another way: they stop nothing unless asked to, and all are told of."""

import json

import numpy as np
import pytest
from cache_support import tars
from cli_support import dtkd
from launch_support import ROOT
from PIL import Image
from skimage import data

from pipeline.shards import load_manifest

SMALL = ("--tile", 64, "--hold-out", 1, "--set", "samples_per_shard=10", "--degradation", "bicubic")
TEACHER = ("--teacher", f"python:{ROOT}/tests/noisy_teacher.py:patient")
CUT, FLIPPED, NO_PICTURE = "010.png", "050.png", "090.png"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, photo = tmp_path_factory.mktemp("corpus") / "photos", data.astronaut()
    folder.mkdir()
    for number in range(100):
        y, x = number // 10 * 44, number % 10 * 44
        Image.fromarray(np.ascontiguousarray(photo[y : y + 64, x : x + 64])).save(folder / f"{number:03d}.png")
    half = (folder / CUT).read_bytes()
    (folder / CUT).write_bytes(half[: len(half) // 2])
    flipped = bytearray((folder / FLIPPED).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / FLIPPED).write_bytes(flipped)
    (folder / NO_PICTURE).write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """What the command prints and leaves."""
    cache = tmp_path_factory.mktemp("made") / "cache"
    return cache, dtkd("teacher-cache", corpus, cache, *SMALL, *TEACHER)[0].splitlines()


def test_they_stop_nothing_and_are_listed_at_the_end(made):
    cache, lines = made
    assert [line.partition(":")[0] for line in lines[:3]] == [
        f"skipped {NO_PICTURE}", f"skipped {CUT} (1 sample)", f"skipped {FLIPPED} (1 sample)",
    ]  # fmt: skip
    assert "not a PNG" in lines[0] and all("damaged" in line for line in lines[1:3])
    assert f"{cache}: 97 of 99 samples" in lines[3] and "2 failed" in lines[3]
    assert (load_manifest(cache).ok, load_manifest(cache).errors) == (97, 2)
    assert "97 sound samples, 2 failed ones: sound" in dtkd("verify", cache)[0]


def test_status_lists_them(made):
    cache, _ = made
    out, _ = dtkd("status", cache)
    assert all(name in out for name in (CUT, FLIPPED, NO_PICTURE)), out
    found = json.loads(dtkd("status", cache, "--json")[0])
    assert [item["id"] for item in found["skipped"]] == [NO_PICTURE]
    (kind,) = found["kinds"]
    assert sorted([kind["photo"], *kind["others"]]) == [CUT, FLIPPED]


def test_max_failures_stops_the_run_and_a_larger_one_goes_on(corpus, made, tmp_path):
    command = ("teacher-cache", corpus, tmp_path / "cache", *SMALL, *TEACHER)
    _, err = dtkd(*command, "--max-failures", 0.01, code=1)
    line = err.splitlines()[-1]
    assert "1 of " in line and "more than --max-failures 0.01 allows" in line and "larger --max-failures" in line
    assert not (tmp_path / "cache" / "manifest.json").exists()
    dtkd(*command, "--max-failures", 0.05)
    assert tars(tmp_path / "cache") == tars(made[0])


@pytest.mark.parametrize("share", ["-0.1", "3", "some"])
def test_it_is_a_share(corpus, tmp_path, share):
    _, err = dtkd("teacher-cache", corpus, tmp_path / "cache", "--max-failures", share, code=2)
    assert "--max-failures" in err
