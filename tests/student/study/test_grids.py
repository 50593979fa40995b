"""Grids by name and from files, and the one that is published."""

import dataclasses
from pathlib import Path

import pytest

from pipeline import config
from pipeline.system.errors import DtkdError
from student.study.grids import GRIDS, Arm, Grid, find_grid, read_grid
from student.training.settings import RunSettings

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("name", GRIDS)
def test_every_arm_of_every_grid_has_settings_that_can_be(name):
    for arm in GRIDS[name].arms:
        settings = config.load(RunSettings, None, list(arm.changes))
        assert (settings.loss.lambda_max == 0) == (arm.name == "gt-only")


def test_the_grid_of_samples_compares_one_output_with_four():
    taken = {arm.name: config.load(RunSettings, None, list(arm.changes)).data.samples for arm in GRIDS["samples"].arms}
    assert taken == {"samples-1": 1, "samples-4": 4}


def test_joined_grids_share_their_arms_once():
    joined = find_grid("levels, energy")
    assert [arm.name for arm in joined.arms][:2] == ["gt-only", "levels-0"]
    assert len(joined.arms) == len(GRIDS["levels"].arms) + len(GRIDS["energy"].arms) - 1
    with pytest.raises(DtkdError, match="no grid 'bands': expected levels, weights"):
        find_grid("levels,bands")


def test_grids_that_need_a_file(tmp_path):
    weights = tmp_path / "weights.toml"
    weights.write_text("[loss]\nweights = [0.06, 1.42, 1.52]\n")
    grid = find_grid(f"weights, calibrated:{weights}, teacher_steps:runs/one-step")
    arms = {arm.name: arm for arm in grid.arms}
    assert config.load(RunSettings, None, list(arms["weights-calibrated"].changes)).loss.weights == (0.06, 1.42, 1.52)
    assert [arm.name for arm in grid.arms if arm.cache] == ["other-steps"]
    assert str(arms["other-steps"].cache) == "runs/one-step" and grid.name == "weights,calibrated,teacher_steps"
    for wrong in ("calibrated", "teacher_steps:", "levels:3"):
        with pytest.raises(DtkdError, match=f"no grid '{wrong}': expected levels, .*teacher_steps:CACHE"):
            find_grid(wrong)


def test_a_grid_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'baseline = "plain"\n[arms.energy]\n"loss.energy" = 4\ncache = "runs/one-step"\n'
        '[arms.plain]\n"loss.weights" = [1, 2, 3]\n'
    )
    grid = find_grid(str(path))
    assert grid.name == "mine"
    assert [(arm.name, arm.changes) for arm in grid.arms] == [
        ("plain", ("loss.weights=1,2,3",)), ("energy", ("loss.energy=4",)),
    ]  # fmt: skip
    assert str(grid.arms[1].cache) == "runs/one-step"
    assert config.load(RunSettings, None, list(grid.arms[0].changes)).loss.weights == (1, 2, 3)


def test_the_screening_tries_the_published_arms_first():
    arms = find_grid(str(RECIPES / "screening.toml")).arms
    for arm in arms:
        config.load(RunSettings, RECIPES / "ablation-training.toml", list(arm.changes))
    published = {arm.changes for arm in find_grid(str(RECIPES / "ablation.toml")).arms}
    assert published <= {arm.changes for arm in arms[:7]}


def test_the_published_ablation_has_the_recipe_of_its_time_as_an_arm():
    grid, shared = find_grid(str(RECIPES / "ablation.toml")), RECIPES / "ablation-training.toml"
    runs = {arm.name: config.load(RunSettings, shared, list(arm.changes)) for arm in grid.arms}
    assert len(runs) == 6 and grid.arms[0].name == "gt-only"
    assert {(run.train, run.model) for run in runs.values()} == {(runs["gt-only"].train, runs["gt-only"].model)}
    recipe = config.load(RunSettings, RECIPES / "realism.toml", []).loss
    then = dataclasses.replace(recipe, energy=16.0, energy_floor=0.0)
    assert runs["energy"].loss == runs["energy-one-step"].loss == then
    assert [arm.name for arm in grid.arms if arm.cache] == ["energy-one-step"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "is not valid TOML"),
        ("arms = 3", "must hold a table for each arm"),
        ('[arms.one]\n"loss.energy" = 1', "needs two arms or more"),
        ('baseline = "c"\n[arms.a]\n[arms.b]', "baseline = 'c' is none of the arms a, b"),
    ],
)
def test_files_that_are_no_grid(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(DtkdError, match=message):
        read_grid(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DtkdError, match=r"cannot read the grid .*none\.toml: No such file"):
        find_grid(str(tmp_path / "none.toml"))
    with pytest.raises(DtkdError, match="each with a name of its own, got a, a"):
        Grid("twice", (Arm("a"), Arm("a")))
