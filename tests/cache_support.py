"""A small corpus of real photos, and builds of it in processes that can be killed."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from noisy_teacher import NoisyBicubic
from PIL import Image

from pipeline import images, schema, shards
from pipeline.degradation import Degradation
from pipeline.system.errors import DtkdError
from pipeline.system.progress import ProgressEvent
from pipeline.teacher import Teacher
from teacher_cache.building.build import BuildResult, BuildSettings, build_cache

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
SETTINGS = {"tile": 64, "samples_per_shard": 5, "micro_batch": 2, "hold_out": 1}


def make_corpus(folder: Path, side: int = 128) -> Path:
    """Five real photos, cut to `side` x `side`: with a tile of half the side, four training tiles each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        path = Path(skimage.__file__).parent / "data" / name
        with Image.open(path) as image:
            photo = np.asarray(image.convert("RGB"))[60 : 60 + side, 80 : 80 + side]
        Image.fromarray(photo).save(folder / f"{path.stem}.png")
    return folder


def settings(**changes: Any) -> BuildSettings:
    degradation = Degradation(changes.pop("kind", "bicubic"), 4)
    return BuildSettings(**SETTINGS | {"degradation": degradation} | changes)


def command_options(teacher: str, samples_per_shard: int) -> tuple[str, ...]:
    """The same on the command line: `teacher` with small tiles."""
    small = ("--tile", "64", "--micro-batch", "2", "--hold-out", "1")
    return ("--teacher", teacher, *small, "--set", f"samples_per_shard={samples_per_shard}")


URL = "memory://bucket/cache"
"""A cache in fsspec's store in memory; the fixture `store` empties it."""


def build_at_url(corpus: Path, local: Path, shards: str, teacher: Teacher | None = None, **changes: Any) -> BuildResult:
    how = settings(shards=shards, local_folder=str(local), **changes)
    return build_cache(str(corpus), URL, teacher or NoisyBicubic(), how)


def remote_tars(store: Any, cache: str = "/bucket/cache") -> dict[str, bytes]:
    store.invalidate_cache()
    return {path.rpartition("/")[2]: bytes(store.cat_file(path)) for path in store.glob(f"{cache}/*.tar")}


def whole_records(store: Any, cache: str = "/bucket/cache") -> int:
    """Number of records at a URL, also in its manifest; each describes the tar that is beside it, at any moment."""
    stored = {name: hashlib.sha256(data).hexdigest() for name, data in remote_tars(store, cache).items()}
    found = [json.loads(store.cat_file(path)) for path in store.glob(f"{cache}/done/*.json")]
    if store.exists(f"{cache}/manifest.json"):
        found += json.loads(store.cat_file(f"{cache}/manifest.json"))["shards"]
    assert all(stored[f"{record['name']}.tar"] == record["sha256"] for record in found)
    return len(found)


def tars(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.glob("*.tar"))}


def records(cache: Path) -> dict[str, Any]:
    """Done records without the times that they took."""
    loaded = {path.name: json.loads(path.read_text()) for path in sorted((cache / "done").glob("*.json"))}
    times = {"seconds", "teacher_seconds", "teacher_images"}
    return {name: {k: v for k, v in record.items() if k not in times} for name, record in loaded.items()}


def samples(cache: Path, split: schema.Split = "train") -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every sample of a cache as (json, {member: image})."""
    for shard, sample in shards.load_manifest(cache).samples(split):
        path = shards.shard_path(cache, shard.name)
        pictures = {
            m: images.decode_webp(shards.read_member(path, place)) for m, place in sample.members.items() if m != "json"
        }
        yield json.loads(shards.read_member(path, sample.members["json"])), pictures


# Processes -----------------------------------------------------------------------------------------------------------

_processes = multiprocessing.get_context("forkserver")  # a process that imported torch once, and forks in milliseconds
_processes.set_forkserver_preload(["cache_support"])


def _start_server() -> None:
    """Python 3.11's server ignores the caller's import path: hand it over through the environment."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def start(
    corpus: Path, cache: Path, *, die_at: int = 0, die_after: int = 0, file_limit: int = 0, **changes: Any
) -> tuple[Any, Any]:
    """Start stage one in a process of its own; its end of the pipe sends a message after every micro-batch.

    It kills itself before file operation number `die_at`, or when `die_after` samples are done; no file of it can grow
    beyond `file_limit` bytes. A `DtkdError` is sent as its text, and the exit code is then 1.
    """
    _start_server()
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_build, args=(corpus, cache, theirs, die_at, die_after, file_limit, changes))
    process.start()
    theirs.close()
    return process, ours


def messages(pipe: Any) -> Iterator[Any]:
    """(done, total), or the text of an error, until the process ends or dies."""
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def _build(
    corpus: Path, cache: Path, pipe: Any, die_at: int, die_after: int, file_limit: int, changes: dict[str, Any]
) -> None:
    def show(event: ProgressEvent) -> None:
        pipe.send((event.done, event.total))
        if 0 < die_after <= event.done:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    if die_at:
        _die_at_file_operation(die_at)
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        build_cache(str(corpus), cache, NoisyBicubic(), settings(**changes), show)
    except DtkdError as error:
        pipe.send(str(error))
        sys.exit(1)


def _die_at_file_operation(number: int) -> None:
    """Kill this process right before its n-th operation that changes a name or asks for durability."""
    left = number

    def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return counted

    for name in ("replace", "link", "rename", "unlink", "fsync"):
        setattr(os, name, wrap(getattr(os, name)))
