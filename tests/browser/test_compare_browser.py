"""The page of two runs in a real browser: pictures, theme, keys, and the way from the gallery."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cnnvis_cli.report import Report
from cnnvis_cli.stages.numbers.comparison import compare_runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@pytest.fixture
def page(
    do: Callable[..., None],
    exact: dict[str, Any],
    tmp_path: Path,
    photographs: Callable[..., Path],
) -> Iterator[Any]:
    """The gallery's page of a run that is compared with itself, in a dark browser."""
    folder = photographs(tmp_path / "images", 12, classes=2)
    flags = exact | {"dataset": str(folder), "run": str(tmp_path / "a <b>"), "topk__sample": 12}
    do("topk", **flags)
    do("gallery", **flags)
    compare_runs(tmp_path / "a <b>", tmp_path / "a <b>", 0, True, Report(quiet=True))
    do("gallery", **flags)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_context(viewport={"width": 800, "height": 900}, color_scheme="dark")
        page, wrong, asked = shown.new_page(), list[str](), list[str]()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "a <b>" / "gallery" / "index.html").as_uri())
        yield page
        browser.close()
    assert not wrong
    for address in map(urlsplit, asked):
        assert (address.scheme, Path(unquote(address.path)).is_file()) == ("file", True)


def test_it_is_reached_seen_and_gone_through_by_keys(page: Any) -> None:
    page.get_by_role("link", name="tinynet:exact (a <b>) beside tinynet:exact (a <b>)").click()
    page.locator("article.layer h2").first.wait_for()
    assert page.locator("article.layer").count() == page.locator("nav a").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("]")
    assert page.evaluate("document.activeElement.textContent").startswith("conv1")
    picture = page.locator(".twin .crop").first
    assert "conv1-a.jpg" in picture.evaluate("node => node.style.backgroundImage")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#larger .crop").count() == 2
    page.keyboard.press("Escape")
    assert not page.locator("#larger").is_visible()
    assert "twin" in page.evaluate("document.activeElement.className")
    assert page.locator("#theme").inner_text() == "Light"
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.locator(".twin a").first.click()
    page.locator("#unit h2").first.wait_for()  # of the gallery
