"""Stage one as users start it: several processes by torchrun and accelerate, and one that a scheduler ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cache_support import command_options, make_corpus, records, tars

import cli
from teacher_cache.building.verify import verify_cache

ROOT = Path(cli.__file__).parent
TEACHER = f"python:{ROOT}/examples/python_teacher.py:sharpened"
OPTIONS = command_options(TEACHER, 2)
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    "accelerate": ("pipeline.system.launch", "--num_processes", "2", "--main_process_port", "0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The cache that one process makes."""
    cache = tmp_path_factory.mktemp("alone") / "cache"
    done = run([sys.executable, "-m", "cli", *command(corpus, cache)])
    assert done.returncode == 0, done.stderr
    return cache


def command(corpus, cache):
    return ["teacher-cache", str(corpus), str(cache), *OPTIONS]


def run(arguments):
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True)


def environment():
    """Without what other launchers may have left; in particular no ACCELERATE_USE_CPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_make_the_bytes_of_one(corpus, alone, tmp_path, launcher):
    done = run(
        [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "cli", *command(corpus, tmp_path / "cache"), "--json"]
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one process speaks
    assert (result["complete"], result["ok"]) == (True, 17)
    assert tars(tmp_path / "cache") == tars(alone)
    assert records(tmp_path / "cache") == records(alone)
    assert verify_cache(tmp_path / "cache").ok


def test_a_failing_process_makes_the_launcher_fail(tmp_path):
    done = run([sys.executable, "-m", *LAUNCHERS["accelerate"], "-m", "cli", *command(tmp_path, tmp_path / "cache")])
    assert done.returncode != 0
    assert f"dtkd: no image in {tmp_path}" in done.stderr


def test_sigterm_stops_resumably(corpus, alone, tmp_path):
    """Schedulers send it: finished samples are kept, leases are given back, one line says what to do."""
    cache = tmp_path / "cache"
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys; sys.path.insert(0, 'examples')\n"
        "import signal\n"
        "from python_teacher import *\n"
        "def stuck(**options):\n"
        "    made, calls = sharpened(**options), []\n"
        "    restore = made.restore\n"
        "    def restore_twice(lr, seeds):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 3:\n"
        "            print('stuck', file=sys.stderr, flush=True)\n"
        "            signal.pause()\n"
        "        return restore(lr, seeds)\n"
        "    made.restore = restore_twice\n"
        "    return made\n"
    )
    options = [part.replace(TEACHER, f"python:{slow}:stuck") for part in command(corpus, cache)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *options, "--set", "samples_per_shard=8"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == "stuck":  # in the third batch of the first shard
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == "dtkd: interrupted; run the same command again to go on"
    assert list((cache / "leases").glob("[!.]*")) == []
    (journal,) = (cache / "parts").glob("*.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 4
