import math

from pipeline.system.words import bytes_text, decibels, nearest, plural


def test_one_and_many():
    assert [plural(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_the_nearest_word_is_the_same_in_capitals_before_all_others():
    known = ("ssim_y", "psnr_y", "PSNR")
    assert nearest("PSNR_Y", known) == "psnr_y"
    assert nearest("psnr", known) == "PSNR"
    assert nearest("pnsr_y", known) == "psnr_y"
    assert nearest("zzz", known) is None
    assert nearest("zzz", known, cutoff=0) in known


def test_decibels_of_equal_pictures_are_words():
    assert decibels(28.534) == "28.53 dB"
    assert decibels(math.inf) == "infinite (equal pictures)"


def test_bytes_are_told_in_powers_of_ten_with_two_digits_at_least():
    counts = (1, 812, 3400, 3.4e6, 12_300_000_000, 2.04e12)
    assert [bytes_text(n) for n in counts] == ["1 byte", "812 bytes", "3.4 kB", "3.4 MB", "12 GB", "2.0 TB"]
