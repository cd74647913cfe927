"""What the lines that install name: the container's files, and the extras."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest

import cnnvis_cli

if TYPE_CHECKING:
    from tests.docs.pages import ROOT
else:
    from pages import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="this is no checkout")


def named(text: str) -> set[str]:
    """Return the extras in brackets behind the folder or the name."""
    found = re.findall(r"(?:'\.|cnnvis)\[([\w,]+)\]", text)
    return {extra for each in found for extra in each.split(",")}


def test_the_container_s_files_are_there_and_let_in() -> None:
    recipe = (ROOT / "Containerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*)$", recipe, re.M) for name in line.split()}
    sources = {name for name in copied if not name.startswith("./")}
    assert sources >= {"pyproject.toml", "README.md", "LICENSE", "cnnvis_cli"}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_every_extra_exists_and_is_in_the_table() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(project["optional-dependencies"])
    pages = [ROOT / "README.md", ROOT / "Containerfile", *(ROOT / "docs").glob("*.md")]
    texts = [path.read_text(encoding="utf-8") for path in pages]
    assert set.union(*map(named, texts)) <= set(project["optional-dependencies"])


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cnnvis_cli.__version__}\n" in text
