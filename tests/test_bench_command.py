"""`dtkd bench`: the table and the JSON that it prints."""

import json

import pytest
from typer.testing import CliRunner

import cli
from student import bench


@pytest.fixture(autouse=True)
def one_small_case(monkeypatch):
    monkeypatch.setattr(bench, "CASES", (("inference", (1, 8, 9)),))
    monkeypatch.setattr(bench, "_peak_memory", lambda setup, task, size, index: (index + 1) * 10**6)


def run(*args):
    return CliRunner().invoke(cli.app, ["bench", *args])


def test_a_table_of_student_and_peer():
    done = run("student", "--preset", "tiny", "--rounds", "1")
    head, row = done.stdout.splitlines()
    assert done.exit_code == 0
    assert head.split() == [
        "task",
        "BxHxW",
        "seconds",
        "peer",
        "ratio",
        "spread",
        "MB",
        "peer",
        "MB",
        "max",
        "difference",
    ]
    assert row.split()[:2] == ["inference", "1x8x9"] and len(row.split()) == 11  # the spread is "a to b"


def test_json_and_no_peer(monkeypatch):
    monkeypatch.setattr(bench, "_spandrel_twin", lambda model: None)
    found = json.loads(run("student", "--preset", "tiny", "--rounds", "1", "--json").stdout)
    (row,) = found["rows"]
    assert found["preset"] == "tiny" and row["seconds"] > 0 and row["peer_seconds"] is None
    assert run("student", "--preset", "tiny", "--rounds", "1").stdout.splitlines()[1].split()[3:] == [
        "-",
        "-",
        "-",
        "1",
        "-",
        "-",
    ]


def test_wrong_usage():
    assert run("teacher").exit_code == 2
    assert run("student", "--rounds", "0").exit_code == 2
    done = run("student", "--preset", "huge")
    assert done.exit_code == 1 and "no preset" in done.stderr and len(done.stderr.splitlines()) == 1
