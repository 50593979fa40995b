import os

# Tiny tensors gain nothing from threads, and a busy machine loses much; also the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from pipeline.system import torchvision_guard

torchvision_guard.apply()


@pytest.fixture(scope="session")
def accelerator() -> str:
    """The torch device of tests marked `gpu`: CUDA, MPS or XPU, else they are skipped.

    `DTKD_TEST_DEVICE=cpu` runs them on a CPU, which shows that the tests themselves are sound, and nothing else.
    """
    import torch

    if forced := os.environ.get("DTKD_TEST_DEVICE"):
        return forced
    if not torch.accelerator.is_available():
        pytest.skip("no CUDA or MPS here: nothing was tested on an accelerator")
    return str(torch.accelerator.current_accelerator())
