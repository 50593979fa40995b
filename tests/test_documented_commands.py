"""Every command of README, docs/ and help is one: it parses, settings and files included, up to the work itself.

The work is replaced by a call that only says that it was reached; other tests do it, on small data. What this test does
not type as it stands is in `NOT_TYPED`, with the reason.
"""

import inspect
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, get_args, get_origin

import pytest
from documented import ROOT, Command, calls_of, commands_of, documented, functions
from typer.main import get_command
from typer.testing import CliRunner

import cli
from pipeline.system import commands

NOT_TYPED = {
    "pip install": "fetches packages; that the extra exists is checked",
    "python docs/figures/": "draws the document's picture, minutes, some from photos that are not in the repository; "
    "that the script exists is checked",
    "tensorboard --logdir": "serves until it is stopped, and is a program of its own",
    "dtkd --install-completion": "changes the files of the user's shell",
    "python examples/ray_cache.py": "needs Ray; that the script exists is checked, and its own test runs it",
    "ray start": "a program of its own, which stays",
    "sbatch": "needs a SLURM cluster; that the script exists is checked, and its own test runs it",
    "accelerate launch": "named beside pipeline.system.launch, which is its own launcher and is typed",
}
"""Beginnings of commands that are not typed here, and why."""
PLACEHOLDERS = {"S": "0.4"}
"""What a document calls a number that the reader chooses."""
STAND_INS = {
    "teacher_cache.teachers.check_name": lambda *_: None,  # the documents' folders are not there
    "teacher_cache.teachers.load_each": lambda *given: {},
    "pipeline.system.device.choose": lambda name="auto": name,  # nor may their GPUs be
}
"""What must not stop a command before its settings are read."""
PARSERS = ("find_grid", "trials", "tile_side")
"""Functions of a stage that read a command's words, so that they are called."""

ALL = documented()
IDS = [f"{command.place} {command.program}" for command in ALL]


class ReachedError(Exception):
    """The command called its stage."""


def excused(command: Command) -> str | None:
    return next((reason for start, reason in NOT_TYPED.items() if command.text.startswith(start)), None)


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A folder with the repository's files that documents name, in which every stage only says that it was reached."""

    def reached(*args, **kwargs):
        raise ReachedError

    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    places = {place for function in functions().values() for place in calls_of(function)}
    for place in places - STAND_INS.keys():
        if place.rpartition(".")[2] not in PARSERS:
            monkeypatch.setattr(place, reached)
    for place, stand_in in STAND_INS.items():
        monkeypatch.setattr(place, stand_in)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_dtkd(words: list[str]) -> None:
    """Run `dtkd WORDS` up to the call of its stage, or to the end of a text that it prints."""
    words = [PLACEHOLDERS.get(word, os.path.expandvars(word)) for word in words]
    for before, word in pairwise(words):
        if before == "--config" and not os.path.exists(word):
            os.makedirs(os.path.dirname(word) or ".", exist_ok=True)
            open(word, "w").close()  # what an earlier command of the document writes
    done = CliRunner().invoke(cli.app, words)
    prints = any(word in ("--help", "--settings", "--version") for word in words)
    assert isinstance(done.exception, ReachedError) or (prints and done.exit_code == 0), (words, done.output)


def check_mention(words: list[str]) -> None:
    """The command exists, and so do the options, and what a pattern lists as their choices."""
    name, text = words[0], " ".join(words[1:])
    assert name in functions(), f"no command {name}: {', '.join(functions())}"
    options = {
        one: choices_of(functions()[name], option.name)
        for option in get_command(cli.app).commands[name].params
        for one in (*option.opts, *option.secondary_opts)
    }
    for option, choices in re.findall(r"(--[a-z][a-z0-9-]*)(?:[ =]([a-z0-9]+(?:\|[a-z0-9]+)+))?", text):
        assert option in options, f"dtkd {name} has no {option}"
        known = options[option]
        assert not (choices and known) or set(choices.split("|")) <= known, f"{option} takes {known}, not {choices}"


def choices_of(command: Callable[..., object], parameter: str) -> set[str]:
    """Words that a parameter may be; empty where the type does not say."""
    found = inspect.signature(command).parameters.get(parameter)

    def words(annotation: object) -> Iterator[str]:
        for part in get_args(annotation):
            if get_origin(annotation) is Literal:
                yield str(part)
            else:
                yield from words(part)

    return set(words(found.annotation)) if found else set()


