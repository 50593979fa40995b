"""A corpus of three small photos."""

import pytest
from PIL import Image
from skimage import data as photos


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(photos, name)()[100:228, 100:260]).save(folder / f"{name}.png")
    return folder
