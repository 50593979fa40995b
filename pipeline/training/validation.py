"""psnr_y of held-out pictures while a run goes on."""

from pipeline.fidelity import psnr_y
from pipeline.images import Rgb

HIGHEST_PSNR = 100.0
"""What a picture that equals its reference counts in a mean, dB, where its own psnr_y is infinite.

One grey level in the green channel of one pixel in a thousand is 84 dB: above 100 a picture is the same for every
purpose. Leaving it out instead would make the mean jump between validations, and with it what counts as the best.
"""


def finite_psnr_y(sr: Rgb, gt: Rgb, crop_border: int) -> float:
    """`pipeline.fidelity.psnr_y`, at most `HIGHEST_PSNR`: a flat picture must not decide a mean."""
    return min(psnr_y(sr, gt, crop_border), HIGHEST_PSNR)
