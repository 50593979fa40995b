"""SwinIR against spandrel's: same weights, same output, same gradients."""

import numpy as np
import pytest
import torch
from swinir_oracle import SMALL, assert_close, oracle, random_image, randomised
from torch import Tensor

from pipeline.system.errors import DtkdError
from student.model import ModelSettings, SwinIR, SwinIRConfig, build, preset_config, preset_of
from student.model.cpu import fp32_forward, swin_block
from student.model.windows import pad_to_multiple

PUBLISHED = [("light", 4, 929_628), ("classical", 4, 11_900_199), ("real-m", 4, 11_715_559), ("real-l", 4, 28_013_059)]


@pytest.fixture(params=["tiled", "whole"])
def path(request, monkeypatch):
    """Both ways through the blocks: the CPU's, and that of GPUs, compilers and exports."""
    if request.param == "whole":
        monkeypatch.setattr(swin_block, "applies_to", lambda weight: False)
    return request.param


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
@pytest.mark.parametrize("size", [(17, 23), (5, 40)], ids=str)
def test_output_equals_spandrel(config, size, path):
    model = randomised(SwinIR(config)).eval()
    lr = random_image(2, 3, *size)
    reference = oracle(model)
    with torch.no_grad():
        assert_close(model(lr), reference(lr), 1e-5)
    with torch.inference_mode():
        assert_close(model(lr), reference(lr), 1e-5, "in inference mode")


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_gradients_equal_spandrel(config, path):
    model = randomised(SwinIR(config)).train()
    reference = oracle(model).double()  # in float64, so that no value falls to the other side of a LeakyReLU's kink
    model.double()
    ours, theirs = (random_image(2, 3, 20, 17).double().requires_grad_() for _ in range(2))
    for network, lr in ((model, ours), (reference, theirs)):
        output = network(lr)
        (output * torch.linspace(0, 1, output.numel()).view_as(output)).mean().backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()} | {"the input": theirs.grad}
    actual = {name: parameter.grad for name, parameter in model.named_parameters()} | {"the input": ours.grad}
    for name, gradient in actual.items():  # as a share of a tensor's largest
        scale = expected[name].abs().max()
        assert_close(gradient / scale, expected[name] / scale, 1e-5, f"gradient of {name}")


def test_keys_and_their_order_are_the_published_ones():
    model = SwinIR(SMALL["light"])
    assert list(model.state_dict()) == list(oracle(model).state_dict())


@pytest.mark.parametrize(("preset", "scale", "parameters"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(preset, scale, parameters):
    with torch.device("meta"):
        model = SwinIR(preset_config(preset, scale), preset=preset)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "scale", "_"), [*PUBLISHED, ("tiny", 3, 0), ("classical", 8, 0), ("real-m", 2, 0)])
def test_full_size_variants_equal_spandrel(preset, scale, _):
    model = randomised(build(preset, scale)).eval()
    lr = random_image(1, 3, 25, 34)
    with torch.no_grad():
        expected = oracle(model)(lr)
        limit = 1e-5 * max(1.0, float(expected.abs().max()))
        assert_close(model(lr), expected, limit)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (3, 2), (4, 4), (8, 8), (9, 1)], ids=str)
def test_runs_at_any_size(size):
    model = randomised(SwinIR(SMALL["light"])).eval()
    with torch.no_grad():
        sr = model(random_image(1, 3, *size))
    assert sr.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert sr.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (5, 5), (8, 16), (13, 9)], ids=str)
def test_padding_equals_numpy(size):
    x = random_image(1, 3, *size)
    pads = [(0, 0), (0, 0)] + [(0, -side % 8) for side in size]
    assert np.array_equal(pad_to_multiple(x, 8).numpy(), np.pad(x.numpy(), pads, mode="reflect"))


def test_images_of_a_batch_do_not_see_each_other(path):
    model = randomised(SwinIR(SMALL["light"])).eval()
    batch = random_image(3, 3, 18, 25)
    with torch.no_grad():
        single = torch.cat([model(lr[None]) for lr in batch])
        assert_close(model(batch), single, 1e-5)


def test_channels_last_and_strided_input_give_the_same():
    model = randomised(SwinIR(SMALL["light"])).eval()
    lr = random_image(2, 3, 16, 24)
    wide = random_image(2, 3, 32, 24)
    wide[:, :, ::2] = lr
    with torch.no_grad():
        expected = model(lr)
        assert_close(model(lr.contiguous(memory_format=torch.channels_last)), expected, 1e-6)
        assert_close(model(wide[:, :, ::2]), expected, 1e-6)


