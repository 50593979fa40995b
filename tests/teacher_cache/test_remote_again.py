"""`--retry-errors` at a URL: as in a folder, and whoever looks at any moment sees only what is whole."""

import numpy as np
import pytest
from cache_support import URL, NoisyBicubic, build_at_url, remote_tars, samples, tars, whole_records

from pipeline import images
from pipeline.shards import load_manifest
from pipeline.storage.places import Remote
from pipeline.system.errors import DtkdError
from teacher_cache.building.verify import verify_cache
from teacher_cache.remote import RemoteCache

SHARD = "shard-00000000"


@pytest.fixture
def failed(corpus, finished, store, tmp_path):
    """A finished cache at the URL in which the first sample has failed, made on a machine that is gone."""
    victim = next(pictures["around"] for _, pictures in samples(finished))
    moody = NoisyBicubic(refuse=lambda lr: np.array_equal(images.to_image(lr), victim))
    assert build_at_url(corpus, tmp_path / "gone", "0-", moody).errors == 1
    assert build_at_url(corpus, tmp_path / "gone", "0-").errors == 1, "not without being asked"
    assert [shard.name for shard in load_manifest(URL).shards if shard.errors] == [SHARD]
    return store


def watched(monkeypatch, store, after):
    """Call `after` with what was done, behind every operation that changes the store."""
    for name in ("put_file", "rm_file"):
        monkeypatch.setattr(type(store), name, _then(getattr(type(store), name), name, after))


def _then(do, name, after):
    def act(self, *args, **options):
        do(self, *args, **options)
        after(f"{name} {args[-1].rpartition('cache/')[2]}")

    return act


@pytest.mark.parametrize("machine", ["gone", "another"])
def test_failed_samples_are_made_again_and_the_others_taken_over(corpus, finished, failed, tmp_path, machine):
    teacher = NoisyBicubic()
    result = build_at_url(corpus, tmp_path / machine, "0-", teacher, retry_errors=True)
    assert (result.complete, result.errors, result.ok, result.computed) == (True, 0, 17, 5)
    assert teacher.calls == 1, "the one micro-batch"
    assert remote_tars(failed) == tars(finished)
    assert load_manifest(URL).ok == 17 and verify_cache(URL).ok and whole_records(failed) == 10
    left = [path for path in (tmp_path / machine / "making").rglob("*") if path.suffix in (".tar", ".tmp")]
    assert not left, "a tar goes when the store has it"
    again = build_at_url(corpus, tmp_path / machine, "0-", teacher, retry_errors=True)
    assert (again.computed, teacher.calls) == (0, 1)


def test_no_record_ever_stands_beside_a_tar_of_another(corpus, failed, tmp_path, monkeypatch):
    steps = []
    watched(monkeypatch, failed, lambda step: (steps.append(step), whole_records(failed)))
    assert build_at_url(corpus, tmp_path / "another", "0-", retry_errors=True).errors == 0
    replaced = [
        "rm_file manifest.json",
        f"rm_file done/{SHARD}.json",
        f"put_file {SHARD}.tar",
        f"put_file done/{SHARD}.json",
    ]
    assert steps == [*replaced, "put_file manifest.index", "put_file manifest.json"]


class Killed(BaseException):
    """Nothing that the program would catch."""


@pytest.mark.parametrize("goes_on", ["the same machine", "another machine", "without being asked"])
@pytest.mark.parametrize("at", range(1, 7))
def test_killed_after_any_step_the_same_command_goes_on(corpus, finished, failed, tmp_path, monkeypatch, at, goes_on):
    left = at

    def die(step):
        nonlocal left
        left -= 1
        whole_records(failed)
        if not left:
            raise Killed

    with monkeypatch.context() as broken:
        watched(broken, failed, die)
        with pytest.raises(Killed):
            build_at_url(corpus, tmp_path / "one", "0-", retry_errors=True)
    whole_records(failed)
    teacher, machine = NoisyBicubic(), "two" if goes_on == "another machine" else "one"
    result = build_at_url(corpus, tmp_path / machine, "0-", teacher, retry_errors=goes_on != "without being asked")
    assert result.complete and verify_cache(URL).ok and whole_records(failed) == 10
    if goes_on == "without being asked" and at == 1:
        assert result.errors == 1, "only the manifest was gone, and is there again"
        return
    assert result.errors == 0 and remote_tars(failed) == tars(finished)
    calls = {"another machine": [1, 3, 3, 0, 0, 0], "the same machine": [1, 0, 0, 0, 0, 0]}
    if goes_on in calls:
        assert teacher.calls == calls[goes_on][at - 1]


