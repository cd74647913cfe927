"""Floors and doors: who may import whom, read off the source.

6  cli, api · 5  bench, verify · 4  stages · 3  engine · 2  settings · 1  five rooms with no doors
between them · 0  the words, and the demo's network and drawings
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cnnvis_cli

ROOT = Path(cnnvis_cli.__file__).parent
ROOMS = ("dataset", "network", "ascent", "store", "figure")
FLOORS = {
    "__init__": 0,
    "nouns": 0,
    "arrays": 0,
    "folders": 0,
    "registry": 0,
    "report": 0,
    "errors": 0,
    "digests": 0,
    "histogram": 0,
    "light_imports": 0,
    "measures": 0,
    "validation": 0,
    "demo": 0,
    **dict.fromkeys(ROOMS, 1),
    "settings": 2,
    "engine": 3,
    "stages": 4,
    "verify": 5,
    "bench": 5,
    "cli": 6,
    "api": 6,
    "__main__": 7,
}
DOORS = {  # a library, and the only places that may use it
    "click": ("cli/",),
    "pydantic": ("validation.py", "ascent/regularizers.py", "ascent/steps.py", "ascent/search.py"),
    "pydantic_core": ("validation.py", "settings.py"),  # settings.py: when it is validated
    "h5py": ("store/",),
    "captum": ("network/saliency.py",),
    "numba": ("network/tally_loops.py",),
    "open_clip": ("network/clip.py",),
    "dreamsim": ("network/perceptual.py",),
    "av": ("dataset/video.py", "figure/film.py"),
    "pyarrow": ("dataset/parquet.py",),
    "pillow_heif": ("dataset/decode.py",),
    "PIL": ("figure/canvas.py", "dataset/decode.py"),
    "jinja2": ("figure/site.py",),
    "loky": ("engine/pool.py",),
    "multiprocessing": ("engine/",),
    "distributed": ("engine/dask.py",),
    "dask": ("engine/dask.py",),
    "concurrent": ("engine/threads.py", "store/chunks.py"),
    "subprocess": ("engine/devices.py",),
}
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return each module that a file imports, at the top or inside a function, by its full name."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    package = ("cnnvis_cli", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from cnnvis_cli.cli import topk` names a module only in its last part
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """Return the first name below the package: the room, or the module of the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"


def ours(path: Path) -> list[str]:
    return [module for module in imports(path) if module.split(".")[0] == "cnnvis_cli"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_has_a_floor(path: Path) -> None:
    assert path.relative_to(ROOT).parts[0].removesuffix(".py") in FLOORS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_only_point_down(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in ours(path):
        there = room_of(module)
        if there != here:
            level, below = FLOORS[here], FLOORS[there]
            allowed = below < level or (below == level == 0)
            assert allowed, f"{name_of(path)} on floor {level} imports {module} on floor {below}"


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    users = {name_of(p) for p in FILES if any(m.split(".")[0] == library for m in imports(p))}
    assert all(user.startswith(DOORS[library]) for user in users), users


@pytest.mark.parametrize("name", ["nouns", "registry", "report", "errors", "digests", "folders"])
def test_the_words_need_nothing_but_python(name: str) -> None:
    known = sys.stdlib_module_names | {"cnnvis_cli", "__future__"}
    used = {module.split(".")[0] for module in imports(ROOT / f"{name}.py")}
    assert used <= known


def test_the_stages_are_where_rooms_meet() -> None:
    """The rule is about something: some stage uses several rooms, and every room is used."""
    met = {name_of(p): {room_of(m) for m in ours(p)} & set(ROOMS) for p in FILES}
    assert any(len(rooms) > 2 for name, rooms in met.items() if name.startswith("stages/"))
    used = set().union(*(rooms for name, rooms in met.items() if name.startswith("stages/")))
    assert used == set(ROOMS)


def test_commands_know_stages_and_nothing_behind_them() -> None:
    for path in FILES:
        if name_of(path).startswith("cli/"):
            rooms = {room_of(module) for module in ours(path)}
            assert not rooms & {*ROOMS}, name_of(path)
