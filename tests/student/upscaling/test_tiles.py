import numpy as np
import pytest
from skimage import data

from pipeline.system.errors import DtkdError
from student.upscaling.tiles import Axis, Tiling, cut, restore_in_tiles


def nearest(scale: int):
    """A restorer whose tiled result must be exact: it looks at no neighbours."""
    return lambda tiles: tiles.repeat(scale, axis=2).repeat(scale, axis=3)


@pytest.mark.parametrize("multiple", [8, 16])
@pytest.mark.parametrize("tile, overlap", [(64, 16), (64, 32), (128, 32), (256, 48)])
def test_every_axis_is_covered_with_weights_that_sum_to_one(tile, overlap, multiple):
    for size in (*range(1, 700, 13), 63, 64, 65, 128, 129, 4000, 6001):
        axis = cut(size, tile, overlap, multiple)
        assert axis.padded - size < multiple and axis.padded % multiple == 0
        assert axis.tile <= max(tile, axis.padded if len(axis.starts) == 1 else 0)
        assert all(start % multiple == 0 for start in axis.starts)
        assert axis.starts[0] == 0 and axis.starts[-1] + axis.tile == axis.padded
        pairs = zip(axis.starts, axis.starts[1:], strict=False)
        assert all(a + axis.tile - b >= overlap for a, b in pairs), (size, axis)
        total = np.zeros(axis.padded * 2)
        for index, start in enumerate(axis.starts):
            begin, end = axis.support(index)
            assert start <= begin < end <= start + axis.tile
            weights = axis.weights(index, 2)
            assert weights.min() >= 0
            total[begin * 2 : end * 2] += weights
        np.testing.assert_allclose(total, 1, atol=1e-5)


def test_tiles_are_no_larger_than_needed():
    axis = cut(264, 256, 32, 8)
    assert axis == Axis(264, 264, 152, (0, 112))


@pytest.mark.parametrize("shape", [(100, 75, 3), (64, 300, 4), (1, 90, 1), (7, 1, 2), (200, 200, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_needs_no_neighbours_comes_out_exactly(shape, dtype, batch):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    tiling = Tiling(cut(shape[0], 64, 16, 8), cut(shape[1], 64, 16, 8))
    finished = []
    bands = list(restore_in_tiles(pixels, tiling, 3, nearest(3), batch=batch, on_tiles=finished.append))
    result = np.concatenate(bands)
    assert result.dtype == dtype and all(band.shape[0] <= 64 for band in bands)
    np.testing.assert_array_equal(result, pixels.repeat(3, 0).repeat(3, 1))
    assert sum(finished) == tiling.count and max(finished) <= batch


def test_a_filter_that_fits_into_the_discarded_border_equals_the_whole_picture():
    """A 5-tap blur reaches 2 pixels; 4 of an overlap of 16 are thrown away on each side, so no tile border is left."""
    from scipy.ndimage import uniform_filter

    def blur(tiles: np.ndarray) -> np.ndarray:
        return uniform_filter(tiles, size=(1, 1, 5, 5), mode="mirror")

    pixels = data.astronaut()[:203, :330]
    tiling = Tiling(cut(203, 64, 16, 8), cut(330, 64, 16, 8))
    tiled = np.concatenate(list(restore_in_tiles(pixels, tiling, 1, blur)))
    whole_padded = np.pad(pixels, ((0, 5), (0, 6), (0, 0)), mode="reflect").transpose(2, 0, 1)[None] / np.float32(255)
    whole = np.rint(blur(whole_padded)[0].transpose(1, 2, 0)[:203, :330] * 255)
    difference = np.abs(tiled.astype(int) - whole.astype(int))
    assert difference.max() <= 1, f"max {difference.max()} at {np.argwhere(difference > 1)[:5]}"


@pytest.mark.parametrize(
    "tile, overlap, expected",
    [
        (100, 32, "tile must be a positive multiple of 8, got 100"),
        (0, 32, "tile must be a positive multiple of 8, got 0"),
        (64, 12, "overlap must be a positive multiple of 8, got 12"),
        (40, 32, "tile must be at least twice the overlap of 32, got 40"),
    ],
)
def test_impossible_tiles_are_refused(tile, overlap, expected):
    with pytest.raises(DtkdError, match=expected):
        cut(500, tile, overlap, 8)
