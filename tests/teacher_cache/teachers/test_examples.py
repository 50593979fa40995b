"""The examples of teachers as users copy them, and that they are what they say."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cache_support import make_corpus, settings

from pipeline.system.errors import DtkdError
from teacher_cache import teachers
from teacher_cache.check import check_teacher

EXAMPLES = Path(__file__).parents[3] / "examples"


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def load(name, **options):
    return teachers.load(f"python:{EXAMPLES / name}.py:make", **options)


@pytest.mark.parametrize("name", ["one_step_teacher", "residual_shifting_teacher"])
def test_an_example_passes_the_check_but_for_the_colours_of_random_weights(name, tmp_path):
    corpus = make_corpus(tmp_path)
    result = check_teacher(str(corpus), load(name), settings())
    assert [item.name for item in result.findings if not item.ok] in ([], ["colour drift"])
    one, two = load(name).fingerprint(), load(name).fingerprint()
    assert one == two and len(one["teacher"]["weights"]) == 64


def test_what_they_cannot_do_is_refused():
    for name, options in (("one_step_teacher", {"steps": 2}), ("residual_shifting_teacher", {"scale": 2})):
        with pytest.raises(DtkdError, match="this teacher makes x4"):
            load(name, **options)


def test_one_step_removes_the_noise_that_its_network_sees():
    """With a network that returns the latent itself, the picture is the decoded latent times a known factor."""
    example = module("one_step_teacher")
    teacher = example.make(scale=4, steps=None, device="cpu", dtype=None)
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    up = F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        latent = teacher.vae.encode(up * 2 - 1).latent_dist.mode()
        factor = (1 - (1 - teacher.signal**2) ** 0.5) / teacher.signal
        expected = (teacher.vae.decode(latent * factor).sample / 2 + 0.5).clamp(0, 1)

    class Echo(torch.nn.Module):
        def forward(self, x, time, encoder_hidden_states):
            return type("Output", (), {"sample": x})

    teacher.unet = Echo()
    torch.testing.assert_close(teacher.restore(lr, [0]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_residual_shifting_begins_at_the_lr_image_and_ends_at_what_the_network_says(steps):
    example = module("residual_shifting_teacher")
    eta = example.shifts(steps)
    assert eta == sorted(eta) and eta[-1] == pytest.approx(example.LAST)
    assert steps == 1 or eta[0] == pytest.approx(example.FIRST)
    teacher = example.make(scale=4, steps=steps, device="cpu", dtype=None)
    lr = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    states = []

    class Nothing(torch.nn.Module):
        """Adds nothing to the LR image, and notes what it is shown."""

        def forward(self, x, step):
            states.append(x[:, :3] * (1 + example.KAPPA**2 * eta[step]) ** 0.5 - x[:, 3:])
            return type("Output", (), {"sample": torch.zeros_like(x[:, :3])})

    teacher.network = Nothing()
    out = teacher.restore(lr, [1, 2])
    torch.testing.assert_close(out, F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1))
    assert len(states) == steps
    for state, shift in zip(states, reversed(eta), strict=True):  # HR is the LR image here: only the noise is left
        assert state.std().item() == pytest.approx(example.KAPPA * shift**0.5, rel=0.05)
