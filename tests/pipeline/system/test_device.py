"""What the module says about devices and memory of this machine."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from pipeline.system.device import choose, first_process, keep_freed_memory
from pipeline.system.errors import UsageError

FAULTS = """
import resource, sys, torch
from pipeline.system.device import keep_freed_memory
if sys.argv[1] == "keep": keep_freed_memory()
for i in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("name", ["abacus", "tpu", "cuda:77"])
def test_a_device_that_is_not_there_is_wrong_usage(name):
    with pytest.raises(UsageError, match="take auto, cpu or cuda:0"):
        choose(name)


def test_one_process_speaks_and_takes_what_there_is():
    assert choose("cpu") == "cpu"
    assert choose() == (str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu")
    assert first_process()


def test_processes_that_do_not_know_each_other_are_each_the_first():
    """`srun -n 8 dtkd teacher-cache` on CPUs: nobody says where they could meet."""
    code = "from pipeline.system.device import processes; state = processes(); print(state.num_processes, state.device)"
    environment = os.environ | {
        "PMI_SIZE": "8",
        "PMI_RANK": "3",
        "WORLD_SIZE": "8",
        "RANK": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "cpu"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "return")
    }
    assert faults["keep"] < 100 < faults["return"]


def test_other_systems_are_left_alone(monkeypatch):
    opened = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: opened.append(name) or object())
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    assert opened == []
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()  # a C library without mallopt
    assert opened == [None]
