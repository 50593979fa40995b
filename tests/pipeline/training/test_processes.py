"""What processes must agree on, with two real ones; the device within one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.system.errors import DtkdError
from pipeline.training import processes
from pipeline.training.state import RunState

ROOT = Path(__file__).parents[3]
APART = """
import sys
from pathlib import Path
import torch
from pipeline.system.errors import DtkdError
from pipeline.training import processes
from pipeline.training.run_folder import RunLayout, open_run
from pipeline.training.state import RunState

accelerator = processes.launch("cpu")
rank = accelerator.process_index

def own_folder():
    return None, RunState(settings={}, data="photos", step=500 * rank)

def own_photos():
    return None, RunState(settings={}, data=f"photos {rank}")

def damaged_on_one():
    if rank == 1:
        raise DtkdError("a tar is damaged")
    return None, RunState(settings={}, data="photos")

for begin in (own_folder, own_photos, damaged_on_one):
    try:
        with open_run(RunLayout("train-it", int, (), ()), Path(sys.argv[1]), "auto", accelerator, begin):
            print("trained")
    except DtkdError as error:
        print(f"{error}\\n", end="")
values = {"loss": torch.tensor(float(rank)), "norm": torch.tensor([1.0, torch.inf][rank])}
seen = processes.agree(accelerator, values, stop=rank == 0)
print(f"{seen}\\n", end="")
"""


def test_processes_that_would_train_apart_are_refused_and_agree_on_every_step(tmp_path):
    (tmp_path / "apart.py").write_text(APART)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*launcher, str(tmp_path / "apart.py"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (
        f"the processes would go on from different steps (0, 500): {tmp_path / 'run'} must be one folder that all "
        "machines share",
        "the processes have different settings or data: give all of them the same command and files",
        "a tar is damaged",
        "Seen(values={'loss': 0.5, 'norm': inf}, finite=False, stop=True)",
    ):
        assert lines.count(line) == 2, done.stdout
    assert len(lines) == 8


def test_two_precisions_in_one_process():
    """accelerate itself refuses a second one for the life of the process."""
    network, x = torch.nn.Linear(2, 2), torch.rand(1, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        accelerator, state = processes.launch("cpu"), RunState(settings={}, data="")
        state.settle_precision(precision, accelerator.device)
        with state.autocast(accelerator.device):
            assert accelerator.prepare_model(network)(x).dtype == dtype


def test_a_run_keeps_its_precision_where_auto_means_another(monkeypatch):
    device, state = torch.device("cpu"), RunState(settings={}, data="")
    for native in (True, False):
        monkeypatch.setattr("pipeline.system.device.fast_bf16", lambda device, native=native: native)
        state.settle_precision("auto", device)
        assert state.precision == "bf16"


def test_another_device_in_one_process_is_told(monkeypatch):
    def refuse(**settings):
        raise ValueError("AcceleratorState has already been initialized")

    monkeypatch.setattr(processes, "Accelerator", refuse)
    with pytest.raises(DtkdError, match="on the CPU in a process of its own"):
        processes.launch("cpu")
