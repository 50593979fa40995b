"""The last mile of the embedded teacher's training, by the command that made it: minutes, so a slow test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETTINGS = {
    "init": "embedded",
    "steps": 200,
    "predictor_share": 0.25,
    "patch": 32,
    "batch_size": 4,
    "lr": 1e-4,
    "hold_out": 3,
    "save_every": 50,
    "sampling_steps": 1,  # which psnr_y likes best
}
COMMAND = [sys.executable, "-m", "cli", "train-teacher", "sample"]
COMMAND += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


def start(out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, str(out), "--json"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in (out / "teacher").rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_more_steps_on_a_few_photos_killed_or_not(tmp_path):
    whole = start(tmp_path / "whole")
    result = json.loads(whole.communicate()[0])
    assert whole.returncode == 0 and result["finished"]
    assert result["psnr_y"] > result["psnr_y_bicubic"]
    losses = [json.loads(line).get("loss") for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 4 and all(0 < loss < 0.5 for loss in losses)

    killed = start(tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoints" / "step-00000100").exists():
        assert killed.poll() is None
        time.sleep(0.1)
    time.sleep(3)  # a few steps further
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "teacher").exists()
    again = start(tmp_path / "killed")
    assert json.loads(again.communicate()[0])["finished"]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
