import json
import os
import zlib

import pytest

from pipeline import schema, shards
from pipeline.schema import Drift, Manifest, Member, Sample, SampleError, ShardRecord
from pipeline.system.errors import DtkdError


def record(name="shard-00000000", size=3):
    good = Sample("a" * 24, "train", "ok", {n: Member(512, 10, 7) for n in (*schema.MEMBERS, "json")}, drift=0.25)
    bad = Sample("b" * 24, "train", "error", {}, SampleError("load", "ImageError", "cut off"))
    return ShardRecord(1, name, "train", "f" * 24, (good, bad), "0" * 64, size, 1.5, 1.0, 1)


def manifest(**changes):
    fields = {
        "schema": 1, "corpus": "photos", "teacher": "t", "scale": 4, "tile": 64, "degradation": {"kind": "bicubic"},
        "seed": 0, "fingerprint": {"a": 1}, "planned": 2, "ok": 1, "errors": 1, "teacher_seconds": 1.0,
        "teacher_images": 1, "drift": Drift(0.25, 0.25, 0.25, "a" * 24), "shards": (record(),),
    }  # fmt: skip
    return Manifest(**fields | changes)


def test_keys_and_seeds_are_what_earlier_caches_hold():
    """Changing either makes every existing cache useless: raise SCHEMA then."""
    key = schema.sample_key("a/ä.png", (0, 64, 256, 256), {"kind": "bicubic", "scale": 4})
    assert key == "57e965a01f2f4d9454195aa1"
    assert schema.sample_seed(0, key, "teacher") == 2284280438690892001
    assert schema.sample_seed(0, key, "degrade") == 4391524350551304884
    assert schema.TEACHERS[:2] == ("teacher", "teacher1") and len(schema.TEACHERS) == 16


def test_keys_depend_on_every_part_and_on_nothing_else():
    base = ("a", (0, 0, 8, 8), {"kind": "real", "scale": 4})
    others = [("b", *base[1:]), ("a", (0, 8, 8, 8), base[2]), ("a", base[1], {"kind": "real", "scale": 2})]
    keys = {schema.sample_key(*parts) for parts in (base, *others)}
    assert len(keys) == 4
    assert schema.sample_key("a", (0, 0, 8, 8), {"scale": 4, "kind": "real"}) in keys
    assert all("." not in key and len(key) == 24 for key in keys)


def test_seeds_fit_a_torch_generator_and_differ():
    seeds = {schema.sample_seed(r, k, p) for r in range(10) for k in "abcdefgh" for p in ("teacher", "degrade")}
    assert len(seeds) == 160
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_records_and_manifests_survive_json():
    for value in (record(), manifest(), manifest(drift=None)):
        assert type(value).from_json(json.loads(json.dumps(value.to_json()))) == value


def several(count):
    """A sample with `count` outputs of the teacher."""
    place = Member(512, 10, 7)
    return Sample(
        "a" * 24, "train", "ok", dict.fromkeys(("lr", "gt", "json", *schema.TEACHERS[:count]), place), drift=0.2
    )


@pytest.mark.parametrize("count", [1, 2, 12, 16])
def test_samples_with_several_outputs_survive_json_and_gaps_are_refused(count):
    sample = several(count)
    assert sample.outputs == count
    assert Sample.from_json(json.loads(json.dumps(sample.to_json())), "train") == sample
    for wrong in ({"teacher": 0}, {"teacher": 0, "teacher16": 1}, {"lr": 0}):  # 0: left out
        data = json.loads(json.dumps(sample.to_json()))
        for name, kept in wrong.items():
            data["members"].pop(name) if not kept else data["members"].update({name: [1, 2, 3]})
        with pytest.raises(DtkdError, match="must be ok with members"):
            Sample.from_json(data, "train")


