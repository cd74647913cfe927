"""Importing large libraries without what only others need of them.

Python looks for unreachable objects again and again while a library makes hundreds of thousands
that stay: a sixth of the time of importing torch, and a third once more when a process ends.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave out Python's search for unreachable objects in this block, which imports something."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load_torch() -> None:
    """Import torch; its objects, and all others there are, are never looked through again.

    Call it before there is any work.
    """
    with uncollected():
        import_module("torch")
        gc.freeze()


@contextmanager
def without_library(library: str) -> Iterator[None]:
    """Let a library that has not been imported be missing in this block."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]


def import_torchvision(name: str) -> Any:
    """Return a module of torchvision.

    Its `ops` import the compiler for a single function, which is asked only when a model that
    detects objects is compiled. That function is found when it is called. If torchvision wants
    anything else of the compiler, it is imported as usual.
    """
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        return import_module(name)
    before = set(sys.modules)
    try:
        with uncollected(), _stand_in_for_compiler():
            return import_module(name)
    except (ImportError, AttributeError):
        for begun in {each for each in sys.modules if each.startswith("torchvision")} - before:
            del sys.modules[begun]
        return import_module(name)


@contextmanager
def _stand_in_for_compiler() -> Iterator[None]:
    package, utils = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    package.__path__ = []
    package.utils = utils  # type: ignore[attr-defined]
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {COMPILER: package, utils.__name__: utils}
    try:
        yield
    finally:
        for module in (package, utils):
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


def _is_compile_supported(*arguments: Any) -> Any:
    return import_module(f"{COMPILER}.utils").is_compile_supported(*arguments)
