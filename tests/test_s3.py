"""Both stages against a real S3 server on this machine (moto's): build, kill, go on, verify, train.

Needs moto[server] and s3fs, which `pip install -e '.[dev]'` brings.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_support import command_options, make_corpus, remote_tars, tars, whole_records

import cli
from pipeline.storage.places import Remote

pytestmark = pytest.mark.slow
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

ROOT = Path(cli.__file__).parent
CACHE = "photos/cache"
URL = f"s3://{CACHE}"
TEACHER = f"python:{ROOT}/examples/python_teacher.py:sharpened"
OPTIONS = command_options(TEACHER, 5)


class CuttingProxy:
    """Hands bytes between clients and the server; cuts the line once, when a put of `cut_after` bytes came by."""

    def __init__(self, port: int, cut_after: int) -> None:
        self._server, self._left, self.cuts = port, cut_after, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            threading.Thread(target=self._hand_on, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._hand_on, args=(server, client, False), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(4096):
                self._left -= len(data) * counted
                if counted and self._left < 0:
                    self.cuts += 1
                    break  # in the middle of what is being sent, and for every further try
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            for act in (lambda end=end: end.shutdown(socket.SHUT_RDWR), end.close):
                try:
                    act()
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def port():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(port, monkeypatch):
    """An empty bucket; this process and its children find the server through the environment."""
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    if fs.exists("photos"):
        fs.rm("photos", recursive=True)
    fs.mkdir("photos")
    return fs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The cache that one undisturbed process makes in a folder."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    run("teacher-cache", str(corpus), str(cache), *OPTIONS)
    return cache


def environment(port):
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "OMP_NUM_THREADS": "1",
    }


def start(*arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments], cwd=ROOT, text=True, env=os.environ | more,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments, **more):
    process = start(*arguments, **more)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def build(corpus, local, shards, *more):
    return ["teacher-cache", str(corpus), URL, *OPTIONS, "--shards", shards, "--set", f"local_folder={local}", *more]


def test_build_kill_go_on_verify_and_train(bucket, corpus, whole, tmp_path):
    local = tmp_path / "local"
    process = start(*build(corpus, local, "0-"))
    while process.poll() is None and not list(local.glob("making/*/done/*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # around the put of the first shard
    process.communicate()
    assert not bucket.exists(f"{CACHE}/manifest.json")

    part = json.loads(run(*build(corpus, local, "0-1", "--json")))
    assert (part["complete"], part["share_done"], part["shards_done"]) == (False, True, 2)
    rest = json.loads(run(*build(corpus, tmp_path / "another machine", "2-", "--json")))
    assert (rest["complete"], rest["cache"], rest["ok"]) == (True, URL, 17)
    assert remote_tars(bucket, CACHE) == tars(whole)

    assert "17 sound samples" in run("verify", URL)
    student = ("model.preset=tiny", "train.steps=3", "train.batch_size=2", "train.patch=16", "train.val_metrics=psnr_y",
               "train.best_by=psnr_y", "train.log_every=1",
               f"data.local_folder={tmp_path / 'fetched'}", "data.workers=2")  # fmt: skip
    sets = [part for setting in student for part in ("--set", setting)]
    run("train-student", URL, str(tmp_path / "remote"), *sets)
    run("train-student", str(whole), str(tmp_path / "folder"), *sets)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("remote", "folder")]
    losses = [[step["total"] for line in log if "total" in (step := json.loads(line))] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_a_connection_lost_in_the_middle_of_a_put_loses_nothing(bucket, port, corpus, whole, tmp_path):
    """The line is cut inside the tar of the first shard, and stays cut; later the same command goes on."""
    half = (whole / "shard-00000000.tar").stat().st_size // 2
    proxy = CuttingProxy(port, cut_after=20_000 + half)
    process = start(*build(corpus, tmp_path / "local", "0"), AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}")
    _, err = process.communicate()
    proxy.close()
    assert process.returncode == 1
    assert proxy.cuts >= 1
    assert "s3://photos/cache: writing shard-00000000.tar failed" in err
    assert "run the same command again" in err
    assert remote_tars(bucket, CACHE) == {}
    assert Remote(URL).listing("done") == {}

    result = json.loads(run(*build(corpus, tmp_path / "local", "0", "--json")))
    assert result["share_done"]
    assert remote_tars(bucket, CACHE) == {"shard-00000000.tar": (whole / "shard-00000000.tar").read_bytes()}
    run(*build(corpus, tmp_path / "local", "1-"))
    assert remote_tars(bucket, CACHE) == tars(whole)


# Failed samples, made again ------------------------------------------------------------------------------------------

MOODY = """
import os
import torch.nn.functional as F


class Moody:
    name, scale, steps = "moody", 4, 1

    def restore(self, lr, seeds):
        if os.environ.get("MOOD") == "bad" and any(image.mean() < 0.35 for image in lr):
            raise ValueError("not today")
        return F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)

    def fingerprint(self):
        return {}


def make(*, scale, steps, device, dtype):
    return Moody()
"""

DYING = """
import os, signal
from pipeline.storage.places import Remote

left = int(os.environ["DIE_AFTER"])


def counted(act):
    def acting(*arguments):
        global left
        act(*arguments)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return acting


Remote.put, Remote.remove = counted(Remote.put), counted(Remote.remove)
import cli
cli.app()
"""


def test_failed_samples_are_made_again_and_a_kill_between_any_two_steps_is_gone_on_from(bucket, corpus, tmp_path):
    """The manifest goes, the record, the tar is replaced, the new record put: killed after each of these."""
    (tmp_path / "moody.py").write_text(MOODY)
    options = (*command_options(f"python:{tmp_path}/moody.py:make", 5), "--set", "max_failure_fraction=1.0")
    run("teacher-cache", str(corpus), str(tmp_path / "whole"), *options)
    command = ["teacher-cache", str(corpus), URL, *options, "--shards", "0-", "--set", f"local_folder={tmp_path}/local"]
    first = json.loads(run(*command, "--json", MOOD="bad"))
    assert first["complete"] and 0 < first["errors"] < 17
    found = json.loads(run("status", URL, "--json"))
    assert (found["complete"], found["failed"], found["done"]) == (True, first["errors"], 17)
    assert [kind["message"] for kind in found["kinds"]] == ["not today"]

    seen = set()
    for steps in range(1, 5):
        words = [sys.executable, "-c", DYING, *command, "--retry-errors"]
        dying = subprocess.run(words, cwd=ROOT, env=os.environ | {"DIE_AFTER": str(steps)}, capture_output=True)
        assert dying.returncode == -signal.SIGKILL, dying.stderr.decode()
        seen.add(whole_records(bucket, CACHE))
        found = json.loads(run("status", URL, "--json"))
        assert not found["complete"] and not found["damaged"]
        assert found["shards_done"] == len(bucket.glob(f"{CACHE}/done/*.json"))
    assert seen == {4, 5}, "with and without the record of the shard that is replaced"

    last = json.loads(run(*command, "--retry-errors", "--json"))
    assert (last["complete"], last["errors"], last["ok"]) == (True, 0, 17)
    assert remote_tars(bucket, CACHE) == tars(tmp_path / "whole")
    assert whole_records(bucket, CACHE) == 10
    assert "17 sound samples" in run("verify", URL)
    assert "complete" in run("status", URL, "--watch").splitlines()
