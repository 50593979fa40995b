"""A complete teacher cache of a few tiny samples, written with nothing but tarfile and the schema."""

import io
import json
import tarfile
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from pipeline.schema import SCHEMA, TEACHERS, Manifest, Member, Sample, SampleError, ShardRecord, sample_key, shard_name
from pipeline.system.files import atomic_write_json, sha256_file


def write_cache(cache: Path, *, shards=(3, 4, 2), val=1, tile=64, scale=4, failed=0, seed=0, outputs=1) -> Path:
    """Write `shards[i]` samples into training shard i and `val` samples into one held-out shard.

    The first `failed` samples of shard 0 are errors without bytes. The teacher is the GT with a little noise,
    `outputs` times.
    """
    (cache / "done").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    records = []
    for index, count in enumerate(shards):
        records.append(
            _write_shard(cache, "train", index, count, tile, scale, failed if index == 0 else 0, rng, outputs)
        )
    if val:
        records.append(_write_shard(cache, "val", 0, val, tile, scale, 0, rng, outputs))
    ok = sum(len(r.ok) for r in records)
    planned = sum(len(r.samples) for r in records)
    several = {"samples": outputs} if outputs > 1 else {}
    manifest = Manifest(
        schema=SCHEMA, corpus="tiny", teacher="toy", scale=scale, tile=tile, degradation={"kind": "bicubic"}, seed=seed,
        fingerprint=several, planned=planned, ok=ok, errors=planned - ok, teacher_seconds=1.0, teacher_images=ok,
        drift=None, shards=tuple(records),
    )  # fmt: skip
    atomic_write_json(cache / "manifest.json", manifest.to_json())
    return cache


def _write_shard(cache, split, index, count, tile, scale, failed, rng, outputs) -> ShardRecord:
    name = shard_name(split, index)
    samples = []
    with tarfile.open(cache / f"{name}.tar", "w") as tar:
        for number in range(count):
            key = sample_key(f"{name}/{number}.png", (0, 0, tile, tile), {"kind": "bicubic"})
            if number < failed:
                samples.append(Sample(key, split, "error", {}, SampleError("load", "ImageError", "damaged")))
            else:
                meta = {"key": key, "source": f"{number}.png", "split": split, "scale": scale}
                members = {
                    n: _add(tar, f"{key}.{s}", data) for n, s, data in _contents(tile, scale, meta, rng, outputs)
                }
                samples.append(Sample(key, split, "ok", members))
    path = cache / f"{name}.tar"
    return ShardRecord(
        SCHEMA, name, split, "f", tuple(samples), sha256_file(path), path.stat().st_size, 1.0, 1.0, count
    )


def _contents(tile, scale, meta, rng, outputs):
    blocks = rng.integers(0, 256, (tile // 8, tile // 8, 3), dtype=np.uint8)
    gt = Image.fromarray(blocks).resize((tile, tile), Image.Resampling.BICUBIC)
    lr = gt.resize((tile // scale, tile // scale), Image.Resampling.BICUBIC)
    yield "gt", "gt.webp", _webp(gt)
    yield "json", "json", json.dumps(meta).encode()
    yield "lr", "lr.webp", _webp(lr)
    for name in TEACHERS[:outputs]:
        noise = rng.integers(-20, 21, (tile, tile, 3))
        teacher = Image.fromarray((np.asarray(gt).astype(int) + noise).clip(0, 255).astype(np.uint8))
        yield name, f"{name}.webp", _webp(teacher)


def _webp(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, exact=True, method=0, quality=0)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return Member(offset, len(data), crc32(data))
