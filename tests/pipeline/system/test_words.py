import math

from pipeline.system.words import decibels, nearest, plural


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
