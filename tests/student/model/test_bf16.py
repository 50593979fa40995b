"""The blocks with bfloat16 products, against the same network in float32 and against torch's own autocast."""

import numpy as np
import pytest
import skimage.data
import torch
from swinir_oracle import SMALL, assert_close, random_image, randomised
from torch import Tensor

from pipeline.fidelity import psnr_y
from pipeline.filters import resize_bicubic_uint8
from pipeline.images import to_image, to_tensor
from student.checkpoint import load
from student.model import SwinIR
from student.model.cpu import bf16_forward, swin_block
from student.networks import WEIGHTS

VARIANTS = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def fp32() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def gradients(model: SwinIR, lr: Tensor, precision=bf16) -> dict[str, Tensor]:
    """Of a sum that weighs every pixel differently; also that of the input."""
    model.zero_grad()
    lr = lr.clone().requires_grad_()
    with precision():
        sr = model(lr)
    (sr * torch.linspace(0, 1, sr.numel()).view_as(sr)).mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return found | {"the input": lr.grad}


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.norm())


@VARIANTS
@pytest.mark.parametrize("size", [(17, 23), (5, 40)], ids=str)
def test_output_is_close_to_float32(config, size):
    model, lr = randomised(SwinIR(config)).eval(), random_image(2, 3, *size)
    with torch.inference_mode():
        expected = model(lr)
        with bf16():
            sr = model(lr)
    assert sr.dtype == torch.float32
    assert 1e-4 < error(sr - model.mean, expected - model.mean) < 0.02  # not 0: something was computed in bfloat16


@VARIANTS
def test_gradients_are_as_close_to_float32_as_those_of_torchs_own_autocast(config, monkeypatch):
    model, lr = randomised(SwinIR(config)).train(), random_image(2, 3, 24, 40)
    expected, actual = gradients(model, lr, fp32), gradients(model, lr)
    monkeypatch.setattr(swin_block, "applies_to", lambda weight: False)
    reference = gradients(model, lr)
    for name, gradient in actual.items():
        assert gradient.dtype == torch.float32
        ours, torchs = (error(x[name], expected[name]) for x in (actual, reference))
        assert ours < 2 * torchs + 0.01, f"{name}: {ours:.3f}, torch's {torchs:.3f}"
        cosine = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), 0)
        assert cosine > 0.98, f"{name}: {cosine:.4f}"


def test_psnr_of_a_photo_stays():
    model = load(WEIGHTS / "tiny-x4.safetensors").eval()
    for photo in (skimage.data.astronaut(), skimage.data.coffee()[:, :400]):
        hr = np.ascontiguousarray(photo[:256, -256:])
        lr = to_tensor(resize_bicubic_uint8(hr, 64, 64))[None]
        with torch.inference_mode():
            expected = psnr_y(to_image(model(lr)[0]), hr, 4)
            with bf16():
                assert psnr_y(to_image(model(lr)[0]), hr, 4) == pytest.approx(expected, abs=0.01)


def test_training_goes_the_same_way():
    target, lr = random_image(2, 3, 64, 64, seed=2), random_image(2, 3, 16, 16)
    curves = []
    for precision in (fp32, bf16):
        model = randomised(SwinIR(SMALL["light"])).train()
        optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
        for _ in range(12):
            with precision():
                loss = (model(lr) - target).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=0.01)


def test_the_same_input_gives_the_same_bits():
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(2, 3, 24, 40)
    first = gradients(model, lr)
    for name, gradient in gradients(model, lr).items():
        assert torch.equal(gradient, first[name]), name


def test_checkpointing_changes_no_gradient():
    model, lr = randomised(SwinIR(SMALL["light"], drop_path=0.4)).train(), random_image(2, 3, 16, 24)
    torch.manual_seed(0)
    expected = gradients(model, lr)
    model.checkpointing = True
    torch.manual_seed(0)
    for name, gradient in gradients(model, lr).items():
        assert torch.equal(gradient, expected[name]), name


