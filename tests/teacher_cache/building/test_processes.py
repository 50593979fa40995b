"""Stage one as users start it: several processes, by launchers, on two hosts, and one that a scheduler ends."""

import json
import signal
import subprocess
import sys
import time

import pytest
from cache_support import make_corpus
from launch_support import ROOT, by_accelerate, environment, on_host, two_hosts
from worker_support import LIMIT, assert_undisturbed, begin, in_the_middle_of_a_shard, run, stage_one, wait_until

LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    "accelerate": ("pipeline.system.launch", "--num_processes", "2", "--main_process_port", "0"),
}  # fmt: skip
PATIENCE = 1.0  # seconds of a call of the teacher where a process is killed: a shard has two


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The cache that one process makes."""
    cache = tmp_path_factory.mktemp("alone") / "cache"
    done = run(command(corpus, cache))
    assert done.returncode == 0, done.stderr
    return cache


def command(corpus, cache, *options):
    return stage_one(corpus, cache, *options, samples_per_shard=4)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_make_the_bytes_of_one(corpus, alone, tmp_path, launcher):
    done = run([sys.executable, "-m", *LAUNCHERS[launcher], *command(corpus, tmp_path / "cache", "--json")[1:]])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one process speaks
    assert (result["complete"], result["ok"]) == (True, 17)
    assert_undisturbed(tmp_path / "cache", alone)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_processes_one_of_them_killed(corpus, alone, tmp_path, count):
    """The others take its shard over; where there are none, the same command goes on."""
    cache, logs = tmp_path / "cache", [tmp_path / f"{number}.log" for number in range(count + 1)]
    running = [begin(command(corpus, cache), log, PATIENCE) for log in logs[:count]]
    victim = in_the_middle_of_a_shard(cache)
    (killed,) = [process for process in running if process.pid == victim.pid]
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    others = [process for process in running if process is not killed] or [begin(command(corpus, cache), logs[-1], 0)]
    assert [process.wait(LIMIT) for process in others] == [0] * len(others), [log.read_text() for log in logs[:count]]
    assert_undisturbed(cache, alone)


@pytest.mark.slow
def test_another_host_takes_over_when_a_lease_has_run_out(corpus, alone, tmp_path):
    """Nobody can see there that the process is dead; the folder is all that the two have in common."""
    cache, ttl, logs = tmp_path / "cache", 4.0, [tmp_path / "first.log", tmp_path / "second.log"]
    words = command(corpus, cache, "--set", f"lease_seconds={ttl}")
    with two_hosts() as hosts:
        first = begin(on_host(hosts[0], words), logs[0], 8 * PATIENCE)
        wait_until(lambda: list(cache.glob("leases/*.json")))
        second = begin(on_host(hosts[1], words), logs[1], 0)
        wait_until(lambda: len(list(cache.glob("done/*.json"))) == 4)  # nothing is left for it but to wait
        victim = in_the_middle_of_a_shard(cache, lambda owner: owner.host == hosts[0])
        assert victim.pid == first.pid
        first.kill()
        first.wait()
        lease = cache / "leases" / f"{victim.shard}.json"
        renewed = lease.stat().st_mtime
        wait_until(lambda: victim.lease not in _text(lease))
        assert time.time() - renewed > ttl
        assert second.wait(LIMIT) == 0, logs[1].read_text()
    assert_undisturbed(cache, alone)


def _text(path):
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@pytest.mark.slow
def test_two_hosts_by_accelerate_launch(corpus, alone, tmp_path):
    cache, logs = tmp_path / "cache", [tmp_path / "first.log", tmp_path / "second.log"]
    with two_hosts() as hosts:
        words = [on_host(host, [*by_accelerate(rank), *command(corpus, cache)[1:]]) for rank, host in enumerate(hosts)]
        children = [begin(*one, 0, GLOO_SOCKET_IFNAME="cable") for one in zip(words, logs, strict=True)]
        assert [child.wait(LIMIT) for child in children] == [0, 0], [log.read_text() for log in logs]
    assert ["17 of 17 samples" in log.read_text() for log in logs] == [True, False]  # the first host speaks
    assert_undisturbed(cache, alone)


def test_a_failing_process_makes_the_launcher_fail(tmp_path):
    done = run([sys.executable, "-m", *LAUNCHERS["accelerate"], *command(tmp_path, tmp_path / "cache")[1:]])
    assert done.returncode != 0
    assert f"dtkd: no image in {tmp_path}" in done.stderr


def test_sigterm_stops_resumably(corpus, tmp_path):
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
    process = subprocess.Popen(
        stage_one(corpus, cache, teacher=f"python:{slow}:stuck", samples_per_shard=8),
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
