"""What every command does alike: show progress, print its result or its failure, end with the right exit code.

A command is a function `(on_progress, **options) -> Result`. Results go to standard output, everything else to standard
error; under `--json` the result, or `{"error": ...}`, is one JSON object on standard output.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from pipeline.system import progress
from pipeline.system.errors import DtkdError, explain
from pipeline.system.results import Result
from pipeline.system.stop import sigterm_interrupts

EXIT_FAILURE = 1  # a DtkdError says its own


def name_of(command: Callable[..., Result]) -> str:
    """What a user types: `teacher-cache` for `teacher_cache`."""
    return command.__name__.replace("_", "-")


def help_of(command: Callable[..., Result]) -> tuple[str, str]:
    """Description and examples of a command, by its docstring: the examples are its last lines, from `dtkd ` on."""
    description, _, examples = inspect.cleandoc(command.__doc__ or "").partition("\n\ndtkd ")
    return description, "\n".join(["Examples:", *(f"  {line}" for line in f"dtkd {examples}".splitlines())])


def printing(command: Callable[..., Result], json_option: Any) -> Callable[..., None]:
    """A function with the command's options and `as_json`, annotated with `json_option`, that prints the result."""

    def run(*, as_json: bool, **options: Any) -> None:
        with progress.report(name_of(command), quiet=as_json or not first_process()) as on_progress:
            result = command(on_progress, **options)
        if first_process():
            _write(_json(result.to_json()) if as_json else "\n".join(result.lines()), sys.stdout)
        if result.failure:
            note(f"dtkd: {result.failure}")
            raise SystemExit(EXIT_FAILURE)

    _, *options = inspect.signature(command).parameters.values()
    options.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=json_option))
    run.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


@contextmanager
def failing_in_one_line(as_json: bool) -> Iterator[None]:
    """Tell of what may happen to anyone in one line, and end; a bug keeps its traceback. SIGTERM is as Ctrl-C."""
    try:
        with sigterm_interrupts():
            yield
    except (Exception, KeyboardInterrupt) as error:
        line = explain(error)
        if line is None:
            raise
        print_error(line, as_json)
        _write(f"dtkd: {line}", sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, DtkdError) else EXIT_FAILURE) from error


def print_error(line: str, as_json: bool) -> None:
    """The object that stands for the result of a command that failed."""
    if as_json and first_process():
        _write(_json({"error": line}), sys.stdout)


def note(line: str | None) -> None:
    """Something to know beside the result, such as a warning, or what will be done; None says nothing."""
    if line and first_process():
        _write(line, sys.stderr)


def first_process() -> bool:
    """Whether this is the one of several processes that speaks to people.

    Which one, accelerate says; it is not asked, and not imported, where nothing started this process as one of many.
    """
    if "WORLD_SIZE" not in os.environ:
        return True
    from pipeline.system.device import first_process

    return first_process()


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _write(text: str, stream: IO[str]) -> None:
    stream.write(f"{text}\n")  # at once: several processes may share a terminal
    stream.flush()
