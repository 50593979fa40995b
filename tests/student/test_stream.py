"""The reader: every sample once an epoch, the same batches for any number of ranks and workers, damage refused."""

import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cache import write_cache

from pipeline.system.errors import DtkdError
from student.dataset import OPEN_TARS
from student.stream import CacheDataset, DataSettings, batches, crop_and_flip, epoch_order, open_cache

SOLO = DataSettings(workers=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", shards=(3, 4, 2), val=2, failed=1)


def read(cache, *, settings=SOLO, seed=5, steps=range(6), batch_size=4, patch=8, **more):
    stream = batches(open_cache(cache), settings, seed=seed, steps=steps, batch_size=batch_size, patch=patch, **more)
    return list(stream)


def assert_equal(one, other):
    assert [b.keys for b in one] == [b.keys for b in other]
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def test_samples_are_the_bytes_of_the_tar(cache):
    dataset = open_cache(cache)
    assert len(dataset) == 8  # 9 planned, 1 failed
    found = {}
    for shard in sorted(cache.glob("shard-*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                found[info.name] = tar.extractfile(info).read()
    for item in (dataset[i] for i in range(len(dataset))):
        for suffix, image in (("lr", item.lr), ("gt", item.gt), ("teacher", item.teacher)):
            expected = np.asarray(Image.open(io.BytesIO(found[f"{item.key}.{suffix}.webp"])).convert("RGB"))
            assert np.array_equal(image, expected)
        assert item.meta == json.loads(found[f"{item.key}.json"])


def test_splits_are_apart(cache):
    train, val = ({d.key(i) for i in range(len(d))} for d in (open_cache(cache), open_cache(cache, "val")))
    assert len(val) == 2
    assert not train & val


def test_every_epoch_has_every_sample_once_and_its_own_order(cache):
    keys = [key for batch in read(cache, steps=range(6)) for key in batch.keys]  # 24 places: 3 epochs of 8
    epochs = [keys[i : i + 8] for i in (0, 8, 16)]
    assert all(Counter(epoch) == Counter(epochs[0]) and len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_shuffles_shards_and_stays_within_the_window():
    shard_of = np.repeat(np.arange(50, dtype=np.int32), 10)
    order = epoch_order(shard_of, window=5, seed=1, epoch=0)
    assert sorted(order) == list(range(500))
    groups = [set(shard_of[order[i : i + 50]].tolist()) for i in range(0, 500, 50)]
    assert all(len(group) == 5 for group in groups)
    assert groups[0] != set(range(5))
    within = shard_of[order[:50]]
    assert np.count_nonzero(np.diff(within)) > 20  # samples of the five shards are mixed
    assert not np.array_equal(order, epoch_order(shard_of, 5, 2, 0))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_ranks_trains_on_the_same_global_batches(cache, world):
    whole = read(cache)
    ranks = [read(cache, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        shares = [rank[step] for rank in ranks]
        assert [len(s.keys) for s in shares] == [4 // world] * world
        assert [key for share in shares for key in share.keys] == batch.keys
        assert torch.equal(torch.cat([s.gt for s in shares]), batch.gt)


def test_any_number_of_workers_gives_the_same_batches(cache):
    alone = read(cache)
    for workers in (1, 2):
        assert_equal(read(cache, settings=DataSettings(workers=workers)), alone)


def test_resumed_at_any_step_with_other_ranks_and_workers(cache):
    whole = read(cache)
    assert_equal(read(cache, steps=range(3, 6), settings=DataSettings(workers=2)), whole[3:])
    late = [read(cache, steps=range(5, 6), rank=rank, world=2)[0] for rank in range(2)]
    assert late[0].keys + late[1].keys == whole[5].keys


def test_a_batch_may_be_larger_than_the_cache(cache):
    (batch,) = read(cache, steps=range(1), batch_size=20)
    assert batch.lr.shape == (20, 3, 8, 8)
    assert set(Counter(batch.keys).values()) == {2, 3}


def test_tensors_are_float_in_0_1_and_seeds_matter(cache):
    one, other = read(cache, steps=range(1))[0], read(cache, steps=range(1), seed=6)[0]
    assert one.gt.dtype == torch.float32
    assert one.gt.shape == one.teacher.shape == (4, 3, 32, 32)
    assert 0 <= one.gt.min() < 0.2 < 0.8 < one.gt.max() <= 1
    assert one.keys != other.keys


def test_crops_stay_aligned_and_use_all_orientations():
    """Patches of a picture that encodes its own coordinates say where they come from."""
    rows, columns = np.mgrid[0:12, 0:16].astype(np.uint8)
    lr = np.stack((rows, columns, rows), axis=2)
    gt = lr.repeat(4, 0).repeat(4, 1)
    seen, corners = set(), set()
    for draw in range(1000):
        small, large, teacher = crop_and_flip((lr, gt, gt), 5, 4, np.random.default_rng(draw))
        assert small.shape == (5, 5, 3)
        assert np.array_equal(large, small.repeat(4, 0).repeat(4, 1))
        assert np.array_equal(teacher, large)
        steps = small[1, 0].astype(int) - small[0, 0], small[0, 1].astype(int) - small[0, 0]
        seen.add(tuple(np.concatenate(steps)[[0, 1, 3, 4]].tolist()))
        corners.add((int(small[..., 0].min()), int(small[..., 1].min())))
    assert len(seen) == 8
    assert corners == {(top, left) for top in range(8) for left in range(12)}


def test_few_descriptors_stay_open(tmp_path):
    dataset = open_cache(write_cache(tmp_path / "c", shards=(1,) * (OPEN_TARS + 8), tile=16, val=0))
    before = len(os.listdir("/proc/self/fd"))
    for i in range(len(dataset)):
        dataset[i]
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_TARS
    del dataset
    assert len(os.listdir("/proc/self/fd")) <= before


def _keys_and_sums(dataset: CacheDataset, queue) -> None:
    queue.put([(dataset[i].key, int(dataset[i].teacher.sum())) for i in range(len(dataset))])


def test_a_dataset_with_open_tars_works_in_another_process(cache):
    dataset = open_cache(cache)
    expected = [(dataset[i].key, int(dataset[i].teacher.sum())) for i in range(len(dataset))]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_keys_and_sums, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
    assert dataset[0].key == expected[0][0]  # the child closing its descriptors does not close ours
    assert pickle.loads(pickle.dumps(dataset))[3].key == expected[3][0]  # as a spawned worker gets it


def test_fingerprint_is_of_the_samples_not_of_the_place(cache, tmp_path):
    same = write_cache(tmp_path / "elsewhere", shards=(3, 4, 2), val=2, failed=1)
    other = write_cache(tmp_path / "other", shards=(3, 4, 2), val=2, failed=1, seed=1)
    prints = [open_cache(c).fingerprint() for c in (cache, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert pickle.loads(pickle.dumps(open_cache(cache))).fingerprint() == prints[0]


def outputs_used(cache, keys, batch, epochs, patch=16):
    """Which output of its tile each picture of an unshuffled-size batch is, by comparing with all of them."""
    dataset = open_cache(cache)
    index = {dataset.key(i): i for i in range(len(dataset))}
    for key, picture, epoch in zip(keys, batch, epochs, strict=True):
        whole = [dataset.images(index[key], output)[2] for output in range(dataset.outputs)]
        sums = [int(image.astype(int).sum()) for image in whole]  # a whole tile's sum does not depend on its flip
        assert len(set(sums)) == len(sums)
        yield epoch, sums.index(round(float(picture.double().sum()) * 255))


def test_each_epoch_takes_the_next_output_and_resuming_knows_which(tmp_path):
    """Whole tiles as patches: 9 samples in batches of 3, so that an epoch has three steps."""
    cache = write_cache(tmp_path / "c", shards=(3, 4, 2), val=1, outputs=3)
    assert open_cache(cache).outputs == open_cache(cache, "val").outputs == 3
    whole = read(cache, steps=range(15), batch_size=3, patch=16)
    for step, batch in enumerate(whole):
        used = list(outputs_used(cache, batch.keys, batch.teacher, [step // 3] * 3))
        assert all(output == epoch % 3 for epoch, output in used), (step, used)
    assert_equal(read(cache, steps=range(4, 15), batch_size=3, patch=16, settings=DataSettings(workers=2)), whole[4:])


@pytest.mark.parametrize(("wanted", "cycle"), [(0, [0, 1, 2, 0]), (1, [0, 0, 0, 0]), (2, [0, 1, 0, 1])])
def test_the_first_outputs_alone_are_taken_where_asked_for(tmp_path, wanted, cycle):
    cache = write_cache(tmp_path / "c", shards=(3,), val=0, outputs=3)
    stream = read(cache, steps=range(4), batch_size=3, patch=16, settings=DataSettings(workers=0, samples=wanted))
    for epoch, batch in enumerate(stream):
        assert [output for _, output in outputs_used(cache, batch.keys, batch.teacher, [epoch] * 3)] == [
            cycle[epoch]
        ] * 3


def test_more_outputs_than_the_cache_holds_are_refused(tmp_path):
    cache = write_cache(tmp_path / "c", shards=(3,), val=0, outputs=3)
    with pytest.raises(DtkdError, match=r"data\.samples is 4, .*c holds 3 .*--samples 4"):
        read(cache, settings=DataSettings(workers=0, samples=4))


def test_batches_of_the_first_epoch_do_not_depend_on_the_other_outputs(tmp_path):
    one, two = (write_cache(tmp_path / str(n), shards=(1,), val=0, outputs=n) for n in (1, 2))
    assert_equal(read(one, steps=range(1), batch_size=1), read(two, steps=range(1), batch_size=1))
    assert open_cache(one).fingerprint() != open_cache(two).fingerprint()
    assert not torch.equal(*(read(c, steps=range(1, 2), batch_size=1)[0].teacher for c in (one, two)))


def test_a_flipped_bit_of_a_further_output_is_refused(tmp_path):
    cache = write_cache(tmp_path / "c", shards=(2,), val=0, outputs=2)
    place = json.loads((cache / "manifest.json").read_text())["shards"][0]["samples"][1]["members"]["teacher1"]
    data = bytearray((cache / "shard-00000000.tar").read_bytes())
    data[place[0] + 50] ^= 4
    (cache / "shard-00000000.tar").write_bytes(data)
    dataset = open_cache(cache)
    assert dataset.images(1)[2].shape == (64, 64, 3)
    with pytest.raises(DtkdError, match=r"sample .*, teacher1: .*dtkd verify"):
        dataset.images(1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_bit_is_refused_with_shard_key_and_remedy(tmp_path, workers):
    cache = write_cache(tmp_path / "c", shards=(2, 2), val=0)
    manifest = json.loads((cache / "manifest.json").read_text())
    sample = manifest["shards"][1]["samples"][1]
    with open(cache / "shard-00000001.tar", "r+b") as tar:
        tar.seek(sample["members"]["teacher"][0] + 50)
        byte = tar.read(1)[0]
        tar.seek(-1, os.SEEK_CUR)
        tar.write(bytes([byte ^ 4]))
    with pytest.raises(DtkdError) as caught:
        read(cache, steps=range(3), settings=DataSettings(workers=workers))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ("shard-00000001.tar", sample["key"], "teacher", "dtkd verify")), message


def test_a_shard_that_vanishes_or_shrinks_is_refused(tmp_path):
    cache = write_cache(tmp_path / "c", shards=(2, 2), val=0)
    dataset = open_cache(cache)
    tar = cache / "shard-00000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DtkdError, match=r"shard-00000000\.tar, sample .*dtkd verify"):
        dataset[1]
    (cache / "shard-00000001.tar").unlink()
    with pytest.raises(DtkdError, match=r"shard-00000001\.tar, sample .*dtkd verify"):
        dataset[2]
    with pytest.raises(DtkdError, match="shard-0000000"):
        open_cache(cache)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"patch": 17}, "at most 16 LR pixels .* got 17"),
        ({"batch_size": 5, "world": 2}, "divisible by 2 \\(2 processes\\), got 5: set train.batch_size=6"),
        ({"batch_size": 6, "world": 4}, "divisible by 4 .*: set train.batch_size=8"),
    ],
)
def test_settings_that_do_not_fit_the_cache_are_refused(cache, values, words):
    with pytest.raises(DtkdError, match=words):
        read(cache, **values)


def test_nothing_to_train_on_is_refused(tmp_path):
    cache = write_cache(tmp_path / "c", shards=(2,), failed=2)
    with pytest.raises(DtkdError, match="no training samples"):
        read(cache)
    with pytest.raises(DtkdError, match="no teacher cache"):
        open_cache(tmp_path / "absent")


@pytest.mark.parametrize("values", [{"workers": -1}, {"window": 0}, {"samples": -1}, {"samples": 17}])
def test_bad_settings_are_refused(values):
    with pytest.raises(DtkdError, match="got"):
        DataSettings(**values)


class Stuck(CacheDataset):
    """Whose readers are killed at a sample, as by a machine that is out of memory."""

    killed = None

    def images(self, index, output=0):
        if self.key(index) == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(index, output)


def test_a_reader_that_hangs_is_told_with_its_shard_and_sample(tmp_path):
    """A named pipe that nobody writes into: opening it never returns, as of a network drive that has gone."""
    dataset = open_cache(write_cache(tmp_path / "c", shards=(4, 4)))
    gone = {dataset.key(i) for i in range(len(dataset)) if dataset.shard_of[i] == 1}
    tar = tmp_path / "c" / "shard-00000001.tar"
    tar.unlink()
    os.mkfifo(tar)
    stream = batches(
        dataset, DataSettings(workers=2, stall_seconds=1), seed=0, steps=range(9), batch_size=8, patch=8, device="cpu"
    )
    with pytest.raises(
        DtkdError, match=r"no batch came for 1 s: a reader waits for .*shard-00000001\.tar, sample "
    ) as told:
        list(stream)
    assert any(f"sample {name};" in str(told.value) for name in gone)
    assert "\n" not in str(told.value)
    assert not multiprocessing.active_children()


def test_a_reader_that_dies_is_told_with_its_sample(cache):
    dataset = Stuck(cache)
    dataset.killed = dataset.key(3)
    stream = batches(dataset, DataSettings(workers=1), seed=0, steps=range(4), batch_size=4, patch=8)
    with pytest.raises(DtkdError, match=f"a reader died at .*, sample {dataset.killed} .*lower data.workers"):
        list(stream)
