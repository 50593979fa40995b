import numpy as np
import pytest
from page_support import texture

from student.report.pictures.encoding import LARGEST, STEPS, Step, data_uri, decode, encode, uri_length
from student.report.pictures.fitting import fit
from student.report.pictures.spool import DETAIL, Spool


def spooled(folder, **versions):
    folder.mkdir(exist_ok=True)
    spool = Spool(folder)
    for name, picture in versions.items():
        spool.add("set", name, "image", picture)
    spool.finish()
    return spool.images["set", "image"]


class TestSpool:
    def test_pictures_come_back_bit_for_bit(self, tmp_path):
        pictures = {"bicubic": texture(1, 200, 180), "gt": texture(2, 200, 180)}
        image = spooled(tmp_path, **pictures)
        assert image.size == (180, 200) and not image.resized
        for name, picture in pictures.items():
            np.testing.assert_array_equal(decode(image.pictures[name].read_bytes()), picture)
            np.testing.assert_array_equal(decode(image.details[name].read_bytes()), image.detail.of(picture))
        assert image.detail[2:] == (DETAIL, DETAIL)
        assert decode(image.thumbnail.read_bytes()).shape == (96, 86, 3)

    def test_of_a_large_picture_a_part_around_its_busiest_square_is_kept(self, tmp_path):
        picture = np.full((1200, 1500, 3), 90, np.uint8)
        picture[1000:1180, 1300:1480] = texture(1, 180, 180)
        image = spooled(tmp_path, bicubic=picture)
        assert image.kept[2:] == (LARGEST, LARGEST)
        assert image.kept.x <= 1300 and image.kept.x + LARGEST >= 1480
        np.testing.assert_array_equal(decode(image.pictures["bicubic"].read_bytes()), image.kept.of(picture))

    def test_no_more_than_one_image_is_in_memory(self, tmp_path):
        spool = Spool(tmp_path)
        for index in range(5):
            for name in ("bicubic", "gt"):
                spool.add("set", name, f"i{index}", texture(index))
                assert len(spool._versions) <= 2
                assert len(spool.images) == index
        spool.finish()
        spool.finish()
        assert [key[1] for key in spool.images] == ["i0", "i1", "i2", "i3", "i4"]

    def test_equal_names_in_two_sets_are_two_images(self, tmp_path):
        spool = Spool(tmp_path)
        for index, name in enumerate(("one", "two")):
            spool.add(name, "bicubic", "same", texture(index))
        spool.finish()
        first, second = (decode(image.pictures["bicubic"].read_bytes()) for image in spool.images.values())
        assert not np.array_equal(first, second)

    def test_a_picture_of_another_size_is_brought_to_the_ground_truths(self, tmp_path):
        image = spooled(tmp_path, other=texture(1, 60, 70), gt=texture(2, 72, 72))
        assert image.resized == {"other": (70, 60)}
        assert decode(image.pictures["other"].read_bytes()).shape == (72, 72, 3)

    def test_names_of_the_user_are_no_paths(self, tmp_path):
        image = spooled(tmp_path / "folder", **{"../../outside": texture(1)})
        assert image.pictures["../../outside"].is_relative_to(tmp_path / "folder")

    def test_a_strip_of_a_pixel_and_a_long_one(self, tmp_path):
        assert spooled(tmp_path / "a", bicubic=np.zeros((1, 1, 3), np.uint8)).detail == (0, 0, 1, 1)
        assert spooled(tmp_path / "b", bicubic=texture(0, 8, 3000)).kept.width == LARGEST


class TestFitting:
    @pytest.fixture
    def image(self, tmp_path):
        return spooled(tmp_path, bicubic=texture(1, 300, 400), gt=texture(2, 300, 400))

    def test_lossless_where_there_is_room(self, image):
        stored = fit([image], 10_000_000)
        assert stored is not None and stored.step.lossless == "fast" and stored.psnr == float("inf")
        assert stored.images[0].window == (0, 0, 400, 300)
        assert stored.images[0].pictures["gt"] == image.pictures["gt"].read_bytes()

    @pytest.mark.parametrize("budget", [800_000, 300_000, 100_000, 30_000, 12_000])
    def test_the_budget_holds_for_the_addresses(self, image, budget):
        stored = fit([image], budget)
        assert stored is not None
        assert sum(len(data_uri(data)) for data in stored.images[0].pictures.values()) <= budget

    def test_less_room_is_worse_and_then_smaller(self, image):
        steps = [stored.step for budget in (800_000, 300_000, 100_000, 30_000) if (stored := fit([image], budget))]
        assert steps == sorted(steps, key=STEPS.index) and len(set(steps)) == 4
        assert steps[-1].side < 400

    def test_what_is_lost_is_told(self, image):
        stored = fit([image], 10_000_000, [Step(None, 95, LARGEST)])
        assert stored is not None
        for name, data in stored.images[0].pictures.items():
            error = decode(data).astype(float) - decode(image.pictures[name].read_bytes())
            assert 10 * np.log10(255**2 / np.mean(error**2)) >= stored.psnr - 1e-3
        assert 35 < stored.psnr < 60

    def test_nothing_where_nothing_fits(self, image):
        assert fit([image], 500) is None
        stored = fit([], 0)
        assert stored is not None and stored.images == []

    def test_the_dense_step_is_lossless_and_smaller(self):
        picture = texture(4, 200, 200)
        fast, dense = encode(picture, STEPS[0]), encode(picture, STEPS[1])
        np.testing.assert_array_equal(decode(dense), picture)
        assert len(dense) < len(fast)
        assert uri_length(fast) == len(data_uri(fast))
