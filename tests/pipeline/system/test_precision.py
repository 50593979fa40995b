"""Which precision a choice means on which hardware, and that the context brings it about."""

import pytest
import torch

from pipeline.system import device
from pipeline.system.device import autocast, fast_bf16, resolve_precision


@pytest.mark.parametrize("fast", [True, False])
def test_auto_follows_the_hardware_and_choices_do_not(fast, monkeypatch):
    asked = []
    monkeypatch.setattr(device, "fast_bf16", lambda device: asked.append(device) or fast)
    assert resolve_precision("auto", "cuda:1") == ("bf16" if fast else "fp32")
    assert [resolve_precision(choice, "cpu") for choice in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert asked == ["cuda:1"]


@pytest.mark.parametrize(("avx512", "amx", "fast"), [
    (True, False, True), (False, True, True), (False, False, False), (None, None, False), (None, True, True),
])  # fmt: skip
def test_a_cpu_is_fast_by_its_instructions_not_by_emulation(avx512, amx, fast, monkeypatch):
    """None: a version of torch that does not know the question."""
    for name, answer in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        if answer is None:
            monkeypatch.delattr(torch.cpu, name)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer)
    assert [fast_bf16(device) for device in ("cpu", "cpu:0", "meta")] == [fast, fast, False]


def test_products_have_the_precision():
    x = torch.rand(3, 3)
    for choice, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(choice, "cpu"):
            assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32
