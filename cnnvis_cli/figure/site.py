"""The files of a web page that works from disk: one page, one style, one script, and data.

A page on disk cannot fetch data but can load scripts, so data are scripts of a single call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

ASSETS = ("gallery.css", "gallery.js", "icon.svg")
COMPARED_ASSETS = ("gallery.css", "compare.css", "compare.js", "icon.svg")
_FOLDER = files("cnnvis_cli.figure") / "gallery"
# Text of users' files may be in the data: nothing in it may end a script or open a tag.
_HARMLESS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def assets(names: Sequence[str] = ASSETS) -> dict[str, bytes]:
    """Return the files that are the same in every gallery, or page of two runs, by name."""
    return {name: (_FOLDER / name).read_bytes() for name in names}


def page(facts: Mapping[str, Any], template: str = "index.html") -> bytes:
    """Return a page, the gallery's by default, with all text escaped; raise for a missing fact."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (_FOLDER / template).read_text(encoding="utf-8")
    text = environment.from_string(source).render(facts)
    lines = filter(None, map(str.strip, text.split("\n")))  # of many layers: without indentation
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")  # names need not be Unicode


def data(call: str, *values: Any, key: str, pictures: str = "") -> bytes:
    """Return a script that passes plain values to the page's script.

    Its first line has the key, and the digest of the pictures that it belongs to, if there are any.
    """
    text = ", ".join(json.dumps(v, separators=(",", ":"), allow_nan=False) for v in values)
    line = f"// {key} {pictures}".rstrip()
    return f"{line}\ngallery.{call}({text.translate(_HARMLESS)});\n".encode("ascii")


def script_key(content: bytes) -> str:
    """Return the key in the first line of such a script; empty if there is none."""
    return _first_line(content)[0]


def pictures_of(content: bytes) -> str:
    """Return the digest of the pictures that a script states; empty in those of older versions."""
    return _first_line(content)[1]


def _first_line(content: bytes) -> tuple[str, str]:
    line = content.partition(b"\n")[0].decode("ascii", "replace")
    key, _, pictures = line.removeprefix("// ").partition(" ")
    return (key, pictures) if line.startswith("// ") else ("", "")
