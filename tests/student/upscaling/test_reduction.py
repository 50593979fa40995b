import tracemalloc

import numpy as np
import pytest

from pipeline.filters import resize_bicubic
from student.upscaling.reduction import Shape, reduce_rows


def pieces(pixels, size):
    return (pixels[top : top + size] for top in range(0, len(pixels), size))


@pytest.mark.parametrize("before, after", [((1, 1), (1, 1)), ((4, 8), (1, 2)), ((5, 3), (4, 1)), ((97, 61), (41, 60))])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_any_size_in_any_pieces_is_the_whole_resized(before, after, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    result = np.concatenate(list(reduce_rows(pieces(pixels, size), Shape(*before), Shape(*after))))
    expected = np.clip(np.rint(resize_bicubic(pixels.astype(np.float64), *after)), 0, 255)
    np.testing.assert_array_equal(result, expected)


def test_no_more_rows_are_held_than_the_filter_needs():
    height, width = 6000, 2000

    def rows():
        for top in range(0, height, 64):
            yield np.full((min(64, height - top), width, 3), top % 256, np.uint8)

    tracemalloc.start()
    count = sum(len(piece) for piece in reduce_rows(rows(), Shape(height, width), Shape(height // 2, width // 2)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == height // 2
    assert peak < height * width, f"{peak} bytes, the picture has {height * width * 3}"
