"""The index of a manifest says what the manifest says, or is not used."""

import hashlib

import numpy as np
import pytest

from pipeline import shards
from pipeline.schema import AROUND, Manifest, Member, Sample, SampleError, ShardRecord, canonical_bytes
from pipeline.shards import DamagedShardError, index_bytes, load_index, load_manifest, shard_path
from pipeline.system.errors import DtkdError


def sample(key, split, *members):
    chance = np.random.default_rng(int(key, 16))
    places = {name: Member(*(int(n) for n in chance.integers(2**31, 2**32, 3))) for name in members}
    return Sample(f"{key:0>24}", split, "ok", places, drift=0.5)


def record(name, split, samples):
    return ShardRecord(1, name, split, "f" * 24, tuple(samples), "0" * 64, 3, 1.0, 1.0, len(samples))


def manifest(outputs=1):
    members = ("lr", "gt", "json", *(f"teacher{n or ''}" for n in range(outputs)))
    bad = Sample("b" * 24, "train", "error", {}, SampleError("load", "ImageError", "cut off"))
    train = [
        record(
            "shard-00000000", "train", [sample("1", "train", *members, AROUND), bad, sample("2", "train", *members)]
        ),
        record("shard-00000001", "train", [bad]),
        record("shard-00000002", "train", [sample("3", "train", *members, AROUND)]),
    ]
    val = [record("val-00000000", "val", [sample("4", "val", *members)])]
    several = {"samples": outputs} if outputs > 1 else {}
    return Manifest(1, "photos", "t", 4, 64, {"kind": "real"}, 0, several, 5, 4, 1, 1.0, 4, None, (*train, *val))


def store(folder, made):
    data = canonical_bytes(made.to_json())
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.index").write_bytes(index_bytes(made, hashlib.sha256(data).hexdigest()))
    for shard in made.shards:
        shard_path(folder, shard.name).write_bytes(b"abc")


def rows(folder, split):
    """Everything of an index, sample by sample."""
    index = load_index(folder, split)
    about = [index.scale, index.tile, index.teacher, index.members, index.shards]
    names = [index.shards[number] for number in index.shard_of]
    places = [dict(zip(index.members, map(tuple, row), strict=True)) for row in index.places.tolist()]
    return about, list(zip(names, index.keys.tolist(), places, map(tuple, index.around.tolist()), strict=True))


def expected(made, split):
    """The same by way of the manifest's own objects."""
    names = tuple(shard.name for shard in made.shards if shard.split == split)
    members = ("lr", "gt", "teacher", "json", *(f"teacher{n}" for n in range(1, made.outputs)))
    found = []
    for shard, item in made.samples(split):
        places = {name: (p.offset, p.size, p.crc32) for name, p in item.members.items()}
        around = places.pop(AROUND, (0, 0, 0))
        found.append((shard.name, item.key.encode(), places, around))
    return [4, 64, "t", members, names], found


def forbidden(*_):
    raise AssertionError("the manifest was parsed")


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_index_says_what_the_manifest_says_without_parsing_it(tmp_path, monkeypatch, outputs, split):
    store(tmp_path, made := manifest(outputs))
    monkeypatch.setattr(shards, "load_manifest", forbidden)
    assert rows(tmp_path, split) == expected(made, split)


def cut(data):
    return data[:-1]


def flip(data):
    return data[:-30] + bytes([data[-30] ^ 4]) + data[-29:]


@pytest.mark.parametrize(
    "harm", [cut, flip, lambda data: b"", lambda data: b"no index\n" + data], ids=["cut", "flipped", "empty", "foreign"]
)
def test_a_damaged_or_missing_index_does_not_matter(tmp_path, harm):
    store(tmp_path, made := manifest())
    path = tmp_path / "manifest.index"
    path.write_bytes(harm(path.read_bytes()))
    assert rows(tmp_path, "train") == expected(made, "train")
    path.unlink()
    assert rows(tmp_path, "val") == expected(made, "val")


def test_an_index_of_another_manifest_is_not_used(tmp_path):
    store(tmp_path, manifest())
    (tmp_path / "manifest.json").write_bytes(canonical_bytes((newer := manifest(2)).to_json()))
    assert rows(tmp_path, "train") == expected(newer, "train")


def test_an_index_hides_no_fault_of_the_cache(tmp_path):
    store(tmp_path, manifest())
    shard_path(tmp_path, "val-00000000").write_bytes(b"abcd")
    with pytest.raises(DamagedShardError, match="has 4 bytes, expected 3"):
        load_index(tmp_path, "train")
    (tmp_path / "manifest.json").write_bytes(b'{"schema": 7}')
    with pytest.raises(DtkdError, match="schema 7"):
        load_index(tmp_path, "train")
    (tmp_path / "manifest.json").unlink()
    for read in (lambda: load_index(tmp_path, "train"), lambda: load_manifest(tmp_path)):
        with pytest.raises(DtkdError, match="no teacher cache"):
            read()
