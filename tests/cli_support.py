"""Running `dtkd` in this process, or as a process of its own."""

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import cli

TINY = [
    "model.preset=tiny", "train.steps=4", "train.batch_size=1", "train.patch=8", "train.log_every=1",
    "train.device=cpu", "data.workers=0",
]  # fmt: skip
SET = [word for setting in TINY for word in ("--set", setting)]


def dtkd(*args, code=0):
    """Run a command in this process; returns (standard output, standard error)."""
    done = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def refused(*args, code=1):
    """The one line that a refused command says on standard error."""
    out, err = dtkd(*args, code=code)
    assert out == ""
    (line,) = err.splitlines()
    return line


def start(*args):
    """Begin a command as a process of its own, as a user's shell does."""
    words = [sys.executable, "-m", "cli", *(str(arg) for arg in args)]
    pipe, folder = subprocess.PIPE, Path(cli.__file__).parent
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=folder)


def wait_for(process, word):
    """Read a started command's progress until `word` is in it."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if word in line:
            return
    raise AssertionError(f"{word!r} never came: {seen}")
