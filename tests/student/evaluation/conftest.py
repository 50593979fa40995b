import pytest
import torch

from student import checkpoint
from student.model import build


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Weights of an untrained student, in a folder as a run has it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "student.safetensors"
    checkpoint.save(build("tiny", 4), path, {})
    return path
