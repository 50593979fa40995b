import numpy as np
import pytest

from student.report.pictures.windows import Window, around, busiest_square


def test_the_busiest_square_lies_inside_and_on_the_texture():
    image = np.full((200, 300, 3), 128, np.uint8)
    image[110:190, 180:260] = np.random.default_rng(0).integers(0, 256, (80, 80, 3))
    square = busiest_square(image, 72)
    assert 0 <= square.x <= 300 - 72 and 0 <= square.y <= 200 - 72
    assert square.of(image).shape == (72, 72, 3)
    assert square.of(image).std() > 60
    assert busiest_square(image[:40, :50], 72)[2:] == (40, 40)


@pytest.mark.parametrize(
    ("centre", "expected"),
    [
        (Window(10, 10, 20, 20), Window(0, 0, 100, 100)),
        (Window(450, 280, 20, 20), Window(400, 200, 100, 100)),
        (Window(240, 140, 20, 20), Window(200, 100, 100, 100)),
    ],
)
def test_a_part_around_a_square_stays_inside(centre, expected):
    assert around(centre, Window(0, 0, 500, 300), 100) == expected


def test_a_part_is_no_larger_than_what_it_is_part_of():
    assert around(Window(5, 5, 4, 4), Window(0, 0, 500, 30), 100) == Window(0, 0, 100, 30)


def test_a_place_in_a_part_of_a_part():
    image = np.arange(40 * 50 * 3).reshape(40, 50, 3)
    kept, shown = Window(10, 5, 30, 20), Window(15, 9, 8, 6)
    np.testing.assert_array_equal(shown.inside(kept).of(kept.of(image)), shown.of(image))