def made_by(words: list[str]) -> Iterator[list[str]]:
    """Words of the dtkd commands that a make command runs."""
    dry = ["make", "--dry-run", "--old-file=.venv/.installed", *words]
    done = subprocess.run(dry, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    declared = set(re.findall(r"^([A-Z_]+) *[?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    given = {word.partition("=")[0] for word in words if "=" in word}
    assert given <= declared, f"the Makefile knows no {given - declared}"
    block = "".join(f"    {line}\n" for line in done.stdout.splitlines())
    yield from (found.words[1:] for found in commands_of("Makefile", block) if found.program == "dtkd")


def launched(words: list[str]) -> list[str]:
    """Words of the dtkd command that a launcher starts in every process."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser as parser

        words = words[1:]
    else:
        from accelerate.commands.launch import launch_command_parser as parser

        assert words[1:3] == ["-m", "pipeline.system.launch"], words
        words = words[3:]
    given = parser().parse_args(words)
    assert given.module and given.training_script == "cli", words
    return given.training_script_args


def check_excused(command: Command) -> None:
    words = command.words
    if command.program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.findall(r"dtkd\[([a-z,]+)\]", command.text)
        assert wanted and all(extra in extras for extra in wanted[0].split(",")), command
    if command.program in ("python", "sbatch"):
        assert (ROOT / next(word for word in words[1:] if not word.startswith("-"))).is_file(), command


@pytest.mark.parametrize("command", ALL, ids=IDS)
def test_a_documented_command_is_one(command, sandbox):
    words = command.words
    if excused(command):
        check_excused(command)
    elif command.program == "dtkd":
        type_dtkd(words[1:]) if command.complete else check_mention(words[1:])
    elif command.program == "make":
        for made in made_by(words[1:]):
            type_dtkd(made)
    elif "-m" in words and "cli" in words:
        type_dtkd(launched(words))
    else:
        assert not command.in_block and words == ["python", "-m", "pipeline.system.launch"], (
            f"{command.place}: no test knows what to do with: {command.text}"
        )


@pytest.mark.parametrize("command", sorted(functions()))
def test_the_examples_of_the_help_are_commands(command, sandbox):
    _, examples = commands.help_of(functions()[command])
    lines = [line.split() for line in examples.splitlines()[1:]]
    assert lines and all(words[0] == "dtkd" for words in lines)
    for words in lines:
        type_dtkd([word.strip("'") for word in words[1:]])


def test_the_documents_are_read():
    found = {(command.program, command.in_block) for command in ALL}
    assert {("dtkd", True), ("dtkd", False), ("make", True), ("torchrun", True), ("torchrun", False)} <= found
    assert {command.place.partition(":")[0] for command in ALL} >= {"README.md", "teachers.md", "training.md"}
    assert len([command for command in ALL if command.program == "dtkd" and command.complete]) > 50


def test_nothing_is_excused_for_nothing():
    for start in NOT_TYPED:
        assert any(command.text.startswith(start) for command in ALL), f"no document shows `{start}` any more"


@pytest.mark.parametrize(
    "text",
    [
        "dtkd train-student CACHE RUN --sett train.steps=1",
        "dtkd train-student CACHE RUN --set train.stepz=1",
        "dtkd train-student CACHE",
        "dtkd train-student CACHE RUN --config recipes/realism.toml --set loss.levels=9",
        "dtkd ablate CACHE OUT --data DIR --grid weihgts",
        "dtkd evaluate A --data B --protocol mine",
        "dtkd distil CACHE",
        "dtkd teacher-cache CORPUS CACHE [--degradation real|blurred]",
        "dtkd verify CACHE [--recomputed N]",
        "make train-students",
        "make train-student STEPS=9",
        'make train-student ARGS="--set train.stepz=1"',
        "torchrun --nprocs 4 -m cli train-student CACHE RUN",
        "python -m pipeline.system.launch --num_processes 4 -m cli train-student CACHE",
        "pip install 'dtkd[everything]'",
        "bash examples/no_one_knows.sh",
    ],
)
def test_a_command_that_is_none_is_found(text, sandbox):
    (command,) = commands_of("a.md", f"    {text}   # a comment\n")
    with pytest.raises((AssertionError, SystemExit)):
        test_a_documented_command_is_one(command, sandbox)


def test_blocks_spans_and_continuations_are_read():
    text = """Text with `dtkd verify
--recompute 8` and `python:FILE:FACTORY`.

    dtkd mix A B OUT \\
        --share 0.7   # a comment
    cli.py    the dtkd commands

```
make test
```
```toml
dtkd = "no command"
```
"""
    found = [(command.place, command.words, command.in_block) for command in commands_of("a", text)]
    assert found == [
        ("a:4", ["dtkd", "mix", "A", "B", "OUT", "--share", "0.7"], True),
        ("a:9", ["make", "test"], True),
        ("a:1", ["dtkd", "verify", "--recompute", "8"], False),
    ]
