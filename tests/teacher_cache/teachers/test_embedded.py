"""The teachers in this package, and folders of `dtkd train-teacher`."""

import json
import shutil

import pytest
import torch
from cache_support import make_corpus, settings
from skimage import data
from torch.nn.functional import avg_pool2d

from pipeline.corpus import scan, split_photos
from pipeline.system.errors import DtkdError
from pipeline.system.files import sample_file
from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.teachers.embedded import TRAINING_PHOTOS


@pytest.mark.parametrize("name", sorted(teachers.EMBEDDED))
def test_two_seeds_differ_in_texture_and_agree_in_tone(name):
    lr = torch.from_numpy(data.astronaut()[128:256:4, 128:256:4].copy()).permute(2, 0, 1)[None] / 255
    one, two = (teachers.load(name).restore(lr, [seed]) for seed in (1, 2))
    difference = one - two
    tone, texture = avg_pool2d(difference, 4).std(), difference.std()
    assert texture > 2 / 255 and tone < texture / 3


def test_the_embedded_teacher_refuses_fp16():
    with pytest.raises(DtkdError, match="embedded runs in fp32 or bf16"):
        teachers.load("embedded", dtype="fp16", device="meta")


def test_a_teacher_says_what_it_was_not_trained_for(haar_folder):
    embedded, clean = teachers.load("embedded"), teachers.load("embedded-bicubic")
    assert embedded.unsuited("real") is clean.unsuited("bicubic") is embedded.unsuited("paired") is None
    assert teachers.load(str(haar_folder)).unsuited("bicubic") is None
    assert "embedded-bicubic restores bicubic LR images better" in str(embedded.unsuited("bicubic"))


@pytest.fixture
def trained_folder(haar_folder, tmp_path):
    """A run folder of `dtkd train-teacher`, the teacher one level down."""
    shutil.copytree(haar_folder, tmp_path / "run" / "teacher")
    return tmp_path / "run"


def test_held_out_photos_that_the_teacher_was_trained_on_are_refused(trained_folder, tmp_path):
    """It would be measured on its own training photos."""
    corpus = make_corpus(tmp_path / "photos")
    sources = scan(corpus).sources
    held_out = [source for count in (1, 2, 3) for source in split_photos(sources, count).val]
    first = held_out[0]  # of what is held out, the first to go
    seen = sorted(sample_file(source.path) for source in sources if source.id != first.id)
    (trained_folder / "teacher" / TRAINING_PHOTOS).write_text(json.dumps({"photos": seen}))
    teacher = teachers.load(str(trained_folder))
    with pytest.raises(DtkdError, match=r"trained on 2 of the 3 held-out photos .* take --hold-out 1,") as error:
        build_cache(str(corpus), tmp_path / "cache", teacher, settings(hold_out=3))
    assert "\n" not in str(error.value) and not (tmp_path / "cache").exists()
    assert build_cache(str(corpus), tmp_path / "cache", teacher, settings(hold_out=1)).ok == 17


def test_a_damaged_list_of_training_photos_is_refused(trained_folder):
    for text in ("[]", '{"photos": 3}', "{}", "not json"):
        (trained_folder / "teacher" / TRAINING_PHOTOS).write_text(text)
        with pytest.raises(DtkdError, match=r"training_photos\.json is damaged"):
            teachers.load(str(trained_folder))
