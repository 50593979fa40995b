"""Draws of libraries that only know the global generators: the same in every block, the caller's left as they were."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SEED = 0


_ONE_AT_A_TIME = threading.RLock()  # images are measured in threads, and the generators are the process's


@contextmanager
def seeded(device: str = "cpu", seed: int = SEED) -> Iterator[None]:
    """Within the block torch (CPU and `device`), numpy and random draw from `seed`; after it they go on as before."""
    where = torch.device(device)
    accelerators = [] if where.type == "cpu" else [where]
    _ONE_AT_A_TIME.acquire()
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(accelerators, device_type=where.type if accelerators else "cuda"):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators that are not kept
            for accelerator in accelerators:
                state = torch.Generator(accelerator).manual_seed(seed).get_state()
                torch.get_device_module(accelerator).set_rng_state(state, accelerator)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        _ONE_AT_A_TIME.release()
