"""`make showcase`: the site has all that its first page leads to, and says whose it is."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cnnvis_cli.demo

if TYPE_CHECKING:
    from tests.docs.conftest import Told
    from tests.docs.pages import ROOT
else:
    from pages import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="this is no checkout")


def showcase() -> Any:
    spec = importlib.util.spec_from_file_location("showcase", ROOT / "docs/showcase.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_whole_and_names_its_licence(
    cnnvis: Callable[[list[str]], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = showcase()
    told: list[Told] = []
    monkeypatch.setattr(module, "cnnvis", lambda *words, **_: told.append(cnnvis([*words])))
    weights = next(Path(cnnvis_cli.demo.__path__[0]).glob("*.safetensors"))
    line = f"showcase outputs/demo-images --weights {weights} --model demo --run outputs/show"
    line += " --layer conv1 --layer fc8 --units 0-3"
    monkeypatch.setattr(sys, "argv", line.split())
    module.main()
    assert [each.code for each in told] == [0] * 6, told
    site = Path("outputs/show/site")
    page = (site / "index.html").read_text(encoding="utf-8")
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(linked) >= 7
    assert all((site / name).is_file() for name in linked)
    assert "has not been stated" in page
    assert "<td>fc8</td><td>24</td>" in page
    (site.parent / "names.tsv").unlink()
    Path("own.txt").write_text("My <own> photographs, CC0.", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*line.split(), "--licence", "own.txt"])
    module.laid_out(module.asked())
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "names.tsv" not in page
    assert "My &lt;own&gt; photographs, CC0." in page
    assert "has not been stated" not in page
