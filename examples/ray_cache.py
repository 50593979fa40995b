"""Stage one on a Ray cluster: a pool of workers, each with a teacher of its own, over `process_shard`.

    pip install 'dtkd[ray]'
    python examples/ray_cache.py ~/photos /shared/cache --workers 8 --gpus 1 --teacher sd-x4 --set tile=480

Corpus and cache lie in folders that every node sees under the same name. The pool is elastic: a worker that the cluster
has no room for yet joins when there is, one that dies is started anew by Ray, and its shard goes on from the samples
that it left. The shards are those of `dtkd teacher-cache`, byte for byte; any of the two goes on with the other's.
"""

import argparse
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

BUSY_SECONDS = 1.0  # before a shard that another process holds is tried again


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Worker:
    """A process with a teacher. Whatever kills it, Ray starts it again and gives it the same shard."""

    def __init__(self, corpus: str, cache: str, teacher: str, steps: int | None, overrides: list[str]) -> None:
        """Load the teacher and plan the cache, or check the plan that is there."""
        from pipeline import config
        from pipeline.system.device import choose
        from teacher_cache import teachers
        from teacher_cache.building.build import prepare
        from teacher_cache.building.settings import StageOneSettings

        how = config.load(StageOneSettings, None, overrides)
        scale, device = how.degradation.scale, choose("auto")
        loaded = teachers.load(teacher, scale=scale, steps=steps, device=device, settings=how.teacher)
        self.work = prepare(corpus, Path(cache), loaded, how)

    def shards(self) -> int:
        """How many shards the plan has."""
        return len(self.work.plan.shards)

    def make(self, index: int) -> tuple[int, int] | None:
        """Make a shard: good and failed samples; None while another live process is at it."""
        from teacher_cache.building.build import process_shard

        record = process_shard(self.work, index)
        return None if record is None else (len(record.ok), len(record.errors))


def drive(workers: Iterable[Any]) -> tuple[int, int]:
    """Have the workers make all shards; returns the numbers of good and of failed samples.

    Raises:
        RuntimeError: no worker is left.
        Exception: what `prepare` or `process_shard` raised in a worker.
    """
    joining = {worker.shards.remote(): worker for worker in workers}
    running: dict[Any, tuple[Any, int]] = {}
    idle: list[Any] = []
    left: deque[int] | None = None  # known when the first worker has its plan
    ok = errors = 0
    while joining or running:
        (ready,), _ = ray.wait([*running, *joining], num_returns=1)
        worker, index = running.pop(ready, None) or (joining.pop(ready), None)
        try:
            result = ray.get(ready)
        except RayActorError as error:  # for good: it cannot begin, or its node left and no other has room
            print(f"a worker is lost: {str(error).strip().splitlines()[-1]}", flush=True)
            left = None if left is None else left + deque([] if index is None else [index])
        else:
            idle.append(worker)
            if index is None:
                left = deque(range(result)) if left is None else left
            elif result is None:
                time.sleep(BUSY_SECONDS)
                left = (left or deque()) + deque([index])
            else:
                ok, errors = ok + result[0], errors + result[1]
                print(f"shard {index}: {result[0]} samples, {result[1]} failed", flush=True)
        while idle and left:
            worker, index = idle.pop(), left.popleft()
            running[worker.make.remote(index)] = (worker, index)
        if left is not None and not left and not running:
            return ok, errors
    raise RuntimeError("no worker is left; whatever is finished stays, and the same command goes on")


def main() -> None:
    """Parse, make the shards, merge their records into the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder of photos, or sample")
    parser.add_argument("cache", help="folder to write, the same on every node")
    parser.add_argument("--workers", type=int, default=2, help="at most; those without room join later")
    parser.add_argument("--cpus", type=float, default=1, help="of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="of a worker")
    parser.add_argument("--teacher", default="embedded")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--set", action="append", default=[], help="as of `dtkd teacher-cache --settings`")
    given = parser.parse_args()

    from teacher_cache.building.build import finalize

    ray.init(log_to_driver=False)
    kind = Worker.options(num_cpus=given.cpus, num_gpus=given.gpus)
    cache = str(Path(given.cache).absolute())
    arguments = (given.corpus, cache, given.teacher, given.steps, given.set)
    ok, errors = drive([kind.remote(*arguments) for _ in range(given.workers)])
    finalize(Path(cache))
    print(f"{cache}: {ok} samples, {errors} failed")


if __name__ == "__main__":
    main()
