"""The commands that the documents show, and what a command of ours calls."""

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import cli

ROOT = Path(cli.__file__).parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = (
    "dtkd", ".venv/bin/dtkd", "make", "torchrun", "python", "accelerate", "pip", "tensorboard",
    "bash", "sh", "sbatch", "srun", "ray", "docker", "apt", "git", "ssh",
)  # fmt: skip
"""First words by which a line of a block is told from a diagram or a list of files."""
NO_SHELL = ("python", "toml", "json", "yaml")
"""Languages of fenced blocks that hold no commands."""


class Command(NamedTuple):
    """A command as a document shows it."""

    place: str
    """FILE:LINE"""
    text: str
    in_block: bool
    """Else within a sentence, where the name of a command with an option is enough."""

    @property
    def words(self) -> list[str]:
        """Without the comment."""
        return shlex.split(self.text, comments=True)

    @property
    def program(self) -> str:
        """Without its folder."""
        return Path(self.words[0]).name

    @property
    def complete(self) -> bool:
        """Whether someone is to type it as it stands: no pattern, no mere mention."""
        words = self.words
        pattern = any(word.startswith("[") or word.endswith("...") for word in words)
        told = self.in_block or words[1].startswith("--") or (len(words) > 2 and not words[2].startswith("--"))
        return told and not pattern


def documented() -> list[Command]:
    """All commands of the README and the documents, in blocks and within sentences."""
    return [command for path in DOCUMENTS for command in commands_of(path.name, path.read_text(encoding="utf-8"))]


def commands_of(name: str, text: str) -> Iterator[Command]:
    """The commands of a document in Markdown: of indented and fenced blocks first, then those between backquotes."""
    prose: list[str] = []
    for number, line, shown in _lines(text):
        if shown and _is_command(line.strip()):
            yield Command(f"{name}:{number}", line.strip(), in_block=True)
        prose.append("" if shown else line)
    for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", "\n".join(prose)):
        span = " ".join(found[1].split())
        if _is_command(span):
            number = "\n".join(prose)[: found.start()].count("\n") + 1
            yield Command(f"{name}:{number}", span, in_block=False)


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(number, line, whether it is part of a block of shell); continued lines as one, empty ones in their places."""
    fence: str | None = None
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line, first = lines[number], number
        number += 1
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            yield first + 1, "", False
            continue
        shown = fence not in NO_SHELL if fence is not None else line.startswith("    ")
        while shown and number < len(lines) and (line.endswith("\\") or re.match(r"\s+\[--", lines[number])):
            line = f"{line.removesuffix(chr(92)).rstrip()} {lines[number].strip()}"
            number += 1
        yield first + 1, "" if fence in NO_SHELL else line, shown
        yield from ((left + 1, "", False) for left in range(first + 1, number))


def _is_command(text: str) -> bool:
    first, _, rest = text.partition(" ")
    return first in PROGRAMS and bool(rest.strip())


def functions() -> dict[str, Callable[..., object]]:
    """The commands of the command line by name, as their stages define them."""
    found = (inspect.getclosurevars(entry.callback).nonlocals["command"] for entry in cli.app.registered_commands)
    return {function.__name__.replace("_", "-"): function for function in found}


def calls_of(command: Callable[..., object]) -> Iterator[str]:
    """`module.function` for every function of a stage that a command imports in its body, or finds in such a module."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(command)))
    used = {(node.value.id, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            if isinstance(node.value, ast.Name)}  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(("teacher_cache", "student")):
            continue
        for alias in node.names:
            found = getattr(import_module(node.module), alias.name, None)
            found = found or import_module(f"{node.module}.{alias.name}")
            if isinstance(found, FunctionType):
                yield f"{node.module}.{alias.name}"
            elif isinstance(found, ModuleType):
                names = {attribute for owner, attribute in used if owner == (alias.asname or alias.name)}
                yield from (f"{found.__name__}.{n}" for n in names if isinstance(getattr(found, n), FunctionType))
