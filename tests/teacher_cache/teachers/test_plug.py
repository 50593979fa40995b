"""`--teacher python:FILE_OR_MODULE:FACTORY`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_support import make_corpus, samples, settings

from pipeline import images
from pipeline.system.errors import DtkdError, UsageError
from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import load_teacher, verify_cache

EXAMPLE = Path(__file__).parents[3] / "examples" / "python_teacher.py"
NAME = f"python:{EXAMPLE}:sharpened"
GOOD = """
class Made:
    name, scale, steps = "made", 4, 1
    def restore(self, lr, seeds):
        return lr.repeat_interleave(4, -1).repeat_interleave(4, -2)
    def fingerprint(self):
        return {"a": 1}

def factory(*, scale, steps, device, dtype):
    return Made()
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str, factory: str = "factory") -> str:
        (tmp_path / "mine.py").write_text(text)
        return f"python:{tmp_path / 'mine.py'}:{factory}"

    return write


def test_the_example_makes_a_cache(tmp_path):
    corpus, cache = make_corpus(tmp_path / "photos"), tmp_path / "cache"
    teacher = teachers.load(NAME)
    result = build_cache(str(corpus), cache, teacher, settings())
    assert (result.ok, result.errors) == (17, 0)
    plan = json.loads((cache / "plan.json").read_text())
    assert (plan["teacher"], plan["fingerprint"]["teacher"]["name"]) == (NAME, "sharpened")
    for _, pictures in samples(cache):
        lr = images.to_tensor(pictures["around"])[None]
        expected = images.to_image(teacher.restore(lr, [0])[0])[16:-16, 16:-16]
        assert np.array_equal(pictures["teacher"], expected)
    assert verify_cache(cache, recompute=3, teacher=load_teacher(cache, NAME)).ok


def test_a_cache_cannot_have_code_run(tmp_path, monkeypatch):
    """Whoever hands a cache over must not choose what runs here."""
    corpus, cache = make_corpus(tmp_path / "photos"), tmp_path / "cache"
    build_cache(str(corpus), cache, teachers.load(NAME), settings())
    ran = tmp_path / "ran"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(ran)!r}, 'w')")
    plan = json.loads((cache / "plan.json").read_text())
    (cache / "plan.json").write_text(json.dumps(plan | {"teacher": f"python:{evil}:factory"}))
    with pytest.raises(DtkdError, match=r"code is not run because a cache names it; .*--teacher python:"):
        load_teacher(cache)
    assert not ran.exists()


def test_the_code_is_in_the_fingerprint(written):
    one = teachers.load(written(GOOD)).fingerprint()
    two = teachers.load(written(GOOD + "# changed\n")).fingerprint()
    assert one["code"] != two["code"]
    assert one["teacher"] == {"a": 1} and one["name"] == "made"


def test_a_module_and_the_neighbours_of_a_file_can_be_imported(written, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_neighbour.py").write_text("SCALE = 4\n")
    text = GOOD.replace('"made", 4, 1', '"made", SCALE, 1')
    assert teachers.load(written("from my_neighbour import SCALE\n" + text)).scale == 4
    (tmp_path / "my_own_module.py").write_text(GOOD)
    made = teachers.load("python:my_own_module:factory")
    assert made.restore(torch.zeros(1, 3, 2, 2), [0]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def factory", "def other", "has no function factory: found Made, other"),
        ("class Made", "import nothing_like_it\nclass Made", r"importing .* \(ModuleNotFoundError at mine.py, line 2"),
        ("return Made()", "return 1 / 0", r"factory failed \(ZeroDivisionError at mine.py, line 10: division by zero"),
        ("*, scale, steps, device, dtype", "scale", r"factory failed \(TypeError at .*unexpected keyword .*'steps'"),
        ("return Made()", "return None", "this one lacks name scale steps restore fingerprint"),
        ("def restore", "def run", "this one lacks restore"),
        ('"made", 4, 1', "None, 4, 1", "must return a teacher with a name, got None"),
        ('"made", 4, 1', '"made", 4, 0', "whose steps is 1 or more, got 0"),
        ('"made", 4, 1', '"made", 2, 1', "is made for scale 2, got --scale 4"),
        ('{"a": 1}', "[1]", "fingerprint must return a dictionary, got list"),
        ('{"a": 1}', '{"a": {1}}', r"fingerprint is no JSON \(TypeError"),
        ('{"a": 1}', '{"a": float("nan")}', r"fingerprint is no JSON \(ValueError"),
    ],
)  # fmt: skip
def test_what_is_no_teacher_is_refused_in_one_line(written, old, new, message):
    assert old in GOOD
    with pytest.raises(DtkdError, match=message) as error:
        teachers.load(written(GOOD.replace(old, new)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["python:", "python:mine.py", "python:mine.py:", "python::factory", "python:a.py:b c"])
def test_a_name_of_another_form_is_wrong_usage(name):
    with pytest.raises(UsageError, match="python:FILE_OR_MODULE:FACTORY, got"):
        teachers.load(name)


def test_a_missing_file_and_module(tmp_path):
    with pytest.raises(DtkdError, match=r"nowhere\.py does not exist"):
        teachers.load(f"python:{tmp_path}/nowhere.py:factory")
    with pytest.raises(DtkdError, match="importing no_such_module failed"):
        teachers.load("python:no_such_module:factory")


def test_steps_that_the_factory_ignores_are_refused(written):
    with pytest.raises(DtkdError, match="has steps 1, asked for 7"):
        teachers.load(written(GOOD), steps=7)


def test_a_picture_of_a_wrong_size_is_an_error_of_its_sample(written, tmp_path):
    name = written(GOOD.replace("repeat_interleave(4, -2)", "repeat_interleave(3, -2)"))
    with pytest.raises(DtkdError, match="the teacher must return"):
        build_cache(str(make_corpus(tmp_path / "photos")), tmp_path / "cache", teachers.load(name), settings())
