"""What tests in browsers share: a small gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "<img src=x onerror=alert(1)>"  # the name of a class
Do = Callable[..., None]


@pytest.fixture
def gallery(
    do: Do, exact: dict[str, Any], tmp_path: Path, photographs: Callable[..., Path]
) -> Path:
    """A gallery of three layers about images of a class with a hostile name, and another."""
    folder = photographs(tmp_path / "images", 12, classes=2)
    (folder / "class0").rename(folder / HOSTILE)
    flags = exact | {"dataset": str(folder), "run": str(tmp_path / "run")}
    do("topk", **flags)
    some = {"optimize__style": ("3",), "optimize__iterations": 2, "optimize__step": "1"}
    do("optimize", **flags, **some, optimize__runs=2)
    do("project", **flags)
    do("gallery", **flags)
    return tmp_path / "run" / "gallery"
