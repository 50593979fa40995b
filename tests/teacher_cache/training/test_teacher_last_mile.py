"""The last mile of the embedded teacher's training, by the command that made it: minutes, so a slow test."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "train.init=embedded", "train.steps=200", "train.predictor_share=.25", "train.patch=32", "train.batch_size=4",
    "degradation.mild_share=0",  # where there is most to win in so few steps
    "train.lr=1e-4", "train.save_every=50", "train.val_every=50", "data.hold_out=3",
    "sampling.steps=1",  # which psnr_y likes best
)  # fmt: skip
COMMAND = [sys.executable, "-m", "cli", "train-teacher", "sample"]
COMMAND += [word for setting in SETTINGS for word in ("--set", setting)]
KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import config
from teacher_cache.training.loop import TeacherRunSettings, train_teacher

def die(event):
    if event.done == 110:
        os.kill(os.getpid(), signal.SIGKILL)

train_teacher("sample", Path(sys.argv[1]), config.load(TeacherRunSettings, None, sys.argv[2:]), on_progress=die)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in (out / "teacher").rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_more_steps_on_a_few_photos_killed_or_not(tmp_path):
    whole = run(*COMMAND, str(tmp_path / "whole"), "--json")
    result = json.loads(whole.stdout)
    assert whole.returncode == 0 and result["finished"]
    assert result["psnr_y"] > result["psnr_y_bicubic"]
    losses = [json.loads(line).get("total") for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 4 and all(0 < loss < 0.5 for loss in losses)

    killed = run(sys.executable, "-c", KILLED, str(tmp_path / "killed"), *SETTINGS)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "teacher").exists()
    again = run(*COMMAND, str(tmp_path / "killed"), "--json")
    assert json.loads(again.stdout)["finished"]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
