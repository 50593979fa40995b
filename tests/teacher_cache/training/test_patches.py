"""Training patches: functions of seed and index, degraded as stage one's tiles."""

import dataclasses

import numpy as np
import torch

from pipeline.corpus import scan
from pipeline.degradation import Degradation, RealSettings, RoundSettings, SecondRoundSettings
from pipeline.images import load_rgb, to_image
from teacher_cache.building import crops
from teacher_cache.training.patches import PatchDataset

REAL = Degradation("real", 4)


def test_patches_are_functions_of_seed_and_index(corpus):
    sources = scan(corpus).sources
    one, two = (PatchDataset(sources, REAL, 8, 3) for _ in range(2))
    assert torch.equal(one[5].lr, (two[0], two[5])[1].lr)
    assert not torch.equal(one[5].hr, one[6].hr)
    assert not torch.equal(one[5].hr, PatchDataset(sources, REAL, 8, 4)[5].hr)
    assert one[5].lr.shape == (3, 8, 8)
    assert one[5].hr.shape == (3, 32, 32)


def test_mild_patches_are_nearer_to_the_photo(corpus):
    sources = scan(corpus).sources

    def distance(share):
        data = PatchDataset(sources, dataclasses.replace(REAL, mild_share=share), 16, 0)
        pairs = [data[i] for i in range(24)]
        return np.mean([(torch.nn.functional.avg_pool2d(hr, 4) - lr).abs().mean().item() for lr, hr in pairs])

    assert distance(1.0) < 0.6 * distance(0.0)


def test_jpeg_blocks_lie_at_any_phase_as_in_stage_one(corpus):
    quiet = {"blur_prob": 0.0, "resize_probs": (0.0, 0.0, 1.0), "noise_sigma": (0.0, 0.0), "gaussian_prob": 1.0}
    blocks = RealSettings(
        RoundSettings(**quiet, jpeg_quality=(95, 95)),
        SecondRoundSettings(**quiet, jpeg_quality=(4, 4)),
        final_sinc_prob=0.0,
    )
    degradation = dataclasses.replace(REAL, real=blocks, mild_share=0.0)
    source = scan(corpus).sources[0]
    hr, data = load_rgb(source.path), PatchDataset([source], degradation, 32, 0)
    tile = crops.Tile(source.id, 0, 0, 128, 128, "train")

    def phase(lr: np.ndarray) -> int:
        steps = np.abs(np.diff(lr.astype(float).mean(2), axis=1)).mean(0)  # (31,)
        return int(np.argmax([steps[start::8].mean() for start in range(8)]))

    patches = {phase(to_image(data[index].lr)) for index in range(80)}
    tiles = {phase(crops.cut_tile(hr, None, tile, degradation, seed).lr) for seed in range(80)}
    assert patches == tiles == set(range(8))