def test_drop_path_scales_the_same_branches_as_in_float32():
    model, lr = randomised(SwinIR(SMALL["light"], drop_path=0.6)).train(), random_image(4, 3, 16, 24)
    torch.manual_seed(3)
    expected = gradients(model, lr, fp32)
    torch.manual_seed(3)
    for name, gradient in gradients(model, lr).items():
        assert error(gradient, expected[name]) < 0.05, name


def test_many_chunks_equal_one(monkeypatch):
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(2, 3, 24, 40)
    expected = gradients(model, lr)
    monkeypatch.setattr(bf16_forward, "CHUNK_VALUES", 7 * 64 * (2 * 64 + 12 * 20))  # 7 windows, which divides nothing
    for name, gradient in gradients(model, lr).items():
        assert error(gradient, expected[name]) < 0.01, name


def test_a_retained_graph_gives_the_same_gradients_again():
    model = randomised(SwinIR(SMALL["light"])).train()
    with bf16():
        loss = model(random_image(1, 3, 16, 24)).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), first, second, strict=True):
        assert torch.equal(a, b), name


def test_the_backward_pass_may_run_under_autocast_too():
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(1, 3, 16, 24)
    with bf16():
        model(lr).square().mean().backward()
    inside = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with bf16():
        loss = model(lr).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert error(parameter.grad, inside[name]) < 1e-2, name


def test_logits_less_the_largest_of_their_row_give_the_same(monkeypatch):
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(2, 3, 16, 24)
    expected = gradients(model, lr)
    monkeypatch.setattr(bf16_forward, "_is_safe", lambda sums: False)
    for name, gradient in gradients(model, lr).items():
        assert error(gradient, expected[name]) < 0.03, name


@pytest.mark.parametrize("offset", [200.0, -200.0])
def test_logits_beyond_the_range_of_powers(offset):
    """2^(1.4 * 200) is no bfloat16 number, and 2^(1.4 * -200) is 0: only less the largest of their row they are."""
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(2, 3, 16, 24)
    with torch.inference_mode():
        expected = model(lr)
    with torch.no_grad():
        for block in (block for group in model.layers for block in group.residual_group.blocks):
            block.attn.relative_position_bias_table += offset  # changes no probability
    with torch.inference_mode(), bf16():
        assert error(model(lr) - model.mean, expected - model.mean) < 0.2  # bfloat16 logits near 288 have steps of 2
    for name, gradient in gradients(model, lr).items():
        assert gradient.isfinite().all() and gradient.any(), name


def test_what_is_not_a_number_stays_so():
    model, lr = randomised(SwinIR(SMALL["light"])).eval(), random_image(1, 3, 16, 16)
    lr[0, 0, 3, 3] = float("nan")
    with torch.inference_mode(), bf16():
        assert model(lr).isnan().any()


def test_frozen_parameters_get_no_gradient():
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(2, 3, 16, 16)
    expected = gradients(model, lr)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp.fc1" in name)
    model.zero_grad(set_to_none=True)
    with bf16():
        sr = model(lr)
    (sr * torch.linspace(0, 1, sr.numel()).view_as(sr)).mean().backward()
    for name, parameter in model.named_parameters():
        if "mlp.fc1" in name:
            assert_close(parameter.grad, expected[name], 0, name)
        else:
            assert parameter.grad is None, name


def test_compiled_blocks_give_the_same():
    model, lr = randomised(SwinIR(SMALL["light"])).train(), random_image(2, 3, 20, 17)
    expected = gradients(model, lr)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with bf16():
        assert error(compiled(lr), model(lr)) < 1e-3
        (compiled(lr) * torch.linspace(0, 1, lr.numel() * 16).view(2, 3, 80, 68)).mean().backward()
    for name, parameter in model.named_parameters():
        assert error(parameter.grad, 2 * expected[name]) < 0.02, name


def test_bfloat16_weights_take_whole_image_operators():
    model, lr = randomised(SwinIR(SMALL["light"])).eval(), random_image(1, 3, 16, 24)
    with torch.inference_mode():
        expected = model(lr)
        model.bfloat16()
        with bf16():
            assert error(model(lr).float() - 0.4, expected - 0.4) < 0.05
