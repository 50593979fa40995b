"""Files that somebody made to harm: what they claim is bounded before it is believed, and nothing of them is run."""

import io
import json
import pickle
import tarfile
import zlib

import numpy as np
import pytest
from cache_support import NoisyBicubic, make_corpus, settings
from PIL import Image
from tiny_cache import write_cache

from pipeline import images
from pipeline.images import MAX_BYTES, ImageError, load_rgb, probe
from pipeline.picture_folder import PictureFolder
from pipeline.schema import Member, ShardRecord
from pipeline.shards import MAX_MEMBER, DamagedShardError, load_manifest, read_member
from pipeline.system import files
from pipeline.system.errors import DtkdError
from pipeline.system.files import parse_json, read_json
from student.dataset import open_cache
from student.model.weight_files import load_student
from teacher_cache.building.build import build_cache
from teacher_cache.building.plan import load_plan
from teacher_cache.building.verify import verify_cache


def changed(path, change):
    """A JSON file with one thing changed."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_an_image_file_of_too_many_bytes_is_refused_unread(tmp_path):
    path = tmp_path / "huge.webp"
    path.write_bytes(images.encode_webp(np.zeros((8, 8, 3), np.uint8)))
    with open(path, "r+b") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no space
    for read in (probe, load_rgb):
        with pytest.raises(ImageError, match=f"too large, at most {MAX_BYTES} bytes"):
            read(path)


def test_text_chunks_that_unfold_to_gigabytes_are_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9)
    chunk = len(body).to_bytes(4, "big") + b"zTXt" + body + zlib.crc32(b"zTXt" + body).to_bytes(4, "big")
    data = file.getvalue()
    path = tmp_path / "bomb.png"
    path.write_bytes(data[:33] + chunk + data[33:])  # after IHDR
    with pytest.raises(ImageError, match="damaged"):
        load_rgb(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b"\xff\xfe", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_json_that_is_none_is_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(DtkdError, match=reason) as caught:
        read_json(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(DtkdError, match="member is damaged"):
        parse_json(text, "member")


def test_a_json_file_of_too_many_bytes_is_refused_unread(tmp_path):
    path = tmp_path / "manifest.json"
    with open(path, "wb") as file:
        file.truncate(files.MAX_JSON + 1)
    with pytest.raises(DtkdError, match=f"at most {files.MAX_JSON} are read"):
        read_json(path)


@pytest.mark.parametrize("member", [Member(0, 2**61, 0), Member(2**61, 1, 0), Member(512, MAX_MEMBER, 0)])
def test_a_member_that_claims_more_than_there_is_is_not_read(tmp_path, member):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(1024))
    with pytest.raises(DamagedShardError, match=r"ends .* bytes early"):
        read_member(path, member)


def test_a_member_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        file.truncate(MAX_MEMBER + 2)
    with pytest.raises(DamagedShardError, match=f"at most {MAX_MEMBER} are read"):
        read_member(path, Member(0, MAX_MEMBER + 1, 0))


@pytest.mark.parametrize("place", [[2**63, 1, 0], [0, 2**64, 0], [0, 1, 2**32]])
def test_numbers_that_fit_no_file_are_no_place(tmp_path, place):
    cache = write_cache(tmp_path / "c")
    changed(cache / "manifest.json", lambda m: m["shards"][0]["samples"][0]["members"].update(gt=place))
    with pytest.raises(DtkdError, match="a member must be"):
        open_cache(cache)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "shard-00000000/../../x", "val-00000000", "shard-1", "shard-00000000\n"]
)
def test_names_of_shards_do_not_lead_out_of_the_cache(tmp_path, name):
    cache = write_cache(tmp_path / "tiny")
    changed(cache / "manifest.json", lambda m: m["shards"][0].update(name=name))
    with pytest.raises(DtkdError, match="must be named like shard-00000000"):
        load_manifest(cache)
    corpus, made = make_corpus(tmp_path / "corpus"), tmp_path / "cache"
    build_cache(str(corpus), made, NoisyBicubic(), settings(limit=2))
    record = json.loads((made / "done" / "shard-00000000.json").read_text())
    with pytest.raises(DtkdError, match="must be named like"):
        ShardRecord.from_json(record | {"name": name})
    changed(made / "plan.json", lambda plan: plan["shards"][0].update(name=name))
    for look in (
        load_plan,
        verify_cache,
        lambda cache: build_cache(str(corpus), cache, NoisyBicubic(), settings(limit=2)),
    ):
        with pytest.raises(DtkdError, match="must be named like shard-00000000"):
            look(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "corpus", "tiny"]


def test_members_of_a_tar_are_never_unpacked_nor_unpickled(tmp_path):
    """WebDataset's own decoder would unpickle `.pyd` and `.pickle`; members here are read by their place alone."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    corpus, cache = make_corpus(tmp_path / "corpus"), tmp_path / "cache"
    build_cache(str(corpus), cache, NoisyBicubic(), settings(limit=2))
    shard = cache / "shard-00000000.tar"
    with tarfile.open(shard, "a") as tar:
        for name in ("../escaped.txt", "x.pickle", "x.pyd"):
            info, data = tarfile.TarInfo(name), pickle.dumps(Trap())
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    changed(cache / "manifest.json", lambda m: m["shards"][0].update(bytes=shard.stat().st_size))
    dataset = open_cache(cache)
    assert len([dataset[index] for index in range(len(dataset))]) == 4
    assert any("escaped" in item.reason or "expected" in item.reason for item in verify_cache(cache).damage)
    weights = tmp_path / "student.pth"
    weights.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DtkdError, match="no SwinIR checkpoint"):
        load_student(weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "corpus", "student.pth"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("gt", b"RIFF????WEBP is this not", "gt: .*dtkd verify"),
        ("json", b"[" * 5000, "description is damaged"),
        ("json", b"[1]", "description is no JSON object"),
    ],
)
def test_content_that_only_its_crc_makes_sound_is_named(tmp_path, name, data, words):
    cache = write_cache(tmp_path / "c", shards=(2,), val=0)
    tar = cache / "shard-00000000.tar"
    manifest = load_manifest(cache)
    sample = manifest.shards[0].samples[1]
    place = sample.members[name]
    data = data[: place.size] if name == "gt" else data
    changed(
        cache / "manifest.json",
        lambda m: m["shards"][0]["samples"][1]["members"].update({name: [512, len(data), zlib.crc32(data)]}),
    )
    with open(tar, "r+b") as file:  # over the first sample: nobody reads that here
        file.seek(512)
        file.write(data)
    with pytest.raises(DamagedShardError, match=words) as caught:
        open_cache(cache)[1]
    assert sample.key in str(caught.value) and tar.name in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_photos_do_not_lead_out_of_the_folder_of_finished_pictures(tmp_path):
    for name in ("made/a.png", "secret.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        images.save(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    folder = PictureFolder("import", tmp_path / "made")
    assert folder.find("a") == tmp_path / "made" / "a.png"
    for name in ("../secret", str(tmp_path / "secret"), "made/../../secret", "./../secret"):
        assert folder.find(name) is None, name
