"""What every command does alike: its help, what it prints, and how it ends."""

import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.system import commands
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.progress import ProgressEvent
from pipeline.system.results import plain


@dataclass(frozen=True)
class Counted:
    count: int
    failure: str | None = None

    def lines(self) -> list[str]:
        return [f"counted to {self.count}", "done"]

    def to_json(self) -> dict[str, Any]:
        return plain(self)


def count_to(on_progress, count: int, fail: bool = False) -> Counted:
    """Count. Slowly.

    As far as you like.

    dtkd count-to 3
    dtkd count-to 4 --fail
    """
    on_progress(ProgressEvent(count, count, "numbers"))
    return Counted(count, "it was not worth it" if fail else None)


run = commands.printing(count_to, bool)


def test_name_and_help_come_from_the_function():
    assert commands.name_of(count_to) == "count-to"
    description, examples = commands.help_of(count_to)
    assert description == "Count. Slowly.\n\nAs far as you like."
    assert examples == "Examples:\n  dtkd count-to 3\n  dtkd count-to 4 --fail"
    assert list(inspect.signature(run).parameters) == ["count", "fail", "as_json"]


def test_a_result_is_printed_as_text_or_as_one_object(capsys):
    run(count=3, as_json=False)
    assert capsys.readouterr() == ("counted to 3\ndone\n", "count-to: 3/3 numbers\n")
    run(count=3, as_json=True)
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"count": 3, "failure": None}, "")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failure_beside_a_result_is_a_line_and_an_exit_code(capsys, as_json):
    with pytest.raises(SystemExit) as ended:
        run(count=3, fail=True, as_json=as_json)
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert err.splitlines()[-1] == "dtkd: it was not worth it"
    assert json.loads(out)["count"] == 3 if as_json else out == "counted to 3\ndone\n"


def test_of_several_processes_only_the_first_one_speaks(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("pipeline.system.device.first_process", lambda: False)
    run(count=3, as_json=False)
    commands.note("a warning")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (DtkdError("two\n  lines"), "two lines", 1),
        (UsageError("no such thing"), "no such thing", 2),
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x: Permission denied", 1),
        (MemoryError(), "memory ran out", 1),
    ],
)
def test_what_may_happen_to_anyone_is_one_line(capsys, error, line, code):
    with pytest.raises(SystemExit) as ended, commands.failing_in_one_line(as_json=True):
        raise error
    out, err = capsys.readouterr()
    assert ended.value.code == code
    assert err.startswith(f"dtkd: {line}") and len(err.splitlines()) == 1
    assert err == f"dtkd: {json.loads(out)['error']}\n"


def test_a_bug_stays_what_it_is(capsys):
    with pytest.raises(OSError, match="ours"), commands.failing_in_one_line(as_json=False):
        raise OSError("ours")  # without an error number it is not the operating system's
    assert capsys.readouterr() == ("", "")


def test_plain_values_are_json_in_every_case():
    value = plain({"path": Path("a/b"), 1: (Counted(2), math.inf, math.nan, 0.5), "none": None})
    expected = {"path": "a/b", "1": [{"count": 2, "failure": None}, None, None, 0.5], "none": None}
    assert value == expected == json.loads(json.dumps(value, allow_nan=False))
