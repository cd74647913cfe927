"""Show what each unit of a trained convnet has learned.

A *dataset* flows through a *network* into a *store*; a *figure* is drawn from the store.
The *ascent* is the same flow without a dataset.

Floors, from the top; imports point down only::

    cli · api    options, or arguments -> stage -> report, or value
    bench        measures what the stages reach of a machine's limits
    stages       one folder per command: the only place where the rooms meet
    engine       devices, threads, worker processes, clusters
    settings     TOML and flags -> one frozen value
    dataset · network · ascent · store · figure        five rooms, no doors between them
    nouns · registry · report · errors · validation · demo

From Python, ``cnnvis_cli.open("outputs/demo")`` opens a run directory and
``cnnvis_cli.begin(model="demo")`` begins one; see ``help(cnnvis_cli.api)``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NOTEBOOK = {"open": "open_run", "begin": "begin"}  # their names in the notebook module


def __getattr__(name: str) -> Any:
    """Load the notebook's functions when they are first used: torch takes seconds."""
    if name == "notebook":
        return import_module("cnnvis_cli.api")
    if name in _NOTEBOOK:
        return getattr(import_module("cnnvis_cli.api"), _NOTEBOOK[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NOTEBOOK, "notebook"})
