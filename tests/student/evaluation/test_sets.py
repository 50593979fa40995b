"""Several evaluation sets at once."""

import json

import pytest
from cache_support import make_corpus
from typer.testing import CliRunner

import cli
from pipeline.system.errors import UsageError
from student.evaluation.evaluate import EvaluationSettings, evaluate, evaluate_sets

FIDELITY = EvaluationSettings(metrics=("psnr_y",), limit=2)


@pytest.fixture
def sets(tmp_path):
    for name in ("one", "two"):
        make_corpus(tmp_path / name / "HR")
    return [tmp_path / "one", tmp_path / "two"]


def test_several_sets_are_measured_as_each_alone(sets, tmp_path):
    events = []
    found = evaluate_sets(["bicubic"], sets, FIDELITY, out=tmp_path / "out", on_progress=events.append)
    for path in sets:
        alone = evaluate(["bicubic"], path, FIDELITY)
        assert found.sets[path.name].candidates[0].figures("psnr_y") == alone.candidates[0].figures("psnr_y")
        written = json.loads((tmp_path / "out" / path.name / "metrics.json").read_text())
        assert written == found.sets[path.name].to_json() == found.to_json()["sets"][path.name]
    assert [(event.done, event.total) for event in events] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    lines = found.lines()
    assert lines[0] == "one:" and "two:" in lines and found.failure is None


def test_all_sets_are_looked_at_before_the_first_is_measured(sets, tmp_path):
    (tmp_path / "empty").mkdir()
    command = ["evaluate", "bicubic", "--data", str(sets[0]), "--data", str(tmp_path / "empty")]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and "empty holds none of them" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="different names, got one, one"):
        evaluate_sets(["bicubic"], [sets[0], sets[0]], FIDELITY)


def test_what_failed_in_one_set_is_the_failure_of_all(sets):
    next((sets[1] / "HR").iterdir()).write_bytes(b"no picture")
    found = evaluate_sets(["bicubic"], sets, FIDELITY)
    assert found.failure == "two: 1 image could not be measured"
