"""Shell completion of values; it must be quick, so nothing heavy is imported.

Click completes commands, options and choices itself, once the shell is set up by::

    eval "$(_CNNVIS_COMPLETE=bash_source cnnvis)"    # or zsh_source; fish_source for fish
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem

OWN_MODELS = ("caffenet", "demo", "zfnet")  # models, beside torchvision's
MONTAGE_KINDS = (
    "accent",
    "history",
    "intervals",
    "layers",
    "optimized",
    "screen",
    "styles",
    "top",
    "toolbox",
    "unit",
)
Items = list[CompletionItem]


def models(_context: click.Context, _parameter: click.Parameter, begun: str) -> Items:
    """Return the models whose names begin with `begun`."""
    return _beginning(begun, (*OWN_MODELS, *_builders()))


def kinds(_context: click.Context, _parameter: click.Parameter, begun: str) -> Items:
    """Return the kinds of figures whose names begin with `begun`."""
    return _beginning(begun, MONTAGE_KINDS)


def path_items(_context: click.Context, _parameter: click.Parameter, begun: str) -> Items:
    """Leave the choice of files and folders to the shell."""
    return [CompletionItem(begun, type="file")]


def folders(_context: click.Context, _parameter: click.Parameter, begun: str) -> Items:
    """Leave the choice of folders to the shell."""
    return [CompletionItem(begun, type="dir")]


def _beginning(begun: str, names: tuple[str, ...]) -> Items:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(begun)]


_BUILDER = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)


def _builders() -> list[str]:
    """Return torchvision's model names, read from its source: importing it takes seconds."""
    found: list[str] = []
    with suppress(ImportError, OSError):
        spec = find_spec("torchvision")
        folders = spec.submodule_search_locations or [] if spec else []
        for path in (path for folder in folders for path in Path(folder, "models").glob("*.py")):
            found += _BUILDER.findall(path.read_text(encoding="utf-8"))
    return found
