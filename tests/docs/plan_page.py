"""The tables of docs/plan.md, made from the declarations of the settings: `make page`."""

from __future__ import annotations

import re
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cnnvis_cli.settings import Plan, shown_default

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
HEAD = "| key | flag | value | default | meaning |\n|---|---|---|---|---|\n"
KINDS = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
ANGLED = re.compile(r"[\w/]*<[\w<>/.]*[\w>]")  # what would be hidden as HTML
BOUNDS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "lt": "below",
    "multiple_of": "in steps of",
}


def page(text: str) -> str:
    """Return the page with new tables: each section's keys under its heading."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return head + "".join(_section(section) for section in sections)


def _section(text: str) -> str:
    hints = get_type_hints(Plan)
    name = text.splitlines()[0].removeprefix("## ").strip("[]")
    cls = Plan if name == "Top level" else hints[name]
    return re.sub(r"^\| key \|(.*\n)*?(?=\n|\Z)", lambda _: table(cls), text, flags=re.MULTILINE)


def table(cls: Any) -> str:
    """Return the table of a class of settings, without those that have sections of their own."""
    hints = get_type_hints(cls)
    keys = [field for field in fields(cls) if not is_dataclass(hints[field.name])]
    return HEAD + "".join(_row(field, hints[field.name]) for field in keys)


def _row(field: Field[Any], hint: Any) -> str:
    said = field.metadata
    flags = " ".join(f"`{flag}`" for flag in said["flags"].split())
    bounds = [f"{word} {said[name]}" for name, word in BOUNDS.items() if name in said]
    value = ", ".join([_value(hint), *bounds]).replace(str(1 << 63), "2^63")
    default = f"`{shown_default(field)}`" if said["shown"] is None else said["shown"]
    cells = (f"`{field.name}`", flags, value, default.replace("``", ""), said["help"])
    return f"| {' | '.join(ANGLED.sub(lambda found: f'`{found[0]}`', cell) for cell in cells)} |\n"


def _value(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(hint))
    if get_origin(hint) is tuple:
        item = _value(get_args(hint)[0])
        return f"list of {item}s" if item.endswith("number") else f"list of {item}"
    if hint in KINDS or get_origin(hint) is dict:
        return KINDS.get(hint, "table")
    return " or ".join(_value(each) for each in get_args(hint) if each is not NoneType)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
