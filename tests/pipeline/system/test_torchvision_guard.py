import json
import subprocess
import sys

import pytest
import torch

from pipeline.system import torchvision_guard

FRESH = """
import json
from pipeline.system import torchvision_guard
first, second = torchvision_guard.apply(), torchvision_guard.apply()
import torch, torchvision, spandrel
try:
    kept = torchvision.ops.nms(torch.tensor([[0., 0, 1, 1]]), torch.tensor([1.]), .5).tolist()
except RuntimeError:
    kept = None
print(json.dumps([first, second, kept]))
"""


@pytest.fixture(scope="module")
def fresh() -> list:
    """What a fresh interpreter sees: what is imported here cannot be undone."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_torchvision_and_what_needs_it_import_after_the_guard(fresh):
    first, second, kept = fresh
    assert not second, "applying twice must change nothing"
    assert first == (kept is None), "operators are declared exactly where the compiled ones do not work"


def test_without_torchvision_there_is_nothing_to_do(monkeypatch):
    monkeypatch.setattr(torchvision_guard, "_library", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert torchvision_guard.apply() is False


def test_the_declared_operator_has_the_signature_of_the_real_one():
    schema = str(torch.ops.torchvision.nms.default._schema)
    assert schema == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
