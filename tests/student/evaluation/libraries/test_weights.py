"""Where pyiqa's weights are looked for, in processes of their own: the libraries read the environment at import."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from pyiqa.archs import cnniqa_arch

from pipeline import images

ROOT = Path(__file__).parents[4]
CNNIQA = cnniqa_arch.default_model_urls["koniq10k"].rpartition("/")[2]
BACKBONE = "timm/test_resnet.r160_in1k"
COMMIT = "0" * 40
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody answers
MEASURE = """
import json, sys, skimage.data
from student.evaluation import metrics
pins = json.loads(sys.argv[1])
loaded = metrics.load(list(pins), pins=pins)
image = skimage.data.chelsea()[:96, :112]
print(json.dumps([{m.name: m.measure(image, None, 0) for m in loaded.metrics}, [u.reason for u in loaded.unavailable]]))
"""
PINS = {"cnniqa": {}, "topiq_nr": {"semantic_model_name": "test_resnet", "pretrained": False}}  # its backbone is left


def measure(home: Path, endpoint: str) -> tuple[dict[str, float], list[str]]:
    """Figures by metric, and why others have none, in a process of its own with these places."""
    places = {"TORCH_HOME": str(home / "torch"), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint}
    environment = os.environ | places | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", MEASURE, json.dumps(PINS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures, reasons = json.loads(done.stdout)
    return figures, reasons


@pytest.fixture(scope="module")
def cnniqa(tmp_path_factory) -> tuple[Path, float]:
    """A file of random weights under pyiqa's name, and the figure that they give."""
    net = cnniqa_arch.CNNIQA(pretrained=None).eval()
    path = tmp_path_factory.mktemp("cnniqa") / CNNIQA
    torch.save({"params": net.state_dict()}, path)
    with torch.no_grad():
        return path, float(net(images.to_tensor(skimage.data.chelsea()[:96, :112])[None]))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    return path


@contextmanager
def host(files: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """A host of these files: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            path = files.get(self.path)
            self.answer(path.read_bytes() if path else b"")

        def answer(self, body: bytes) -> None:
            asked.append(self.path)
            path = files.get(self.path)
            self.send_response(200 if path else 404)
            self.send_header("Content-Length", str(path.stat().st_size if path else 0))
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_weights_in_torch_home_and_hf_home_are_found_without_a_network(cnniqa, backbone, tmp_path):
    figures, reasons = measure(tmp_path, NOWHERE)
    assert not figures and all(NOWHERE in reason for reason in reasons)
    repository = tmp_path / "hf" / "hub" / f"models--{BACKBONE.replace('/', '--')}"
    for folder in (tmp_path / "torch/hub/pyiqa", repository / "refs", repository / "snapshots" / COMMIT):
        folder.mkdir(parents=True, exist_ok=True)
    path, figure = cnniqa
    (tmp_path / "torch/hub/pyiqa" / CNNIQA).symlink_to(path)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT / backbone.name).symlink_to(backbone)
    figures, reasons = measure(tmp_path, NOWHERE)
    assert figures.keys() == PINS.keys() and not reasons
    assert figures["cnniqa"] == pytest.approx(figure)


def test_the_host_of_hf_endpoint_is_asked_and_its_answer_kept_there(cnniqa, backbone, tmp_path):
    path, figure = cnniqa
    own = f"/chaofengc/IQA-PyTorch-Weights/resolve/main/{CNNIQA}"
    below = f"/{BACKBONE}/resolve/main/{backbone.name}"
    with host({own: path, below: backbone}) as (endpoint, asked):
        figures, reasons = measure(tmp_path, endpoint)
    assert figures.keys() == PINS.keys() and not reasons
    assert figures["cnniqa"] == pytest.approx(figure)
    assert {own, below} <= set(asked)
    assert (tmp_path / "torch/hub/pyiqa" / CNNIQA).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "hf/hub").rglob(backbone.name))) == 1
