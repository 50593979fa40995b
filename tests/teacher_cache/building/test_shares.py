"""Static shares of a cache (`--shards`), and the SLURM array script that gives them out."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cache_support import NoisyBicubic, command_options, records, settings, tars

import cli
from pipeline.shards import load_manifest
from pipeline.system.errors import DtkdError, UsageError
from teacher_cache.building import lease
from teacher_cache.building.build import build_cache
from teacher_cache.building.settings import BuildSettings
from teacher_cache.building.verify import verify_cache

ROOT = Path(cli.__file__).parent


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", [0]), ("4", [4]), ("1-2", [1, 2]), ("3-", [3, 4]), ("0-9", [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])],
)
def test_share_of_five_shards(text, numbers):
    assert list(BuildSettings(shards=text).share(5)) == numbers


@pytest.mark.parametrize("text", ["", "-", "-3", "3-1", "1,2", "a-b", "1-2-3", "²"])
def test_no_share(text):
    with pytest.raises(UsageError, match="A-B"):
        BuildSettings(shards=text)


def test_share_behind_the_plan_is_refused_before_the_teacher_works(corpus, tmp_path):
    teacher = NoisyBicubic()
    with pytest.raises(UsageError, match="it has the shards 0-4"):
        build_cache(str(corpus), tmp_path / "cache", teacher, settings(shards="5-9"))
    assert teacher.calls == 0
    assert not (tmp_path / "cache").exists()


def test_shares_in_any_order_make_the_cache_of_one_process(corpus, finished, tmp_path):
    first = build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(shards="3-"))
    assert (first.complete, first.share_done, first.shards_done, first.failure) == (False, True, 2, None)
    assert first.lines()[-1] == "shards 3-4 are done, 2 of 5 shards are done by all"
    assert sorted(tars(tmp_path)) == ["shard-00000003.tar", "val-00000000.tar"]
    with pytest.raises(DtkdError, match="2 of 5 shards are done"):
        load_manifest(tmp_path)
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(shards="0"))
    last = build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(shards="1-2"))
    assert (last.complete, last.shards_done) == (True, 5)
    assert tars(tmp_path) == tars(finished)
    assert records(tmp_path) == records(finished)
    assert verify_cache(tmp_path).ok


def test_a_share_waits_for_nobody_and_says_what_is_left(corpus, tmp_path):
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(shards="0"))
    with lease.acquire(tmp_path / "leases", "shard-00000001"):  # as another process of this machine
        result = build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(shards="1-2"))
    assert (result.share_done, result.shards_done) == (False, 2)
    assert "run the same command again" in result.failure


def test_without_shards_the_rest_is_made_and_the_manifest_written(corpus, finished, tmp_path):
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(shards="1-4"))
    result = build_cache(str(corpus), tmp_path, NoisyBicubic(), settings())
    assert (result.complete, result.share, result.reused) == (True, None, 12)
    assert tars(tmp_path) == tars(finished)


# SLURM ---------------------------------------------------------------------------------------------------------------


def slurm(folder, corpus, cache, task, teacher):
    """The script as SLURM runs it, with this Python's dtkd and a `scontrol` that keeps what it is told."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    _tool(tools / "dtkd", f'exec {sys.executable} -m cli "$@"')
    _tool(tools / "scontrol", f'echo "$@" >> {folder}/scontrol.txt')
    given = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "77", "SHARDS_PER_TASK": "5"}
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    options = command_options(teacher, 2)
    return subprocess.Popen(
        ["bash", str(ROOT / "examples" / "slurm_cache.sh"), str(corpus), str(cache), *options],
        env=os.environ | given | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def _tool(path, line):
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)


def test_slurm_task_is_requeued_and_goes_on(corpus, tmp_path):
    """SIGUSR1 in the third batch of the first task's shards; started again, the two tasks make the whole cache."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, signal; sys.path.insert(0, 'examples')\n"
        "from python_teacher import *\n"
        "def stuck(**options):\n"
        "    made, calls = sharpened(**options), []\n"
        "    restore = made.restore\n"
        "    def restore_or_stop(lr, seeds):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 3 and not __import__('os').path.exists(__file__ + '.seen'):\n"
        "            open(__file__ + '.seen', 'w').close()\n"
        "            print('stuck', file=sys.stderr, flush=True)\n"
        "            signal.pause()\n"
        "        return restore(lr, seeds)\n"
        "    made.restore = restore_or_stop\n"
        "    return made\n"
    )
    cache, teacher = tmp_path / "cache", f"python:{slow}:stuck"
    task = slurm(tmp_path, corpus, cache, 0, teacher)
    assert task.stderr is not None
    assert any(line.strip() == "stuck" for line in task.stderr)
    task.send_signal(signal.SIGUSR1)
    out, err = task.communicate()
    assert task.returncode == 0, err
    assert "dtkd: interrupted; run the same command again to go on" in err
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 77_0\n"
    assert len(tars(cache)) == 2

    for number in (0, 1):
        again = slurm(tmp_path, corpus, cache, number, teacher)
        out, err = again.communicate()
        assert again.returncode == 0, err
    assert "9 of 9 shards are done by all" in out
    assert load_manifest(cache).ok == 17
    behind = slurm(tmp_path, corpus, cache, 2, teacher)
    assert "it has the shards 0-8" in behind.communicate()[1]
    assert behind.returncode == 2