def test_killed_before_the_store_was_touched_the_old_shard_counts(corpus, finished, failed, tmp_path):
    """Its tar was fetched, its record in the folder set back."""
    dying = NoisyBicubic(refuse=lambda lr: kill())

    def kill():
        raise Killed

    with pytest.raises(Killed):
        build_at_url(corpus, tmp_path / "one", "0-", dying, retry_errors=True)
    assert list((tmp_path / "one").rglob(f"{SHARD}.tar")) and whole_records(failed) == 10
    plain = build_at_url(corpus, tmp_path / "one", "0-")
    assert (plain.complete, plain.errors, plain.computed) == (True, 1, 0)
    teacher = NoisyBicubic()
    assert build_at_url(corpus, tmp_path / "one", "0-", teacher, retry_errors=True).errors == 0
    assert teacher.calls == 1 and remote_tars(failed) == tars(finished)


def test_a_shard_whose_tar_is_damaged_is_made_again_as_far_as_it_is(corpus, finished, failed, tmp_path):
    data = bytearray(failed.cat_file(f"/bucket/cache/{SHARD}.tar"))
    data[-30_000:] = bytes(30_000)
    failed.pipe_file(f"/bucket/cache/{SHARD}.tar", bytes(data))
    assert build_at_url(corpus, tmp_path / "another", "0-", retry_errors=True).errors == 0
    assert remote_tars(failed) == tars(finished) and verify_cache(URL).ok


# Others at the same time ---------------------------------------------------------------------------------------------


def test_a_process_of_the_same_machine_that_begins_meanwhile_leaves_it_alone(corpus, finished, failed, tmp_path):
    """It would bring the old record back, and take the fetched tar for one that is not needed."""
    done = []

    def look(_):
        other = RemoteCache(Remote(URL), tmp_path / "one")
        other.begin()
        done.append(sorted(other.done))
        return False

    teacher = NoisyBicubic(refuse=look)
    result = build_at_url(corpus, tmp_path / "one", "0-", teacher, retry_errors=True)
    assert (result.errors, teacher.calls) == (0, 1)
    assert len(done) == 2 and all(SHARD not in names and len(names) == 4 for names in done)
    assert remote_tars(failed) == tars(finished) and whole_records(failed) == 10


def test_another_machine_that_ends_meanwhile_writes_no_old_manifest(corpus, failed, tmp_path):
    """It has looked before the shard was made again, and merges the records afterwards."""
    other = RemoteCache(Remote(URL), tmp_path / "other")
    other.begin()
    assert build_at_url(corpus, tmp_path / "one", "0-", retry_errors=True).errors == 0
    names = sorted(other.done)
    assert other.finalize(names).errors == 0
    assert load_manifest(URL).errors == 0 and whole_records(failed) == 10
    late = RemoteCache(Remote(URL), tmp_path / "late")
    late.begin()
    failed.rm_file(f"/bucket/cache/done/{SHARD}.json")  # it is being replaced
    for _ in range(2):
        with pytest.raises(DtkdError, match=f"{SHARD} is being made again elsewhere"):
            late.finalize(names)
        assert not failed.exists("/bucket/cache/manifest.json")


def test_a_record_that_goes_while_all_are_read_is_not_done(corpus, failed, tmp_path, monkeypatch):
    ls = type(failed).ls

    def replace(self, path, **options):
        found = ls(self, path, **options)
        if path.endswith("done") and failed.exists(f"/bucket/cache/done/{SHARD}.json"):
            failed.rm_file(f"/bucket/cache/done/{SHARD}.json")
        return found

    monkeypatch.setattr(type(failed), "ls", replace)
    other = RemoteCache(Remote(URL), tmp_path / "other")
    other.begin()
    assert len(other.done) == 4 and SHARD not in other.done
