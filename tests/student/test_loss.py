"""The distillation loss against a plain NumPy and PyWavelets computation of its equation, and its scaling."""

import numpy as np
import pytest
import pywt
import torch

from pipeline.system.errors import DtkdError
from pipeline.wavelet import decompose
from student.loss import (
    MODES,
    GroupWeights,
    LossSettings,
    distillation_loss,
    group_distances,
    local_rms,
    measure,
    scale_weights,
)


def images(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def oracle_distances(sr, teacher, levels, wavelet):
    """Group means of mean |W_b(S) - W_b(T)|, band by band, of the two transforms apart."""
    both = [pywt.wavedec2(x.double().numpy(), wavelet, mode="symmetric", level=levels) for x in (sr, teacher)]
    low = np.abs(both[0][0] - both[1][0]).mean() / 2**levels
    levels_of_both = zip(both[0][1:], both[1][1:], strict=True)
    by_level = [[np.abs(s - t).mean() for s, t in zip(a, b, strict=True)] for a, b in levels_of_both]
    mid = [band for level in by_level[:-1] for band in level]
    high = by_level[-1] if by_level else []
    return low, np.mean(mid) if mid else 0.0, np.mean(high) if high else 0.0


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_loss_is_its_equation(levels, wavelet):
    sr, gt, teacher = images(1), images(2), images(3)
    weights = GroupWeights(0.3, 0.5, 0.7, levels, wavelet)
    got = distillation_loss(sr, gt, teacher, weights, 0.4)
    low, mid, high = oracle_distances(sr, teacher, levels, wavelet)
    l1 = (sr - gt).abs().double().mean().item()
    fg = 0.3 * low + 0.5 * mid + 0.7 * high
    expected = [l1 + 0.4 * fg, l1, fg, 0, low, mid, high]
    assert [p.item() for p in got] == pytest.approx(expected, abs=2e-6)


def oracle_energy(sr, teacher, levels, floor=0.0):
    """Mean |RMS - RMS| over windows of 16x16 pixels, window by window; of mid and high."""
    by_level = []
    pyramids = [pywt.wavedec2(x.double().numpy(), "haar", level=levels) for x in (sr, teacher)]
    for depth, (ours, theirs) in enumerate(zip(pyramids[0][:0:-1], pyramids[1][:0:-1], strict=True), 1):
        side, distances = 16 >> depth, []
        for s, t in zip(ours, theirs, strict=True):
            for y in range(0, s.shape[-2], side):
                for x in range(0, s.shape[-1], side):
                    a, b = (np.square(v[..., y : y + side, x : x + side]).mean((-1, -2)) for v in (s, t))
                    distances.append(np.abs(np.sqrt(a) - np.sqrt(np.maximum(b - floor**2, 0))).mean())
        by_level.append(np.mean(distances))
    return np.mean(by_level[1:]) if levels > 1 else 0.0, by_level[0]


@pytest.mark.parametrize("floor", [0.0, 40.0])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_energy_is_its_equation(levels, floor):
    sr, gt, teacher = images(1), images(2), images(3) * 0.6
    weights = GroupWeights(0.3, 0.5, 0.7, levels, "haar", energy=4.0, energy_floor=floor)
    got = distillation_loss(sr, gt, teacher, weights, 0.4)
    mid, high = oracle_energy(sr, teacher, levels, floor / 255)
    assert got.energy.item() == pytest.approx(0.5 * mid + 0.7 * high, rel=1e-5, abs=1e-4 if floor else 0)
    assert got.total.item() == pytest.approx((got.l1 + 0.4 * (got.fg + 4 * got.energy)).item(), rel=1e-6)


def test_energy_has_the_gradient_of_its_equation():
    band = torch.rand(1, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda b: local_rms(b, 4), band.sub(0.5).requires_grad_())
    flat = torch.zeros(1, 1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(local_rms(flat, 4).sum(), flat)
    assert gradient.isfinite().all()
    with pytest.raises(DtkdError, match="expected bands of 8 coefficients a side or more, got 4x4"):
        local_rms(flat, 8)


def test_a_floor_takes_rounding_out_of_what_is_asked_for():
    """A smooth teacher in 8 bits has detail of .29 levels from rounding; with a floor a smooth student is best."""
    smooth = (images(4, 64) * 0.02).mean(1, keepdim=True).cumsum(-1).cumsum(-2) * 0.002 + 0.3
    stored = (smooth * 255).round() / 255
    patterned = smooth + torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32) * 0.15 / 255

    def energy(sr, floor):
        weights = GroupWeights(0, 1, 1, energy=1.0, energy_floor=floor)
        return distillation_loss(sr, smooth, stored, weights, 1.0).energy.item()

    assert energy(patterned, 0.0) < energy(smooth, 0.0)
    assert energy(patterned, 0.5) > 1.3 * energy(smooth, 0.5)


def test_energy_keeps_texture_that_the_median_loses():
    """A teacher that adds a random sign of one texture: L_FG is least at none of it, the energy at all of it."""
    texture = images(5, 64) - 0.5
    shares = torch.linspace(0, 1.2, 13)

    def best(energy):
        def cost(share):
            both = [distillation_loss(share * texture, texture, sign * texture, weights, 1.0) for sign in (1, -1)]
            return sum((parts.energy if energy else parts.fg).item() for parts in both)

        weights = GroupWeights(0.0, 1.0, 1.0, energy=1.0)
        return min(shares, key=cost).item()

    assert best(energy=True) == pytest.approx(1.0)
    signed = [distillation_loss(share * texture, texture, s * texture, GroupWeights(0, 1, 1), 1.0).fg.item()
              for share in (0.0, 1.0) for s in (1, -1)]  # fmt: skip
    assert sum(signed[:2]) <= sum(signed[2:]) + 1e-6


def test_ground_truth_in_the_low_group_only():
    sr, gt, teacher = images(1), images(2), images(3)
    got = distillation_loss(sr, gt, teacher, GroupWeights(0.3, 0.5, 0.7, gt="low"), 0.0)
    means = (sr - gt).unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    assert got.total.item() == pytest.approx(means.abs().mean().item(), rel=1e-5)


def test_a_shifted_grid_sees_the_borders_of_blocks():
    blocks = images(7, 8).repeat_interleave(4, -1).repeat_interleave(4, -2)  # all its detail is between 4x4 blocks
    weights, flat = GroupWeights(0, 1, 1, energy=1.0), torch.full_like(blocks, 0.5)
    fixed = distillation_loss(blocks, blocks, flat, weights, 1.0)
    assert fixed.total.item() == pytest.approx(0, abs=1e-6)
    shifted = distillation_loss(blocks, blocks, flat, weights, 1.0, (2, 3))
    moved = distillation_loss(*(torch.roll(image, (2, 3), (2, 3)) for image in (blocks, blocks, flat)), weights, 1.0)
    assert shifted == moved
    assert min(shifted.mid.item(), shifted.high.item(), shifted.energy.item()) > 0.01
    assert shifted.l1.item() == 0


def test_gradient_reaches_the_student_only_through_what_counts():
    sr, gt, teacher = images(1).requires_grad_(), images(2), images(3)
    (plain,) = torch.autograd.grad(torch.nn.functional.l1_loss(sr, gt), sr)
    (off,) = torch.autograd.grad(distillation_loss(sr, gt, teacher, GroupWeights(1, 1, 1), 0.0).total, sr)
    assert torch.equal(off, plain)
    (high,) = torch.autograd.grad(distillation_loss(sr, sr.detach(), teacher, GroupWeights(0, 0, 1), 1.0).total, sr)
    blocks = high.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))
    assert blocks.abs().max() < 1e-9  # the high group cannot move the mean of a 2x2 block
    assert high.abs().mean() > 1e-6