def test_a_manifest_has_as_many_outputs_as_its_fingerprint_says():
    shard = ShardRecord(1, "shard-00000000", "train", "f", (several(2),), "0" * 64, 3, 1.5, 1.0, 2)
    two = manifest(fingerprint={"samples": 2}, shards=(shard,))
    assert Manifest.from_json(json.loads(json.dumps(two.to_json()))).outputs == 2
    for fingerprint in ({}, {"samples": 3}, {"samples": "2"}):
        with pytest.raises(DtkdError, match="has 2 outputs, expected"):
            Manifest.from_json(manifest(fingerprint=fingerprint, shards=(shard,)).to_json())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("bytes",), "3"),
        (("bytes",), True),
        (("split",), "test"),
        (("samples",), {}),
        (("samples", 0, "status"), "fine"),
        (("samples", 0, "members", "gt"), [1, 2]),
        (("samples", 0, "members", "gt"), [1, 2, -3]),
        (("samples", 0, "members"), {}),
        (("samples", 1, "error"), None),
        (("samples", 1), 3),
    ],
)
def test_damaged_records_are_refused(path, value):
    data = json.loads(json.dumps(record().to_json()))
    spot = data
    for step in path[:-1]:
        spot = spot[step]
    spot[path[-1]] = value
    with pytest.raises(DtkdError, match="damaged record"):
        ShardRecord.from_json(data)


def test_unknown_and_missing_fields_are_named():
    data = record().to_json()
    with pytest.raises(DtkdError, match="colour"):
        ShardRecord.from_json(data | {"colour": 1})
    del data["sha256"]
    with pytest.raises(DtkdError, match="sha256"):
        ShardRecord.from_json(data)


@pytest.mark.parametrize("found", [2, 0])
def test_another_schema_is_refused_with_both_numbers(tmp_path, found):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest().to_json() | {"schema": found}))
    with pytest.raises(DtkdError, match=rf"schema {found}, .* schema 1"):
        shards.load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"schema": null}', '{"schema": "1"}', '{"schema": true}', "{", ""])
def test_a_damaged_manifest_is_no_other_schema(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DtkdError, match=r"manifest.* is damaged.*`dtkd verify .* --repair`") as error:
        shards.load_manifest(tmp_path)
    assert "make the cache again" not in str(error.value)


def test_a_manifest_needs_its_tars(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest().to_json()))
    with pytest.raises(shards.DamagedShardError, match=r"shard-00000000\.tar is missing"):
        shards.load_manifest(tmp_path)
    tar = tmp_path / "shard-00000000.tar"
    tar.write_bytes(b"12")
    with pytest.raises(shards.DamagedShardError, match="has 2 bytes, expected 3"):
        shards.load_manifest(tmp_path)
    tar.write_bytes(b"123")
    assert list(shards.load_manifest(tmp_path).samples("train")) == [(record(), record().samples[0])]
    assert list(shards.load_manifest(tmp_path).samples("val")) == []


def test_what_is_no_cache_is_told_apart_from_an_unfinished_one(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DtkdError, match="no teacher cache"):
            shards.load_manifest(folder)
    (tmp_path / "plan.json").write_text(json.dumps({"schema": 1, "shards": [{"name": "a"}, {"name": "b"}]}))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "b.json").touch()
    with pytest.raises(DtkdError, match="1 of 2 shards are done"):
        shards.load_manifest(tmp_path)


def test_members_are_read_by_place_and_checked(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"....content....")
    good = Member(4, 7, zlib.crc32(b"content"))
    assert shards.read_member(path, good) == b"content"
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert shards.read_member(descriptor, good) == b"content"
        with pytest.raises(shards.DamagedShardError, match="CRC"):
            shards.read_member(descriptor, Member(3, 7, good.crc32))
        with pytest.raises(shards.DamagedShardError, match="5 bytes early"):
            shards.read_member(descriptor, Member(13, 7, good.crc32))
    finally:
        os.close(descriptor)


def test_difference_names_nested_fields():
    old = {"teacher": {"steps": 4, "name": "x"}, "tile": 256}
    new = {"teacher": {"steps": 8, "name": "x"}, "tile": 256, "seed": 1}
    assert schema.difference(old, new) == ["seed: null -> 1", "teacher.steps: 4 -> 8"]
