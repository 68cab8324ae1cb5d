"""Checks values that came from a file against the annotations of the class they are for."""

import types
import typing
from typing import Any

from .config import is_int
from .errors import ConfigError, nearest


def check_section(section: str, values: dict[str, Any], valid: dict[str, Any]) -> None:
    """Checks the fields of another library's class: their names, and their types as far as YAML can tell.

    Raises:
        ConfigError: names the first field that does not exist, and the nearest, or that has the wrong type.
    """
    for name, value in values.items():
        if name not in valid:
            raise ConfigError(f"{section}.{name} is not a field; {nearest(name, valid)}")
        if not _fits(value, valid[name]):
            raise ConfigError(f"{section}.{name}={value!r} must be {_described(valid[name])}")


def _described(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    return f"of type {name}"


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a YAML value can be of the annotated type; annotations that YAML cannot spell out always fit."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return is_int(value)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if origin in (list, tuple, dict):
        return isinstance(value, origin)
    return True
