"""What is known before a teacher is loaded, and caches that lost a file."""

import json
import shutil

import pytest
from cache_support import NoisyBicubic, records, settings, tars

from pipeline import shards
from pipeline.system.errors import DtkdError
from teacher_cache.building.build import build, build_cache
from teacher_cache.building.survey import survey
from teacher_cache.building.verify import verify_cache


def test_a_survey_counts_the_work_and_writes_nothing(corpus, tmp_path):
    mixed = shutil.copytree(corpus, tmp_path / "photos")
    for number in range(25):
        (mixed / f"broken{number:02d}.png").write_bytes(b"no picture")
    found = survey(mixed, tmp_path / "cache", settings())
    assert (found.photos, found.held_out, found.planned, found.done, len(found.skipped)) == (5, 1, 17, 0, 25)
    assert found.seconds_left is None
    assert found.lines[0] == "skipped broken00.png: not a PNG, JPEG, WebP, TIFF or BMP image"
    assert found.lines[-2:] == ["and 5 more skipped files", "5 photos (1 held out), 25 skipped: 17 tiles"]
    assert not (tmp_path / "cache").exists()
    assert build(found, NoisyBicubic()).ok == 17


def test_a_survey_of_begun_work_says_how_long_it_will_take(corpus, cache):
    name = "shard-00000001"
    record = json.loads(shards.done_path(cache, name).read_text())
    for path in (cache / "manifest.json", shards.done_path(cache, name)):
        path.unlink()
    for path in (cache / "done").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 60.0}))
    found = survey(corpus, cache, settings())
    left = len(record["samples"])
    assert (found.done, found.planned) == (17 - left, 17)
    assert found.seconds_left == pytest.approx(60 * 4 / (17 - left) * left)
    assert f"{17 - left} done already; about 1:40 min left at the pace so far" in found.lines[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 32}, "tile: 64 -> 32"),
        ({"kind": "real"}, "degradation.kind"),
        ({"limit": 3}, r"photos gone: .*\.png"),
    ],
)
def test_another_corpus_or_setting_is_noticed_before_the_teacher_is_loaded(corpus, cache, changes, message):
    with pytest.raises(DtkdError, match=f"was begun differently .*{message}"):
        survey(corpus, cache, settings(**changes))


def test_other_files_are_noticed_before_the_teacher_is_loaded(corpus, tmp_path):
    """A shard of another program has the name of one of ours, but no done record."""
    for name in ("notes.txt", "shard-00000000.tar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("somebody's")
        with pytest.raises(DtkdError, match="holds other files"):
            survey(corpus, tmp_path / name, settings())


def test_progress_tells_the_teachers_time_so_far(corpus, cache):
    """Of the shards that are finished, by whomever."""
    (cache / "manifest.json").unlink()
    for path in (cache / "done").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_seconds": 720.0}))
    events = []
    build_cache(str(corpus), cache, NoisyBicubic(), settings(), events.append)
    expected = ("12:00 min", "24:00 min", "36:00 min", "48:00 min", "1:00 h")
    assert [event.note for event in events] == [f"teacher {text}" for text in expected]


# Lost and damaged files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("also", ["nothing", "manifest.json", "a record"])
def test_a_lost_plan_is_written_again_by_the_same_command(corpus, finished, cache, also):
    (cache / "plan.json").unlink()
    if also != "nothing":
        (cache / "manifest.json").unlink()
    if also == "a record":
        (cache / "done" / "shard-00000002.json").unlink()
        (cache / "shard-00000002.tar").unlink()
    with pytest.raises(DtkdError, match=r"lost its plan\.json: the same `dtkd teacher-cache`"):
        verify_cache(cache)
    teacher = NoisyBicubic()
    result = build_cache(str(corpus), cache, teacher, settings())
    assert (result.complete, teacher.calls) == (True, 3 if also == "a record" else 0)
    assert (cache / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()
    assert tars(cache) == tars(finished) and records(cache) == records(finished)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_cache_without_plan_is_not_made_another_one(corpus, cache, manifest):
    """The shards would be taken for damaged ones and made anew."""
    (cache / "plan.json").unlink()
    if not manifest:
        (cache / "manifest.json").unlink()
    before = tars(cache)
    with pytest.raises(DtkdError, match=r"begun differently .*noise: 0\.05 -> 0\.1" if manifest else "fingerprint"):
        build_cache(str(corpus), cache, NoisyBicubic(noise=0.1), settings())
    assert tars(cache) == before and not (cache / "plan.json").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"schema": 1}', '{"schema": 1, "shards": 3}'])
def test_a_damaged_plan_says_what_to_do(corpus, finished, cache, text):
    (cache / "plan.json").write_text(text)
    for attempt in (lambda: verify_cache(cache), lambda: survey(corpus, cache, settings())):
        with pytest.raises(DtkdError, match=r"plan.* is damaged.*remove .*the same `dtkd teacher-cache`") as error:
            attempt()
        assert "\n" not in str(error.value)
    (cache / "plan.json").unlink()
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert tars(cache) == tars(finished)


@pytest.mark.parametrize("text", ["{}", "[]", "", "null"])
@pytest.mark.parametrize("name", ["manifest.json", "done/shard-00000001.json"])
def test_a_damaged_manifest_or_record_is_repaired(corpus, finished, cache, name, text):
    (cache / name).write_text(text)
    found = verify_cache(cache, repair=True)
    assert [item.shard for item in found.damage] == ["manifest" if name == "manifest.json" else "shard-00000001"]
    assert "another schema" not in found.damage[0].reason and "damaged" in found.damage[0].reason
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert verify_cache(cache).ok and tars(cache) == tars(finished)


def test_a_survey_counts_one_thing_as_one(corpus, tmp_path):
    mixed = shutil.copytree(corpus, tmp_path / "photos")
    for number in range(21):
        (mixed / f"broken{number:02d}.png").write_bytes(b"no picture")
    lines = survey(mixed, tmp_path / "cache", settings(limit=1, hold_out=0)).lines
    assert lines[-2] == "and 1 more skipped file"
    assert lines[-1].startswith("1 photo (0 held out), 21 skipped: ")
