"""Settings: nested frozen dataclasses filled from defaults < TOML files < `section.key=value` overrides < given values.

A settings class needs no registration: its fields, their types, defaults and docstrings are the schema. Supported types
are bool, int, float, str, `Literal`, tuples of these, unions of these, and further dataclasses (the sections).
"""

import ast
import dataclasses
import inspect
import json
import math
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.words import nearest

T = TypeVar("T")


def load(
    cls: type[T],
    toml: Path | Sequence[Path] | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> T:
    """Build settings of class `cls` from what a user asks for; later sources beat earlier ones.

    Args:
        cls: the settings' class, whose defaults come first.
        toml: file of settings, or several, of which the later ones beat the earlier ones key by key.
        overrides: text such as `train.steps=2000`, read as the key's type.
        values: by dotted key, of the key's type already; None stands for "not given".

    Raises:
        UsageError: unreadable file, unknown key (names the nearest valid one), wrong type or refused value.
    """
    files = [toml] if isinstance(toml, Path) else toml or ()
    origin = ", ".join(map(str, files)) or "settings"
    try:
        tree = _read_files(cls, files)
        for override in overrides:
            _put(tree, *_parse_override(cls, override), origin)
        for key, value in (values or {}).items():
            if value is not None:
                _put(tree, key, value, origin)
        return from_dict(cls, tree, origin)
    except DtkdError as error:  # the same checks refuse files of ours that are damaged, which is no wrong usage
        raise UsageError(str(error)) from error


def from_dict(cls: type[T], tree: Mapping[str, Any], origin: str = "settings") -> T:
    """Build settings from nested dictionaries as `to_dict` or a TOML file gives them; `origin` names them in errors."""
    _refuse_unknown(cls, tree, origin)
    return _build(cls, tree, "", origin)


def to_dict(settings: Any) -> dict[str, Any]:
    """Turn settings into nested dictionaries of JSON values (tuples become lists); `from_dict` inverts it."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def to_toml(settings: Any) -> str:
    """Write settings as TOML text that `load` reads back to the same values; keys that are None are left out."""
    return "\n".join(_toml_lines(to_dict(settings))).strip() + "\n"


def listing(cls: type) -> str:
    """Every setting of a class with its meaning, type and default, as a TOML file that `load` reads to the defaults.

    A key whose default is none is commented out, because TOML has no such value.
    """
    return "\n".join(_listed(cls())).strip() + "\n"


def _listed(settings: Any, section: str = "", meaning: str = "") -> list[str]:
    cls, docs = type(settings), _field_docs(type(settings))
    lines = ["", *_comment(meaning or inspect.getdoc(cls) or ""), f"[{section}]"] if section else []
    sections = []
    for key, kind in get_type_hints(cls).items():
        value, doc = getattr(settings, key), docs.get(key, "")
        if _is_section(kind):
            sections += _listed(value, f"{section}.{key}" if section else key, doc)
        else:
            setting = f"# {key} =" if value is None else f"{key} = {_toml_value(value)}"
            lines += ["", *_comment(doc), f"{setting}  # {_describe(kind)}"]
    return lines + sections


def _comment(text: str) -> list[str]:
    """The first paragraph, within 100 columns."""
    words = " ".join(text.partition("\n\n")[0].split())
    return textwrap.wrap(words, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _field_docs(cls: type) -> dict[str, str]:
    """Docstrings of a dataclass's fields, inherited ones too; Python keeps them in the source only."""
    docs = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for statement, following in pairwise(definition.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[key] = doc
    return docs


def _put(tree: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key of nested dictionaries."""
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise DtkdError(f"{origin}: {section} must be a table of settings, got {tree!r}")
    tree[leaf] = value


def refuse_below(section: str, settings: Any, least: float, *names: str) -> None:
    """Check that each of these fields of a section is at least `least`.

    Raises:
        DtkdError: names the first that is not.
    """
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise DtkdError(f"{section}.{name} must be at least {least:g}, got {value}")


def _toml_lines(tree: dict[str, Any], section: str = "") -> list[str]:
    lines = ["", f"[{section}]"] if section else []
    lines += [f"{key} = {_toml_value(value)}" for key, value in tree.items() if _is_value(value)]
    for key, values in tree.items():
        if isinstance(values, dict):
            lines += _toml_lines(values, f"{section}.{key}" if section else key)
    return lines


def _is_section(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_value(value: Any) -> bool:
    return value is not None and not isinstance(value, dict)


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # TOML reads JSON's strings, numbers, booleans and arrays as they are


def _read_files(cls: type, files: Sequence[Path]) -> dict[str, Any]:
    """Settings of several files, each checked on its own, so that an error names the file that has it."""
    tree, known = {}, _leaves(cls)
    for file in files:
        content = _read_toml(file)
        _refuse_unknown(cls, content, str(file))
        for key, value in _flatten(content):
            if key in known:
                _put(tree, key, _check(value, known[key], key, str(file)), str(file))
            elif value != {}:
                raise DtkdError(f"{file}: {key} must be a table of settings, got {value!r}")
    return tree


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DtkdError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DtkdError(f"{path} is not valid TOML: {error}") from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _leaves(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every setting of a class as dotted key -> declared type."""
    leaves = {}
    for key, kind in get_type_hints(cls).items():
        leaves |= _leaves(kind, f"{prefix}{key}.") if _is_section(kind) else {prefix + key: kind}
    return leaves


def _refuse_unknown(cls: type, tree: Mapping[str, Any], origin: str) -> None:
    known = _leaves(cls)
    sections = {key.rpartition(".")[0] for key in known}
    for key, value in _flatten(tree):
        if key not in known and key not in sections:
            raise DtkdError(f"{origin}: unknown key {key} = {value!r}{_hint(key, known)}")


def _hint(key: str, known: Mapping[str, Any]) -> str:
    near = nearest(key, known)
    if near is None:  # the right name in the wrong section, or no section at all
        names = {k.rpartition(".")[2]: k for k in known}
        leaf = nearest(key.rpartition(".")[2], names)
        near = names[leaf] if leaf else None
    return f"; did you mean {near}?" if near else f"; known keys: {', '.join(sorted(known))}"


def _parse_override(cls: type, override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise DtkdError(f"a setting is written section.key=value, got {override!r}")
    known = _leaves(cls)
    if key not in known:
        raise DtkdError(f"unknown key {key}{_hint(key, known)}")
    return key, _from_text(text.strip(), known[key])


def _from_text(text: str, kind: Any) -> Any:
    """Read what a user typed as the declared type; text that does not fit is left for `_check` to refuse."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in sorted(options, key=lambda o: o is str):
        value = _read_one(text, option)
        if _fits(value, option):
            return value
    return text


def _read_one(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.strip("[]()").split(",") if part.strip()]
        return [_read_one(part, get_args(kind)[0]) for part in parts]
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is NoneType:
        return None if text.lower() == "none" else text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _build(cls: type[T], tree: Mapping[str, Any], prefix: str, origin: str) -> T:
    values = {}
    for key, kind in get_type_hints(cls).items():
        if key not in tree:
            continue
        if _is_section(kind):
            if not isinstance(tree[key], Mapping):
                raise DtkdError(f"{origin}: {prefix}{key} must be a table of settings, got {tree[key]!r}")
            values[key] = _build(kind, tree[key], f"{prefix}{key}.", origin)
        else:
            values[key] = _check(tree[key], kind, prefix + key, origin)
    return cls(**values)


def _check(value: Any, kind: Any, key: str, origin: str) -> Any:
    if not _fits(value, kind):
        raise DtkdError(f"{origin}: {key} must be {_describe(kind)}, got {value!r}")
    return _convert(value, kind)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        items = [a for a in get_args(kind) if a is not Ellipsis]
        open_ended = Ellipsis in get_args(kind)
        if not isinstance(value, list | tuple) or not (open_ended or len(value) == len(items)):
            return False
        return all(_fits(v, items[0] if open_ended else items[i]) for i, v in enumerate(value))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _convert(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        kind = next(option for option in get_args(kind) if _fits(value, option))
    if get_origin(kind) is tuple:
        return tuple(_convert(v, get_args(kind)[0]) for v in value)
    return float(value) if kind is float else value


def _describe(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        count = "" if Ellipsis in items else f"{len(items)} "
        return f"a list of {count}values, each {_describe(items[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", NoneType: "none"}
    return names.get(kind, str(kind))
