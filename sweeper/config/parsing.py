"""Plain data becomes frozen models; what is wrong is said in one line."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from sweeper.errors import ConfigError, did_you_mean, shown

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
_TAGS = ("source", "name")
"""The fields by which the classes of a union are told apart."""


def parse(kind: Any, data: Any, where: str = "") -> Any:
    """Validates plain data (dicts, lists, scalars) into `kind`.

    Raises:
        ConfigError: one line with the place, what was given and what is allowed.
    """
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        return _ADAPTERS[kind].validate_python(data)
    except ValidationError as error:
        raise ConfigError(_one_line(error, kind, where)) from None


def _one_line(error: ValidationError, kind: Any, where: str) -> str:
    first = error.errors()[0]
    typed, holder = _walked(kind, first["loc"])
    parts = [part for part in (where, *typed) if part]
    path = f"{'.'.join(parts)}: " if parts else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{path}no such setting{did_you_mean(str(first['loc'][-1]), getattr(holder, 'model_fields', ()))}"
    given = "" if first["type"] in ("missing", "value_error") else f" (given: {shown(first['input'])})"
    return f"{path}{message}{given}"


def _walked(kind: Any, location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The path as a user types it, without the branches of unions; and the class that its last part belongs to."""
    path: list[str] = []
    holder = kind
    for part in location:
        branches = _branches(kind)
        if len(branches) > 1:
            kind = next((branch for branch in branches if part in _tags(branch)), Any)
            continue
        holder = branches[0]
        path.append(str(part))
        fields = getattr(holder, "model_fields", {})
        kind = fields[part].annotation if part in fields else Any
    return path, holder


def _branches(kind: Any) -> tuple[Any, ...]:
    """The kinds of a union, None left out; any other kind alone."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return (kind,)
    return tuple(branch for branch in get_args(kind) if branch is not NoneType)


def _tags(branch: Any) -> tuple[Any, ...]:
    fields = getattr(branch, "model_fields", {})
    kinds = (fields[name].annotation for name in _TAGS if name in fields)
    return tuple(tag for kind in kinds if get_origin(kind) is Literal for tag in get_args(kind))
