import json

import pytest
import torch
from cache_support import NoisyBicubic, make_corpus, settings
from cli_support import dtkd

from teacher_cache.check import check_teacher


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(make_corpus(tmp_path_factory.mktemp("corpus")))


def wrong(corpus, teacher):
    result = check_teacher(corpus, teacher, settings())
    assert (result.failure is None) == all(item.ok for item in result.findings)
    return [item.name for item in result.findings if not item.ok]


def test_a_sound_teacher_passes(corpus):
    assert wrong(corpus, NoisyBicubic()) == []


class Small(NoisyBicubic):
    def restore(self, lr, seeds):
        return super().restore(lr, seeds)[..., : lr.shape[2] // 8 * 32, :]


class Signed(NoisyBicubic):
    def restore(self, lr, seeds):
        return super().restore(lr, seeds) * 2 - 1


class Warm(NoisyBicubic):
    def restore(self, lr, seeds):
        return (super().restore(lr, seeds) * 0.9 + 0.05 * torch.tensor([1.0, 0, 0]).view(3, 1, 1)).clamp(0, 1)


class Forgetful(NoisyBicubic):
    """Takes its noise from where it left off."""

    def restore(self, lr, seeds):
        return super().restore(lr, [seed + 1000 * self.calls for seed in seeds])


class Positional(NoisyBicubic):
    """Seeds the batch, not the image."""

    def restore(self, lr, seeds):
        return super().restore(lr, [min(seeds) + place for place in range(len(seeds))])


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        (Small, "size, sides that are odd"),
        (Signed, "range"),
        (Warm, "colour drift"),
        (Forgetful, "the same again"),
        (Positional, "in another order"),
    ],
)
def test_what_makes_a_teacher_unfit_is_named(corpus, teacher, expected):
    assert expected in wrong(corpus, teacher())


def test_the_command_tries_the_settings_of_stage_one(corpus):
    out, _ = dtkd(
        "check-teacher", corpus, "--steps", 1, "--tile", 64, "--set", "hold_out=1", "--set", "teacher.colour=adain",
        "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert [item["name"] for item in found["findings"] if not item["ok"]] == []
    assert len(found["findings"]) == 8