def gradients(model: SwinIR, lr: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(lr).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_checkpointing_changes_no_gradient(path):
    model = randomised(SwinIR(SMALL["light"], drop_path=0.4)).train()
    lr = random_image(2, 3, 16, 24)
    torch.manual_seed(0)
    expected = gradients(model, lr)
    model.checkpointing = True
    torch.manual_seed(0)
    for name, gradient in gradients(model, lr).items():
        assert_close(gradient, expected[name], 1e-6, name)


def test_drop_path_drops_whole_images_in_training_only(path):
    plain = randomised(SwinIR(SMALL["light"])).eval()
    model = SwinIR(SMALL["light"], drop_path=0.9)
    model.load_state_dict(plain.state_dict())
    lr = random_image(1, 3, 16, 16).expand(8, -1, -1, -1)
    with torch.no_grad():
        assert_close(model.eval()(lr), plain(lr), 0)
        torch.manual_seed(0)
        sr = model.train()(lr)
    assert len({tuple(image.flatten()[:9].tolist()) for image in sr}) > 1


def test_drop_path_keeps_the_mean():
    """The branch survives in a share 1 - p of the cases, and is scaled up by its inverse."""
    model = randomised(SwinIR(SwinIRConfig(2, 12, (2,), (2,), "pixelshuffledirect"), drop_path=0.5)).train()
    block = model.layers[0].residual_group.blocks[1]
    torch.manual_seed(0)
    branch = block._drop(torch.ones(4000, 1, 1, 1))
    assert set(branch.flatten().tolist()) == {0.0, 2.0}
    assert abs(branch.mean() - 1) < 0.1


def test_drop_path_equals_whole_image_operators(monkeypatch):
    """The same draws, forward and backward, on both ways through a block."""
    model = randomised(SwinIR(SMALL["light"], drop_path=0.6)).train()
    lr = random_image(4, 3, 16, 24)
    torch.manual_seed(3)
    tiled = gradients(model, lr)
    monkeypatch.setattr(swin_block, "applies_to", lambda weight: False)
    torch.manual_seed(3)
    for name, gradient in gradients(model, lr).items():
        assert_close(tiled[name], gradient, 1e-5, name)


def test_many_chunks_equal_one(monkeypatch):
    model = randomised(SwinIR(SMALL["light"])).train()
    lr = random_image(2, 3, 24, 40)
    expected = gradients(model, lr)
    monkeypatch.setattr(fp32_forward, "CHUNK_VALUES", 7 * 64 * (2 * 64 + 12 * 20))  # 7 windows, which divides nothing
    for name, gradient in gradients(model, lr).items():
        assert_close(gradient, expected[name], 1e-6, name)


def test_a_retained_graph_gives_the_same_gradients_again():
    model = randomised(SwinIR(SMALL["light"])).train()
    loss = model(random_image(1, 3, 16, 24)).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), first, second, strict=True):
        assert_close(a, b, 1e-7, name)


def test_frozen_parameters_get_no_gradient(path):
    model = randomised(SwinIR(SMALL["light"])).train()
    lr = random_image(2, 3, 16, 16)
    expected = gradients(model, lr)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp.fc1" in name)
    model.zero_grad(set_to_none=True)
    model(lr).square().mean().backward()
    for name, parameter in model.named_parameters():
        if "mlp.fc1" in name:
            assert_close(parameter.grad, expected[name], 1e-6, name)
        else:
            assert parameter.grad is None, name


def test_bfloat16_weights_are_taken_and_float16_is_refused():
    model = randomised(SwinIR(SMALL["light"])).eval()
    lr = random_image(1, 3, 20, 17)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.float16), pytest.raises(DtkdError, match="float16"):
            model(lr)
        assert model.bfloat16()(lr.bfloat16()).isfinite().all()
        with pytest.raises(DtkdError, match="float16"):
            model.half()(lr.half())


def test_torch_compile_without_graph_breaks():
    model = randomised(SwinIR(SMALL["light-x3"])).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for size in [(16, 16), (17, 30), (33, 9)]:
            assert_close(compiled(random_image(1, 3, *size)), model(random_image(1, 3, *size)), 1e-5, str(size))


def test_compiled_blocks_are_one_operator_each_and_have_the_same_gradients():
    model = randomised(SwinIR(SMALL["light"])).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    gradients = []
    for network in (model, compiled):
        lr = random_image(2, 3, 20, 17).requires_grad_()
        model.zero_grad()
        (network(lr) ** 2).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()} | {"the input": lr.grad})
    for name, expected in gradients[0].items():
        scale = expected.abs().max()
        assert_close(gradients[1][name] / scale, expected / scale, 1e-4, f"gradient of {name}")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("drop", [False, True])
def test_the_compiled_operator_keeps_torchs_rules(drop, bf16):
    """Schema, fake results and autograd registration, by torch's own checks."""
    window, c, heads = 8, 8, 2
    shapes = [
        (c,),
        (c,),
        (3 * c, c),
        (3 * c,),
        (15 * 15, heads),
        (c, c),
        (c,),
        (c,),
        (c,),
        (16, c),
        (16,),
        (c, 16),
        (c,),
    ]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    tiles = torch.randn(2 * 2 * 1 * 4, 16 * c, generator=generator).requires_grad_()
    scales = torch.rand(2, 4, generator=generator) if drop else None
    found = torch.library.opcheck(swin_block._operator, (tiles, weights, scales, [window, 2, 2, 1, 1], bf16))
    assert set(found.values()) == {"SUCCESS"}


def test_wrong_input_is_named():
    model = SwinIR(SMALL["light"])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        model(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("preset", "scale", "message"),
    [("huge", 4, "no preset 'huge'"), ("light", 5, "scale 5"), ("real-m", 3, "scale 3"), ("tiny", 8, "scale 8")],
)
def test_unknown_networks_are_refused(preset, scale, message):
    with pytest.raises(DtkdError, match=message):
        build(preset, scale)
    with pytest.raises(DtkdError, match=message):
        ModelSettings(preset, scale)


def test_presets_are_recognised():
    assert preset_of(preset_config("light", 3)) == "light"
    assert preset_of(SwinIRConfig(4, 60, (6,) * 4, (6,) * 4, "pixelshuffledirect", img_size=48)) == "light"
    assert preset_of(SMALL["light"]) == "custom"
    assert ModelSettings("tiny", 2).build().preset == "tiny"
