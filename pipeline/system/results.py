"""What a command finds or makes: it knows its own text and JSON, so that the command line only prints."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Result(Protocol):
    """The result of a command."""

    @property
    def failure(self) -> str | None:
        """Why the command ends with exit code 1 although it has a result, in one line; None where all went well."""
        ...

    def lines(self) -> list[str]:
        """The lines to print for people."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The object to print for programs, of JSON values."""
        ...


def plain(value: Any) -> Any:
    """A dataclass and everything in it as JSON values: paths become text, numbers that are not finite None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
