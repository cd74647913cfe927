"""Values checked against their declarations by pydantic, each mistake told in one line.

What can be written in a plan is a frozen dataclass, whose fields are the keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic.dataclasses import dataclass, is_pydantic_dataclass
from pydantic_core import ErrorDetails

from cnnvis_cli.errors import UsageError
from cnnvis_cli.registry import remedy, unknown

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""No guessing: neither true nor "3" is a number, and an unknown key is a mistake."""

MUST = {  # what a value of the right type must be, by the type of pydantic's error
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be finite",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
WANTED = {  # what a value should have been, by the type of pydantic's error
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "missing": "a list of two numbers",
    "too_long": "a list of two numbers",
}


def _is_number(value: Any, check: Any) -> Any:
    check(value)
    return value


def _whole(value: Any, check: Any) -> Any:
    if check(value) % 1:
        raise ValueError("must be a whole number")
    return value


Number = Annotated[float, WrapValidator(_is_number)]  # 3 stays 3, as it is written
Whole = Annotated[Number, WrapValidator(_whole)]  # 3.0 may be written for 3


def read_settings(cls: Any, table: Any, place: str) -> Any:
    """Return a settings value of class `cls` from a table, checking every key and value.

    Raise `UsageError` that names the thing, the place and the remedy. Keys may have - for _.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{place} must be a table of settings")
    hints = get_type_hints(cls)
    keys = {key.replace("-", "_"): key for key in table}
    values = {name: table[key] for name, key in keys.items()}
    for name, key in keys.items():
        if is_dataclass(hints.get(name)):
            values[name] = read_settings(hints[name], table[key], f"{place}: {key}")
    try:
        found = _checking(cls)(**values)
    except ValidationError as error:
        written = {name: (key, table[key]) for name, key in keys.items()}
        raise _refusal(cls, written, error.errors(), place) from None
    return cls(**vars(found)) if type(found) is not cls else found


def from_plain(cls: Any, value: Any) -> Any:
    """Return a value of a dataclass from what JSON makes of it; raise `ValueError` if none."""
    return TypeAdapter(cls).validate_python(value)


@cache
def _checking(cls: Any) -> Any:
    """Return `cls` itself, or of a plain dataclass a subclass whose values pydantic checks."""
    if is_pydantic_dataclass(cls):
        return cls
    return dataclass(cls, config=STRICT, frozen=cls.__dataclass_params__.frozen)


def _refusal(
    cls: Any, written: Mapping[str, tuple[str, Any]], errors: list[ErrorDetails], place: str
) -> UsageError:
    """Return one line about the first mistake; `written` has each key and value as the user's."""
    names = [field.name for field in fields(cls)]
    found = {(each["type"], each["loc"]) for each in errors}
    for each in errors:
        if each["type"] == "unexpected_keyword_argument":
            return unknown("setting", written[str(each["loc"][0])][0], names, place)
    if missing := [name for name in names if ("missing", (name,)) in found]:
        return UsageError(f"{place} needs {', '.join(missing)}")
    if not errors[0]["loc"]:  # settings that do not go together
        return UsageError(f"{place}: {_must(errors[0])}")
    name = str(errors[0]["loc"][0])
    about = [each for each in errors if each["loc"][0] == name]
    key, value = written[name]
    bounds = [each for each in about if each["type"] in MUST]
    if not bounds:
        return UsageError(f"{place}: {key} = {value!r} {_is_not(about)}")
    flags = next(field.metadata.get("flags", "") for field in fields(cls) if field.name == name)
    option = flags.split()[-1] if flags.startswith("-") else ""
    start = f"{option} {value}:" if option else f"{place}: {key} = {value!r}"
    return UsageError(f"{start} {_must(bounds[0])}")


def _must(error: ErrorDetails) -> str:
    """Return what a value of the right type must be."""
    numbers = {k: f"{v:g}" if isinstance(v, float) else v for k, v in error.get("ctx", {}).items()}
    return MUST[error["type"]].format(**numbers)


def _is_not(errors: list[ErrorDetails]) -> str:
    """Return what a value should have been, or which of some words."""
    for each in errors:
        if each["type"] == "literal_error":
            known = re.findall("'([^']+)'", each["ctx"]["expected"])
            return f"does not exist; {remedy(str(each['input']), known)}"
    wanted = dict.fromkeys(WANTED.get(each["type"], each["msg"]) for each in errors)
    return f"is not {' or '.join(wanted)}"
