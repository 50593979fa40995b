"""What `sd-x4` and `ldm` can be asked for, and what is kept of where their weights came from."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from cache_support import make_corpus, settings

from pipeline.shards import load_manifest
from pipeline.system.errors import DtkdError, UsageError
from student.dataset import open_cache
from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.building.plan import load_plan
from teacher_cache.building.verify import load_teacher, verify_cache
from teacher_cache.teachers.settings import TeacherSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def lr():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_the_defaults_are_what_was_before_there_were_settings(sd_folder, ldm_folder, lr):
    """The pipeline itself, called as before; the fingerprint has no new field."""
    from diffusers import DDIMScheduler, StableDiffusionUpscalePipeline

    teacher = teachers.load(f"sd-x4:{sd_folder}", steps=2)
    assert teacher.fingerprint().keys() == {
        "name", "dtype", "scale", "steps", "scheduler", "scheduler_config", "weights",
    }  # fmt: skip
    assert teachers.load(f"ldm:{ldm_folder}", steps=2).fingerprint().keys() == teacher.fingerprint().keys()
    pipe = StableDiffusionUpscalePipeline.from_pretrained(sd_folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        prompt=["", ""], image=lr, num_inference_steps=2, guidance_scale=0.0, eta=0.0, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], return_dict=False,
    )[0]  # fmt: skip
    torch.testing.assert_close(teacher.restore(lr, [5, 6]), expected.float().clamp(0, 1), atol=0, rtol=0)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "a"},
        {"noise_level": 200},
        {"prompt": "a", "guidance": 6.0},
        {"negative_prompt": "a", "guidance": 6.0},
    ],
)
def test_each_setting_changes_the_picture_and_the_fingerprint(sd_folder, lr, asked):
    plain = teachers.load(f"sd-x4:{sd_folder}", steps=2)
    teacher = teachers.load(f"sd-x4:{sd_folder}", steps=2, settings=TeacherSettings(**asked))
    assert teacher.fingerprint() == plain.fingerprint() | asked
    assert (teacher.restore(lr, [5, 6]) - plain.restore(lr, [5, 6])).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("sd-x4", {"noise_level": 351}, r"takes a noise_level of 0\.\.350, got 351"),
        ("sd-x4", {"revision": "main"}, "is a folder, which has no revision main"),
        ("ldm", {"guidance": 2.0}, r"the teacher ldm:.* has no teacher\.guidance"),
    ],
)
def test_what_a_teacher_cannot_be_asked_is_refused(sd_folder, ldm_folder, name, asked, message):
    folder = {"sd-x4": sd_folder, "ldm": ldm_folder}[name]
    with pytest.raises(UsageError, match=message):
        teachers.load(f"{name}:{folder}", settings=TeacherSettings(**asked))


@pytest.mark.parametrize(
    "asked",
    [{"guidance": -1.0}, {"noise_level": -1}, {"negative_prompt": "blur"}, {"negative_prompt": "b", "guidance": 1.0}],
)
def test_settings_that_make_no_sense_are_refused(asked):
    with pytest.raises(UsageError, match=r"must be 0 or more|acts through guidance above 1"):
        TeacherSettings(**asked)


@pytest.fixture
def hub(sd_folder, tmp_path, monkeypatch):
    """The folder as a repository that was fetched once, in a cache of its own; the network is off."""
    home = tmp_path / "hub"
    repository = home / "models--somebody--upscaler"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(sd_folder, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: openrail++\n---\n# Model card\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for constant, value in (("HF_HUB_CACHE", str(home)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(huggingface_hub.constants, constant, value)
    return home


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_repository_commit_and_licence_are_known_and_no_part_of_the_fingerprint(hub, sd_folder, revision):
    asked = TeacherSettings(revision=revision)
    teacher = teachers.load("sd-x4:somebody/upscaler", steps=2, settings=asked)
    assert teacher.about == {"repository": "somebody/upscaler", "revision": COMMIT, "licence": "openrail++"}
    pinned = {"revision": revision} if revision else {}
    plain = teachers.load(f"sd-x4:{sd_folder}", steps=2).fingerprint()
    assert teacher.fingerprint() == plain | {"repository": "somebody/upscaler"} | pinned


def test_a_revision_that_is_not_there_is_refused(hub):
    with pytest.raises(DtkdError, match="cannot load a StableDiffusionUpscalePipeline from somebody/upscaler"):
        teachers.load("sd-x4:somebody/upscaler", settings=TeacherSettings(revision="f" * 40))


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [a\n---\n", None),
        ("---\nlicense: [a]\n---\n", None),
        ("# no\n", None),
    ],
)
def test_a_licence_is_told_where_the_card_of_a_folder_has_one(sd_folder, tmp_path, card, licence):
    folder = shutil.copytree(sd_folder, tmp_path / "copy")
    (folder / "README.md").write_text(card)
    assert teachers.load(f"sd-x4:{folder}").about == ({"licence": licence} if licence else {})


def test_the_teachers_in_the_package_have_a_licence():
    assert [teachers.load(name).about for name in teachers.EMBEDDED] == [{"licence": "apache-2.0"}] * 2


def test_what_is_known_of_the_weights_reaches_plan_manifest_and_student(hub, tmp_path):
    corpus, cache = make_corpus(tmp_path / "corpus"), tmp_path / "cache"
    teacher = teachers.load("sd-x4:somebody/upscaler", steps=1, settings=TeacherSettings(prompt="a", noise_level=3))
    build_cache(str(corpus), cache, teacher, settings(limit=2))
    plan, about = load_plan(cache), dict(teacher.about)
    assert plan.about == load_manifest(cache).about == about
    assert json.loads((cache / "plan.json").read_text())["about"] == about
    assert (plan.fingerprint["teacher"]["prompt"], plan.fingerprint["teacher"]["noise_level"]) == ("a", 3)
    origin = {"name": "sd-x4", "weights": teacher.fingerprint()["weights"], **about}
    assert open_cache(cache).teacher_origin == origin
    assert verify_cache(cache, recompute=1, teacher=load_teacher(cache, None, "cpu")).ok


def test_a_plan_of_before_is_read_and_gone_on_with(sd_folder, tmp_path):
    corpus, cache = make_corpus(tmp_path / "corpus"), tmp_path / "cache"
    teacher = teachers.load(f"sd-x4:{sd_folder}", steps=1)
    build_cache(str(corpus), cache, teacher, settings(limit=2))
    plan = json.loads((cache / "plan.json").read_text())
    assert plan.pop("about") == {}
    (cache / "plan.json").write_text(json.dumps(plan))
    assert "about" not in json.loads((cache / "manifest.json").read_text())
    teacher.about = {"licence": "mit"}
    assert build_cache(str(corpus), cache, teacher, settings(limit=2)).computed == 0
    assert verify_cache(cache).ok
