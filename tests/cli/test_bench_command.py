"""`dtkd bench`: the table and the JSON that it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from pipeline.system.errors import DtkdError
from student.benchmarks import contenders
from student.benchmarks import inference as bench
from student.benchmarks.contenders import AbsentError
from student.dataset import open_cache
from teacher_cache.benchmarks.teacher import Part, bench_lines, start_and_step

ROOT = Path(cli.__file__).parent


@pytest.fixture(autouse=True)
def one_small_case(monkeypatch):
    monkeypatch.setattr(bench, "CASES", (("inference", (1, 8, 9)),))
    monkeypatch.setattr(bench, "_peak_memory", lambda setup, task, size, contender: None)  # takes a process each

    def elsewhere(*_):
        raise AbsentError("measured in a process of its own")

    # A process in which OpenVINO has compiled a network dies when it gets SIGTERM, and later tests send it.
    monkeypatch.setattr(contenders, "_openvino_turn", elsewhere)


def run(*args):
    return CliRunner().invoke(cli.app, ["bench", *args, "--threads", "1"])


def test_a_table_of_programs():
    code = """
import cli, sys
from student.benchmarks import inference as bench
bench.CASES = (("inference", (1, 8, 9)),)
bench._peak_memory = lambda setup, task, size, contender: None
cli.app(["bench", "student", "--preset", "tiny", "--rounds", "1", "--threads", "1"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    head, *rows = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert head.split() == ["task", "BxHxW", "program", "seconds", "speed", "spread", "MB", "max", "difference"]
    programs = ["dtkd fp32", "dtkd bf16", "spandrel fp32", "ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO bf16"]
    assert len(rows) == len(programs)
    for row, program in zip(rows, programs, strict=True):
        assert row.startswith("inference") and f"1x8x9       {program} " in row


def test_json_and_a_program_that_is_absent(monkeypatch):
    def absent(model):
        raise AbsentError("not here")

    monkeypatch.setattr(contenders, "spandrel_twin", absent)
    found = json.loads(run("student", "--preset", "tiny", "--rounds", "1", "--json").stdout)
    rows = {(row["program"], row["precision"]): row for row in found["rows"]}
    assert found["preset"] == "tiny" and rows["dtkd", "bf16"]["seconds"] > 0
    spandrel = rows["spandrel", "fp32"]
    assert (spandrel["absent"], spandrel["seconds"], spandrel["speed"]) == ("not here", None, None)
    (line,) = (
        line for line in run("student", "--preset", "tiny", "--rounds", "1").stdout.splitlines() if "spandrel" in line
    )
    assert line.split()[4:] == ["-"] * 5 + ["not", "here"]


def test_wrong_usage():
    assert run("shards").exit_code == 2
    assert run("student", "--rounds", "0").exit_code == 2
    done = run("student", "--preset", "huge")
    assert done.exit_code == 2 and "no preset" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_teacher_that_fails_is_told_of():
    done = run("teacher", "--rounds", "1", "--steps", "1000")
    assert done.exit_code == 1 and "the teacher fails with 1001 steps" in done.stderr


def test_where_the_teachers_time_goes():
    done = run("teacher", "--rounds", "1", "--steps", "2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["teacher"], found["steps"]) == ("embedded", 2)
    names, seconds, shares = zip(*((row["name"], row["seconds"], row["share"]) for row in found["rows"]), strict=True)
    assert [name.split()[0] for name in names] == ["load,", "teacher,", "teacher,", "encode"]
    assert min(seconds) >= 0 and sum(shares) == pytest.approx(1)
    assert seconds[2] == pytest.approx(shares[2] * sum(seconds))


@pytest.mark.parametrize(
    ("one", "many", "expected"),
    [(3.0, 7.0, (1.0, 2.0)), (3.0, 2.0, (3.0, 0.0)), (1.0, 5.0, (0.0, 1.0))],
    ids=["calm", "the long call was the faster one", "the short call was faster than one step"],
)
def test_no_part_of_the_teacher_takes_less_than_nothing(one, many, expected):
    assert start_and_step(one, many, steps=2) == expected


def test_a_training_is_measured_on_a_cache_of_the_photos(monkeypatch):
    """A real one, which the command makes and removes."""
    seen = []

    def look(preset, device, threads, rounds, *, cache, steps, compiled):
        dataset = open_cache(cache)
        same = [(item.gt == item.teacher).all() for item in map(dataset.__getitem__, range(3))]
        seen.append((preset, steps, compiled, len(dataset) > 10, all(same), cache))
        raise DtkdError("seen")

    monkeypatch.setattr("student.benchmarks.training.bench_train", look)
    done = run("train", "--preset", "tiny", "--train-steps", "50", "--compile")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "dtkd: seen")
    assert [found[:5] for found in seen] == [("tiny", 50, True, True, True)]
    assert not seen[0][5].exists()


def test_a_table_of_parts():
    lines = bench_lines([Part("cut", 0.25, 0.25), Part("teacher, 2 steps", 0.75, 0.75)])
    assert [line.split()[-2:] for line in lines] == [
        ["seconds", "share"], ["0.2500", "25%"], ["0.7500", "75%"], ["sum", "1.0000"],
    ]  # fmt: skip


def test_imported_pictures_are_not_measured(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = run("teacher", "--teacher", f"import:{tmp_path}")
    assert done.exit_code == 1 and "nothing to measure" in done.stderr
