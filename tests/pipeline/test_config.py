"""Settings: precedence, types, and errors that name the key, what was expected and what came."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipeline import config
from pipeline.degradation import Degradation, RealSettings, RoundSettings
from pipeline.system.errors import DtkdError, UsageError
from teacher_cache.building.plan import BuildSettings


@dataclass(frozen=True)
class Optimiser:
    steps: int = 100
    """Updates of the
    weights."""
    lr: float = 1e-3
    nesterov: bool = False
    kind: Literal["adam", "sgd"] = "adam"
    milestones: tuple[float, ...] = (0.5, 0.9)
    limit: int | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise DtkdError(f"opt.steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Bands:
    weights: tuple[float, float, float] | str = "mid"


@dataclass(frozen=True)
class Run:
    opt: Optimiser = field(default_factory=Optimiser)
    bands: Bands = field(default_factory=Bands)
    name: str = "a"


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_overrides_beat_the_file_which_beats_the_defaults(toml):
    got = config.load(Run, toml("[opt]\nsteps = 5\nlr = 1\n"), ["opt.steps=7", "name=a=b"])
    assert got == Run(opt=Optimiser(steps=7, lr=1.0), name="a=b")
    assert isinstance(got.opt.lr, float)
    assert config.load(Run) == Run()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("opt.nesterov=true", Run(opt=Optimiser(nesterov=True))),
        ("opt.kind=sgd", Run(opt=Optimiser(kind="sgd"))),
        ("opt.milestones=.25, .5,1", Run(opt=Optimiser(milestones=(0.25, 0.5, 1.0)))),
        ("opt.milestones=", Run(opt=Optimiser(milestones=()))),
        ("opt.limit=3", Run(opt=Optimiser(limit=3))),
        ("opt.limit=none", Run()),
        ("opt.lr=2e-4", Run(opt=Optimiser(lr=2e-4))),
        ("bands.weights=[.25,1,.5]", Run(bands=Bands((0.25, 1.0, 0.5)))),
        ("bands.weights=high", Run(bands=Bands("high"))),
    ],
)
def test_typed_text_becomes_the_declared_type(override, expected):
    assert config.load(Run, None, [override]) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("opt.step=7", ["opt.step", "did you mean opt.steps"]),
        ("steps=7", ["did you mean opt.steps"]),
        ("zzz.qqq=7", ["known keys", "opt.lr"]),
        ("opt=7", ["unknown key opt"]),
        ("opt.steps", ["section.key=value", "opt.steps"]),
        ("opt.steps=1.5", ["opt.steps", "whole number", "'1.5'"]),
        ("opt.steps=", ["opt.steps", "whole number", "''"]),
        ("opt.lr=nan", ["opt.lr", "finite number"]),
        ("opt.lr=fast", ["opt.lr", "finite number", "'fast'"]),
        ("opt.kind=lion", ["opt.kind", "one of adam, sgd", "'lion'"]),
        ("opt.nesterov=1", ["opt.nesterov", "true or false", "'1'"]),
        ("opt.steps=0", ["opt.steps must be at least 1, got 0"]),
    ],
)
def test_bad_override_is_refused_in_one_line(override, words):
    with pytest.raises(DtkdError) as caught:
        config.load(Run, None, [override])
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[opt]\nstesp = 1\n", ["run.toml", "opt.stesp", "did you mean opt.steps"]),
        ("[opt]\nsteps = true\n", ["opt.steps", "whole number", "True"]),
        ("[opt]\nsteps = '5'\n", ["opt.steps", "whole number"]),
        ("[opt.more]\nsteps = 5\n", ["unknown key opt.more.steps"]),
        ("[optt]\n", ["unknown key optt"]),
        ("opt = 3\n", ["opt must be a table"]),
        ("[bands]\nweights = [1, 2]\n", ["bands.weights", "3 values", "[1, 2]"]),
        ("[opt\n", ["run.toml", "not valid TOML"]),
    ],
)
def test_bad_file_is_refused_in_one_line(toml, text, words):
    with pytest.raises(DtkdError) as caught:
        config.load(Run, toml(text), ["opt.lr=1"])
    assert all(word in str(caught.value) for word in words), caught.value


def test_values_are_taken_as_they_are_and_beat_everything(toml):
    file = toml("[opt]\nsteps = 5\n[bands]\nweights = 'low'\n")
    values = {"opt.steps": 9, "bands.weights": (1, 2, 3), "name": "5", "opt.lr": None}
    got = config.load(Run, file, ["opt.steps=7", "opt.lr=2"], values)
    assert got == Run(Optimiser(steps=9, lr=2.0), Bands((1.0, 2.0, 3.0)), "5")
    for wrong in ({"opt.steps": "9"}, {"opt.step": 9}, {"opt.nesterov": 1}):
        with pytest.raises(UsageError, match="opt"):
            config.load(Run, values=wrong)


def test_what_a_user_gives_is_wrong_usage_and_a_damaged_file_of_ours_is_not():
    with pytest.raises(UsageError):
        config.load(Run, None, ["opt.steps=0"])
    with pytest.raises(DtkdError) as caught:
        config.from_dict(Run, {"opt": {"steps": 0}})
    assert not isinstance(caught.value, UsageError)


def test_a_key_in_capitals_is_told_from_a_similar_one():
    with pytest.raises(DtkdError, match=r"did you mean opt\.lr\?"):
        config.load(Run, None, ["OPT.LR=1"])
    with pytest.raises(DtkdError, match=r"did you mean opt\.limit\?"):
        config.load(Run, None, ["LIMIT=1"])


def test_the_listing_tells_meaning_type_and_default_and_is_read_back(toml):
    text = config.listing(Run)
    assert "[opt]\n\n# Updates of the weights.\nsteps = 100  # a whole number\n" in text
    assert "# limit =  # a whole number or none" in text
    assert 'kind = "adam"  # one of adam, sgd' in text
    assert config.load(Run, toml(text)) == Run()
    assert config.load(BuildSettings, toml(config.listing(BuildSettings))) == BuildSettings()


def test_an_inherited_setting_keeps_its_meaning():
    second = config.listing(BuildSettings).partition("[degradation.real.second]")[2]
    assert "# Standard deviation of a kernel, pixels;" in second
    assert "sigma = [0.2, 1.5]" in second


def test_later_files_beat_earlier_ones_key_by_key(tmp_path):
    first, second, empty = (tmp_path / f"{name}.toml" for name in ("first", "second", "empty"))
    first.write_text("name = 'first'\n[opt]\nsteps = 5\nlr = 1\n[bands]\nweights = [1, 2, 3]\n")
    second.write_text("[opt]\nsteps = 6\n[bands]\nweights = 'low'\n")
    empty.write_text("[opt]\n[bands]\n")
    expected = Run(Optimiser(steps=6, lr=1.0), Bands("low"), "first")
    assert config.load(Run, [first, second]) == config.load(Run, [first, second, empty]) == expected
    assert config.load(Run, [second, first]) == Run(Optimiser(steps=5, lr=1.0), Bands((1.0, 2.0, 3.0)), "first")
    assert config.load(Run, [first, second], ["opt.steps=7"]).opt.steps == 7
    assert config.load(Run, []) == Run()


@pytest.mark.parametrize("wrong", ["opt = 3", "[opt]\nsteps = 'x'", "[opt]\nstesp = 3", "[opt", "[opt]\nsteps = {}"])
def test_of_several_files_the_wrong_one_is_named(tmp_path, wrong):
    """Also where a later file has the same key, right."""
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(wrong)
    second.write_text("[opt]\nsteps = 6\n")
    for order in ([first, second], [second, first]):
        with pytest.raises(UsageError, match=r"first\.toml"):
            config.load(Run, order)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DtkdError, match=r"absent\.toml"):
        config.load(Run, tmp_path / "absent.toml")


def test_dictionaries_and_toml_round_trip(toml):
    settings = Run(opt=Optimiser(limit=4, lr=1e-7, nesterov=True), bands=Bands((0.1, 0.2, 0.3)), name='ö "quoted" \\')
    assert config.from_dict(Run, config.to_dict(settings)) == settings
    assert config.load(Run, toml(config.to_toml(settings))) == settings
    nested = BuildSettings(degradation=Degradation("real", 2, RealSettings(RoundSettings(sinc_prob=0.25))))
    assert config.load(BuildSettings, toml(config.to_toml(nested))) == nested
