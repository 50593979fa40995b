"""A corpus, another system's pictures of it, and its cache; no test changes them."""

import numpy as np
import pytest
from cache_support import NoisyBicubic, make_corpus, settings

from pipeline import images
from teacher_cache.building.build import build_cache


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="session")
def outputs(photos, tmp_path_factory):
    """Pictures of another system, for the teacher import:FOLDER."""
    folder = tmp_path_factory.mktemp("outputs")
    for path in photos.iterdir():
        noise = np.random.default_rng(0).integers(-9, 10, (128, 128, 3))
        images.save(folder / path.name, (images.load_rgb(path) + noise).clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def cache(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    build_cache(str(photos), folder, NoisyBicubic(), settings(hold_out=2))
    return folder
