"""Which precision a choice means, and that the context brings it about."""

import pytest
import torch

from pipeline.system import device
from pipeline.system.device import autocast, resolve_precision


@pytest.mark.parametrize("fast", [True, False])
def test_auto_follows_the_hardware_and_choices_do_not(fast, monkeypatch):
    asked = []
    monkeypatch.setattr(device, "fast_bf16", lambda device: asked.append(device) or fast)
    assert resolve_precision("auto", "cuda:1") == ("bf16" if fast else "fp32")
    assert [resolve_precision(choice, "cpu") for choice in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert asked == ["cuda:1"]


def test_products_have_the_precision():
    x = torch.rand(3, 3)
    for choice, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(choice, "cpu"):
            assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32