def test_low_group_is_in_pixel_units():
    sr = torch.full((1, 3, 16, 16), 0.25)
    for levels in range(4):
        low, mid, high = group_distances(decompose(sr, levels), decompose(torch.zeros_like(sr), levels))
        assert (low.item(), mid.item(), high.item()) == pytest.approx((0.25, 0, 0))


def test_loss_stays_in_float32_under_autocast():
    sr, gt, teacher = images(1), images(2), images(3)
    weights = GroupWeights(1, 1, 1)
    expected = distillation_loss(sr.bfloat16().float(), gt, teacher, weights, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = distillation_loss(sr.bfloat16(), gt, teacher, weights, 1.0)
    assert [p.dtype for p in got] == [torch.float32] * len(got)
    assert [p.item() for p in got] == [p.item() for p in expected]


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("weights", [*MODES, (0.1, 2.0, 3.0)])
def test_every_allocation_has_the_same_total_at_calibration(weights, levels):
    """Weighted on the calibration pairs, L_FG is the mean |S0 - T| whatever the mode and the levels."""
    lr, teacher = images(1, 8), images(2, 32)
    s0 = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    scaled = scale_weights(LossSettings(levels=levels, weights=weights), measure([(lr, teacher)], levels))
    fg = distillation_loss(s0, s0, teacher, scaled, 1.0).fg
    assert fg.item() == pytest.approx((s0 - teacher).abs().mean().item(), rel=1e-5)


def test_scaling_keeps_the_allocation():
    magnitudes = measure([(images(1, 8), images(2))], 2)
    low, mid, high, *_ = scale_weights(LossSettings(weights="mid"), magnitudes)
    assert (low / mid, high / mid) == pytest.approx((0.25, 0.5))


def test_perfect_teacher_does_not_divide_by_zero():
    flat = torch.full((1, 3, 8, 8), 0.5)
    scaled = scale_weights(LossSettings(), measure([(flat, flat)], 2))
    assert sum(scaled[:3]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"levels": 4}, "loss.levels must be 0 to 3, got 4"),
        ({"lambda_max": -1.0}, "must not be negative"),
        ({"start": 1.5}, "fractions of the run"),
        ({"length": -0.1}, "fractions of the run"),
        ({"wavelet": "har"}, "unknown wavelet"),
        ({"weights": "medium"}, "uniform, mid, low, high or three numbers"),
        ({"weights": "calibrated"}, "`dtkd audit` writes calibrated ones"),
        ({"weights": (0.0, 0.0, 0.0)}, "not all zero"),
        ({"weights": (1.0, -1.0, 1.0)}, "none negative"),
        ({"weights": (1.0, float("nan"), 1.0)}, "three numbers"),
    ],
)
def test_bad_settings_are_refused(values, words):
    with pytest.raises(DtkdError, match=words):
        LossSettings(**values)


def test_weight_on_absent_groups_only_is_refused():
    with pytest.raises(DtkdError, match="1 levels"):
        scale_weights(LossSettings(levels=1, weights=(0.0, 1.0, 0.0)), measure([(images(1, 8), images(2))], 1))
