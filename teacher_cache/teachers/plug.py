"""`python:FILE_OR_MODULE:FACTORY`: a network of your own as a teacher, without a line of this project changed.

`FACTORY(*, scale, steps, device, dtype)` is called once, with the values of the command line (`steps` and `dtype` are
None where the user leaves the choice), and returns an object with `name scale steps restore fingerprint` as
`pipeline.teacher.Teacher` describes them; examples/python_teacher.py shows one. The SHA-256 of FILE joins the
fingerprint; what FILE reads or imports besides (weights, other modules) is for `fingerprint` to tell of.

This runs the file's code. It is done for the `--teacher` of the command that the user typed, never for a name that a
cache's plan.json brings along (see `teacher_cache.building.verify.load_teacher`).
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from torch import Tensor

from pipeline.schema import canonical_json
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import sha256_file
from pipeline.teacher import Teacher

EXPECTED = ("name", "scale", "steps", "restore", "fingerprint")


class PluggedTeacher(Teacher):
    """What a factory made, checked."""

    def __init__(self, name: str, scale: int, steps: int | None, device: str, dtype: str | None) -> None:
        """Call the factory that `name` names; the other arguments as of `load`.

        Raises:
            UsageError: the name is not `python:FILE_OR_MODULE:FACTORY`.
            DtkdError: the code cannot be loaded, the factory fails, or its result is no teacher.
        """
        where, _, factory_name = name.removeprefix("python:").rpartition(":")
        if not where or not factory_name.isidentifier():
            raise UsageError(f"a teacher of your own is python:FILE_OR_MODULE:FACTORY, got {name}")
        self.name = name
        module = self._explained(f"importing {where} failed", lambda: _import(where))
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            raise DtkdError(f"{name}: {where} has no function {factory_name}: {_functions(module)}")
        options = {"scale": scale, "steps": steps, "device": device, "dtype": dtype}
        self._made: Any = self._explained(f"{factory_name} failed", lambda: factory(**options))
        self._check(factory_name)
        self.scale, self.steps = self._made.scale, self._made.steps
        if steps is not None and self.steps != steps:
            self._refuse(factory_name, f"has steps {self.steps}, asked for {steps}: take steps over, or refuse them")
        assert module.__file__ is not None
        self._code, self._dtype = sha256_file(module.__file__), dtype
        self.about = {str(name): str(value) for name, value in getattr(self._made, "about", {}).items()}
        self.fingerprint()

    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """See Teacher."""
        return self._made.restore(lr, seeds)

    def fingerprint(self) -> dict[str, Any]:
        """What the made teacher tells, and what this command knows of it."""
        told = self._explained("fingerprint failed", self._made.fingerprint)
        if not isinstance(told, dict):
            self._refuse("fingerprint", f"must return a dictionary, got {type(told).__name__}")
        self._explained("fingerprint is no JSON", lambda: canonical_json(told))
        known = {"name": self._made.name, "scale": self.scale, "steps": self.steps, "dtype": self._dtype}
        return known | {"code": self._code, "teacher": told}

    def _check(self, factory: str) -> None:
        made = self._made
        if missing := [member for member in EXPECTED if not hasattr(made, member)]:
            self._refuse(
                factory, f"must return an object with {' '.join(EXPECTED)}; this one lacks {' '.join(missing)}"
            )
        if not isinstance(made.name, str) or not made.name:
            self._refuse(factory, f"must return a teacher with a name, got {made.name!r:.60}")
        for number in ("scale", "steps"):
            value = getattr(made, number)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                self._refuse(factory, f"must return a teacher whose {number} is 1 or more, got {value!r:.60}")
        for method in ("restore", "fingerprint"):
            if not callable(getattr(made, method)):
                self._refuse(factory, f"must return a teacher whose {method} is a method")

    def _refuse(self, what: str, reason: str) -> NoReturn:
        raise DtkdError(f"{self.name}: {what} {reason}")

    def _explained(self, what: str, work: Callable[[], Any]) -> Any:
        """Result of somebody's code; what it raises becomes one line that says where."""
        try:
            return work()
        except DtkdError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = next(iter(str(error).strip().splitlines()), "no message")
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise DtkdError(f"{self.name}: {what} ({type(error).__name__} at {where}: {reason})") from error


def _import(where: str) -> ModuleType:
    if not where.endswith(".py"):
        module = importlib.import_module(where)
        if not (module.__file__ or "").endswith(".py"):
            raise DtkdError(f"{where} is no module that was written in Python: its code cannot be identified")
        return module
    file = Path(where).expanduser().resolve()
    if not file.is_file():
        raise DtkdError(f"{where} does not exist: give python:FILE.py:FACTORY")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # at the end: its neighbours can be imported, and hide nobody else's modules
    spec = importlib.util.spec_from_file_location(f"dtkd_plug_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


def _functions(module: ModuleType) -> str:
    found = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return f"found {', '.join(found[:5])}" if found else "it has none at all"
