"""`import:FOLDER`."""

import os
import shutil

import numpy as np
import pytest
import torch
from cache_support import make_corpus, settings
from PIL import Image

from pipeline.system.errors import DtkdError, UsageError
from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import load_teacher, verify_cache


def test_imported_outputs_are_found_by_path_then_by_stem(tmp_path):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("a/one.png", "b/one.webp", "two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    teacher = teachers.load(f"import:{tmp_path}")
    assert teacher.lookup("a/one.jpeg") == tmp_path / "a/one.png"
    assert teacher.lookup("deep/two.png") == tmp_path / "two.jpg"
    with pytest.raises(DtkdError, match="several imported outputs"):
        teacher.lookup("c/one.png")
    with pytest.raises(DtkdError, match="no imported output for three"):
        teacher.lookup("three.png")
    with pytest.raises(DtkdError, match=r"two\.jpg would serve deep/two\.png and two\.png"):
        teacher.check_photos(["deep/two.png", "three.png", "two.png"])
    before = teacher.fingerprint()
    Image.fromarray(np.ones((8, 8, 3), np.uint8)).save(tmp_path / "two.jpg")
    assert teachers.load(f"import:{tmp_path}").fingerprint() != before


def test_a_picture_of_another_folder_is_never_taken(tmp_path):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "x").mkdir()
    image.save(tmp_path / "x" / "001.png")
    teacher = teachers.load(f"import:{tmp_path}")
    for photo in ("y/001.png", "001.png"):
        with pytest.raises(DtkdError, match=f"no imported output for {photo}"):
            teacher.lookup(photo)
    image.save(tmp_path / "001.png")
    teacher = teachers.load(f"import:{tmp_path}")
    assert teacher.lookup("001.jpg") == tmp_path / "001.png"
    with pytest.raises(DtkdError, match="several imported outputs"):
        teacher.lookup("y/001.png")


def test_two_pictures_for_one_photo_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    with pytest.raises(DtkdError, match=r"a\.jpg and a\.png are both for photo a: remove one") as error:
        teachers.load(f"import:{tmp_path}")
    assert "\n" not in str(error.value)


def test_only_regular_files_are_opened(tmp_path):
    """Opening a pipe waits for somebody to write into it, for ever."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert teachers.load(f"import:{tmp_path}").fingerprint()["pictures"] == 1


def test_imported_pictures_are_compared_with_their_files_again(tmp_path):
    corpus, cache = make_corpus(tmp_path / "photos"), tmp_path / "cache"
    shutil.copytree(corpus, tmp_path / "made")
    build_cache(str(corpus), cache, teachers.load(f"import:{tmp_path / 'made'}"), settings())
    with pytest.raises(DtkdError, match="was made with import:made: --teacher says where it is now"):
        load_teacher(cache)
    found = verify_cache(cache, recompute=17, teacher=load_teacher(cache, f"import:{tmp_path / 'made'}"))
    assert found.ok and [item.max_difference for item in found.recomputed] == [0] * 17


def test_advice_for_a_bad_picture_can_be_followed(tmp_path):
    """Mending it changes the fingerprint, so that --retry-errors would be refused."""
    corpus, made = make_corpus(tmp_path / "photos"), tmp_path / "made"
    shutil.copytree(corpus, made)
    (made / "coffee.png").write_bytes(b"no picture")
    cache = tmp_path / "cache"
    with pytest.raises(DtkdError, match="imported pictures: remove or repair them and take a new cache folder"):
        build_cache(str(corpus), cache, teachers.load(f"import:{made}"), settings())
    shutil.copy(corpus / "coffee.png", made)
    assert build_cache(str(corpus), tmp_path / "new", teachers.load(f"import:{made}"), settings()).errors == 0


def test_imported_pictures_restore_nothing_else(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DtkdError, match="holds finished pictures"):
        teachers.load(f"import:{tmp_path}").restore(torch.zeros(1, 3, 2, 2), [0])


@pytest.mark.parametrize("option", [{"steps": 4}, {"dtype": "bf16"}])
def test_options_of_a_network_are_refused(tmp_path, option):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="computes nothing: --steps and --dtype are for teachers that do"):
        teachers.load(f"import:{tmp_path}", **option)
