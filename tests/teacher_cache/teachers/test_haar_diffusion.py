"""The embedded teachers' pipeline."""

import pytest
import torch
from diffusers import DDIMScheduler
from teacher_support import haar_pipeline

from pipeline.system.errors import DtkdError
from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline, fold, unfold, upsample


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_fold_is_orthonormal_and_inverted_by_unfold(levels):
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    z = fold(x, levels)
    assert z.shape == (2, 3 * 4**levels, 32 >> levels, 48 >> levels)
    assert z.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(unfold(z, levels), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_encode_and_decode_are_inverse(scale):
    pipe = haar_pipeline(scale)
    hr, lr = torch.rand(1, 3, 16 * scale, 16 * scale), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(pipe.decode(pipe.encode(hr, lr), lr), hr, atol=1e-5, rtol=0)


def test_sampling_with_an_oracle_that_knows_the_residual_returns_the_photo():
    """With a network that sees the clean residual exactly, every number of steps ends at the HR image."""
    pipe = haar_pipeline()
    hr, lr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8)
    clean = (pipe.encode(hr, lr) - pipe.predict(lr).detach()) / pipe.band_factors(lr.device)
    pipe.refine = lambda noisy, t, prediction, lr: clean
    for steps in (1, 2, 7):
        out = pipe(lr, [torch.Generator().manual_seed(0)], num_inference_steps=steps)
        torch.testing.assert_close(out, hr, atol=1e-4, rtol=0)


def test_networks_that_answer_zero_leave_the_bicubic_base():
    pipe = haar_pipeline()
    pipe.predict = pipe.refine = lambda *inputs: torch.zeros(1, 48, 8, 8)
    lr = torch.rand(1, 3, 8, 8)
    out = pipe(lr, [torch.Generator().manual_seed(0)])
    torch.testing.assert_close(out, upsample(lr, 4).clamp(0, 1), atol=1e-5, rtol=0)


def test_haar_pipeline_refuses_networks_for_another_scale():
    pipe = haar_pipeline()
    with pytest.raises(DtkdError, match="x2 teacher needs 2 band scales and 27 UNet inputs, got 2 and 99"):
        HaarDiffusionPipeline(pipe.predictor, pipe.unet, DDIMScheduler(), scale=2, band_scale=[[1, 1]] * 2)
