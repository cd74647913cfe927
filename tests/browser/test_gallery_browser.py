"""The gallery in a real browser: what the user sees, types and presses, and what it loads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.gallery import layers
from cnnvis_cli.store.optimized import Optimized, OptimizedFile
from tests.browser.conftest import HOSTILE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

Do = Callable[..., None]
WIDE = 4096  # units of AlexNet's fc6


@dataclass
class Browser:
    """A browser that records a page's messages and requests."""

    browser: Any
    folder: Path
    wrong: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def open(self, address: str = "", width: int = 1600, scheme: str = "light") -> Any:
        """Return the page at an address like ``#conv5/0042``, once it shows something."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", self._receive)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url))
        page.goto(f"{(self.folder / 'index.html').as_uri()}{address}")
        page.locator("section:not([hidden]) h2").first.wait_for()
        return page

    def _receive(self, said: Any) -> None:
        if said.type == "error":
            self.wrong.append(said.text)

    @property
    def files(self) -> list[Path]:
        """The requested files; each belongs to the gallery."""
        places = [urlsplit(address) for address in self.asked]
        assert all(place.scheme == "file" for place in places), self.asked
        return [Path(unquote(place.path)) for place in places]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any, tmp_path: Path) -> Iterator[Browser]:
    """The browser; at the end nothing has gone wrong, and nothing outside was requested."""
    browser = Browser(chromium, tmp_path / "run" / "gallery")
    yield browser
    for context in chromium.contexts:
        context.close()
    assert not browser.wrong
    for path in browser.files:
        assert path.is_relative_to(browser.folder)
        assert path.is_file()


def shown(page: Any) -> list[int]:
    """Return the numbers of the units in the grid, in order."""
    return [int(text) for text in page.locator("#grid .number").all_text_contents()]


def heading(page: Any) -> str:
    return str(page.locator("section:not([hidden]) h2").first.inner_text())


def at(page: Any, title: str) -> None:
    """Wait until the page is at the place whose title begins with this."""
    playwright.expect(page).to_have_title(re.compile(f"^{title}"))


def is_narrow_enough(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_the_first_page_shows_every_layer(browser: Browser, gallery: Path) -> None:
    page = browser.open()
    assert sorted(page.locator("#overview h2").all_text_contents()) == ["conv1", "conv2", "fc3"]
    assert page.locator("nav a[data-layer]").count() == 3
    link = page.locator(".paired a[href^='#conv2/']").first
    assert link.locator(".crop").count() == 2  # a patch, and the optimized image
    unit = str(link.get_attribute("href"))[1:]
    link.click()
    at(page, unit)
    assert page.evaluate("location.hash") == f"#{unit}"
    page.wait_for_timeout(300)
    assert sum(path.stat().st_size for path in browser.files) < 500_000


def test_units_are_sorted_and_filtered(browser: Browser, gallery: Path) -> None:
    page = browser.open("#fc3")
    assert shown(page) == list(range(10))
    page.get_by_label("Sort", exact=True).select_option("max")
    values = page.locator("#grid .under bdi").all_text_contents()
    numbers = [float(text.replace("−", "-")) for text in values]
    assert numbers == sorted(numbers, reverse=True)
    assert sorted(shown(page)) == list(range(10))
    for order in ("selectivity", "active", "outcome", "number"):
        page.get_by_label("Sort", exact=True).select_option(order)
        assert sorted(shown(page)) == list(range(10))
    page.get_by_label("Filter by class or name").fill("no such class")
    playwright.expect(page.locator("#none")).to_be_visible()
    assert shown(page) == []
    page.get_by_label("Filter by class or name").fill("ONERROR")
    playwright.expect(page.locator("#none")).to_be_hidden()
    assert shown(page)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#grid a")).to_have_count(10)


def test_a_permalink_opens_a_unit_with_everything(browser: Browser, gallery: Path) -> None:
    page = browser.open("#conv2/0005")
    assert heading(page) == "conv2/0005"
    assert page.title().startswith("conv2/0005")
    panes = page.locator("#unit figcaption").all_text_contents()
    assert panes[0].startswith("Optimized style 3")
    assert [text.split(" ")[0] for text in panes] == ["Optimized", "Strongest", "What"]
    names = [image.get_attribute("aria-label") for image in page.get_by_role("img").all()]
    assert all(names)
    assert "conv2/0005, optimized, style 3, run 1" in names
    assert any(f"conv2/0005, patch 1, {name}" in names for name in (HOSTILE, "class1"))
    titles = page.locator("#unit h3").all_text_contents()
    assert {"Histogram", "Optimized", "Over all images"} < set(titles)
    assert page.locator("#unit .near a").count()
    assert page.locator("img").count() == 0, "a class name has become an element"
    assert HOSTILE in page.locator("#unit").inner_text()


@pytest.mark.parametrize("address", ["#conv2/5", "#conv2/9999", "#nowhere", "#%", "#conv2/x"])
def test_every_address_shows_something(address: str, browser: Browser, gallery: Path) -> None:
    page = browser.open(address)
    assert page.locator("main > section:not([hidden])").count() == 1


def test_a_run_without_topk_is_shown_as_well(
    browser: Browser, do: Do, exact: dict[str, Any], tmp_path: Path
) -> None:
    flags = exact | {"run": str(tmp_path / "run"), "layer": ("conv2",), "units": "1,4"}
    do("optimize", **flags, optimize__iterations=2)
    do("gallery", **flags)
    page = browser.open("#conv2")
    assert shown(page) == [1, 4]
    page.locator("#grid a").last.click()
    at(page, "conv2/0004")
    assert page.locator("#unit h3").all_text_contents() == ["Optimized"]


def test_keys_move_through_the_units(browser: Browser, gallery: Path) -> None:
    page = browser.open("#fc3")
    page.keyboard.press("ArrowRight")  # the first key takes hold of the grid
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    at(page, "fc3/0001")
    page.keyboard.press("ArrowRight")
    at(page, "fc3/0002")
    page.keyboard.press("ArrowLeft")
    at(page, "fc3/0001")
    page.keyboard.press("Escape")
    at(page, "fc3 ")
    assert page.evaluate("document.activeElement.hash") == "#fc3/0001"
    page.keyboard.press("f")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.keyboard.press("Escape")
    page.keyboard.press("[")
    at(page, "conv2 ")


def test_up_and_down_move_by_rows(browser: Browser, gallery: Path) -> None:
    page = browser.open("#fc3", width=400)
    columns = page.evaluate(
        "getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length"
    )
    assert 1 < columns < 10
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.hash") == f"#fc3/{columns:04d}"


def test_the_order_of_the_grid_is_that_of_the_arrows(browser: Browser, gallery: Path) -> None:
    page = browser.open("#fc3")
    page.get_by_label("Sort", exact=True).select_option("max")
    first, second = shown(page)[:2]
    page.locator("#grid a").first.click()
    at(page, f"fc3/{first:04d}")
    page.keyboard.press("ArrowRight")
    at(page, f"fc3/{second:04d}")


def test_a_picture_opens_large_and_closes_by_itself(browser: Browser, gallery: Path) -> None:
    page = browser.open("#conv1/0001")
    page.locator("#unit .zoom").first.click()
    dialog = page.get_by_role("dialog")
    playwright.expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(dialog).to_have_count(0)
    assert heading(page) == "conv1/0001"


def test_arrows_step_through_enlarged_patches_and_their_photographs(
    browser: Browser, gallery: Path
) -> None:
    page = browser.open("#conv2/0005")
    page.get_by_role("button").filter(has=page.get_by_role("img", name="patch 1")).click()
    dialog = page.get_by_role("dialog")
    playwright.expect(dialog).to_have_accessible_name(re.compile("patch 1"))
    frame = dialog.locator(".frame")
    frame.wait_for()
    places = [frame.evaluate("(node) => node.style.cssText")]
    whole, inside = dialog.locator(".whole").bounding_box(), frame.bounding_box()
    assert whole
    assert inside
    assert 0.05 < inside["width"] / whole["width"] < 1
    page.keyboard.press("ArrowRight")
    playwright.expect(dialog).to_have_accessible_name(re.compile("patch 2"))
    page.keyboard.press("ArrowRight")
    frame.wait_for()
    places.append(frame.evaluate("(node) => node.style.cssText"))
    assert places[0] != places[1]
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    playwright.expect(dialog).to_have_accessible_name(re.compile("patch 1"))
    page.keyboard.press("Escape")
    playwright.expect(dialog).to_have_count(0)
    assert heading(page) == "conv2/0005", "the unit's own keys are left alone"


def test_a_reduced_patch_is_enlarged_from_its_photograph(
    browser: Browser, gallery: Path, do: Do, exact: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(layers, "WINDOW", 4)
    monkeypatch.setattr(layers, "PAGE_FORM", "smaller")
    do("gallery", **exact | {"dataset": str(tmp_path / "images"), "run": str(tmp_path / "run")})
    page = browser.open("#conv2/0005")
    page.get_by_role("button").filter(has=page.get_by_role("img", name="patch 1")).click()
    picture = page.get_by_role("dialog").get_by_role("img", name="patch 1")
    fine = picture.locator(".crop")
    fine.wait_for()
    assert "photographs/" in fine.evaluate("(node) => node.style.backgroundImage")
    frame = page.get_by_role("dialog").locator(".frame")
    whole = page.get_by_role("dialog").locator(".whole").bounding_box()
    window, around, inside = frame.bounding_box(), fine.bounding_box(), picture.bounding_box()
    for side in ("width", "height"):  # the same share of the photograph as is framed
        shares = inside[side] / around[side], window[side] / whole[side]
        assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_the_pictures_of_one_unit_are_downloaded_from_a_server(
    browser: Browser, gallery: Path
) -> None:
    page = browser.open("#conv2/0005")
    link = page.get_by_role("link", name="download")
    assert link.get_attribute("download") == "conv2-0000-0007.png"
    handler = partial(SimpleHTTPRequestHandler, directory=str(gallery))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        other = browser.browser.new_context().new_page()
        other.goto(f"http://127.0.0.1:{server.server_port}/#conv2/0005")
        with other.expect_download() as download:
            other.get_by_role("link", name="download").click()
        server.shutdown()
    assert download.value.suggested_filename == "conv2-0005.png"
    own, sheet = Image.open(download.value.path()), Image.open(gallery / "conv2" / "0000.png")
    height = sheet.height // 8
    expected = np.asarray(sheet)[5 * height : 6 * height]
    assert np.array_equal(np.asarray(own.convert("RGB")), expected)


def test_the_units_that_feed_one_are_links_with_pictures(browser: Browser, gallery: Path) -> None:
    page = browser.open("#conv2/0005")
    circuit = page.locator(".circuit")
    links = circuit.get_by_role("link")
    assert links.count() > 4
    titles = [text.rstrip("?").strip() for text in circuit.locator("h4").all_text_contents()]
    assert titles[0].startswith("Fed by")
    circuit.get_by_role("button", name="What is this?").first.click()
    playwright.expect(circuit.locator(".told").first).to_be_visible()
    first = links.first.get_attribute("href")
    assert first
    assert first.startswith("#conv1/")
    links.first.click()
    at(page, first[1:])
    assert "sees the image itself" in page.locator(".circuit").inner_text()
    place = page.locator("#unit .zoom").filter(has=page.locator(".mask")).first
    place.hover()
    shown = place.locator(".mask").evaluate("(node) => getComputedStyle(node).opacity")
    assert shown == "1"


def test_how_images_compare_with_the_best_photograph_stands_beside_each(
    browser: Browser, gallery: Path
) -> None:
    page = browser.open()
    assert re.fullmatch(r"\d+ · \d+\.\d\d ×", page.locator(".paired bdi").first.inner_text())
    page = browser.open("#conv2?show=optimized, style 3")
    beside = page.locator("#grid .under bdi").all_text_contents()
    assert all(re.fullmatch(r"−?\d+\.\d\d ×|–", text) for text in beside)
    assert "ratio to the best photograph" in page.locator("#found").inner_text()
    page.get_by_label("Sort", exact=True).select_option("ratio")
    beside = page.locator("#grid .under bdi").all_inner_texts()
    ratios = [float(text.split()[0].replace("−", "-")) for text in beside if text != "–"]
    assert ratios == sorted(ratios, reverse=True)
    page.locator("#grid a").first.click()
    first = page.locator("#unit .pane .text").first
    assert first.inner_text().endswith(f" · {ratios[0]:.2f} ×")
    pane = page.locator("#unit figcaption").first
    pane.get_by_role("button", name="What is this?").click()
    playwright.expect(pane.locator(".told")).to_contain_text("gradient ascent")


def test_all_pictures_are_there_in_print(browser: Browser, gallery: Path) -> None:
    page = browser.open("", width=900)
    below = "document.querySelectorAll('#overview .crop:not([style*=background])').length"
    page.set_viewport_size({"width": 900, "height": 120})
    page.reload()
    page.locator("#overview .crop").first.wait_for()
    assert page.evaluate(below) > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(below) == 0
    page.emulate_media(media="print")
    assert not page.locator(".side").is_visible()


def test_light_and_dark(browser: Browser, gallery: Path) -> None:
    colours = "getComputedStyle(document.body).backgroundColor"
    dark = browser.open(scheme="dark")
    night = dark.evaluate(colours)
    page = browser.open()
    day = page.evaluate(colours)
    assert night != day
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(colours) == night
    page.reload()
    assert page.evaluate(colours) == night


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("address", ["", "#conv1", "#conv1/0000", "#fc3/0002"])
def test_it_is_readable_at_every_width(
    width: int, address: str, browser: Browser, gallery: Path
) -> None:
    page = browser.open(address, width)
    assert is_narrow_enough(page)
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll("section:not([hidden]) *")]
        .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3))
        .map((node) => parseFloat(getComputedStyle(node).fontSize)))"""
    )
    assert smallest >= 11


def test_a_search_finds_units_of_all_layers_the_best_first(browser: Browser, gallery: Path) -> None:
    page = browser.open("#conv2/0005")
    results = page.locator("#results a")
    page.keyboard.press("/")
    page.get_by_label("Class, name or unit").fill("CLASS1")
    playwright.expect(results.first).to_be_visible()
    shares = [text.split(" of ")[0] for text in page.locator("#results bdi").all_text_contents()]
    assert shares == sorted(shares, key=int, reverse=True)
    layers = {text.split("/")[0] for text in results.locator(".number").all_text_contents()}
    assert layers == {"conv1", "conv2", "fc3"}
    page.get_by_label("Class, name or unit").fill("fc3 7")
    playwright.expect(results).to_have_count(1)
    page.keyboard.press("Enter")
    at(page, "fc3/0007")
    page.keyboard.press("/")
    page.get_by_label("Class, name or unit").fill("conv")
    playwright.expect(results).to_have_count(2)  # layers, as no class has this name
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    at(page, "conv1 ")
    page.keyboard.press("/")
    page.get_by_label("Class, name or unit").fill("no such class")
    playwright.expect(page.locator("#results-told")).to_have_text("Nothing has that name.")
    page.keyboard.press("Escape")
    playwright.expect(page).to_have_url(re.compile("#conv1$"))


def test_a_view_is_in_the_address(browser: Browser, gallery: Path) -> None:
    page = browser.open("#fc3")
    page.get_by_label("Sort", exact=True).select_option("max")
    page.get_by_label("Show", exact=True).select_option("patches")
    page.get_by_label("Filter by class or name").fill("class1")
    playwright.expect(page).to_have_url(re.compile("class1"))
    wanted, hash_ = shown(page), page.evaluate("location.hash")
    assert hash_ == "#fc3?sort=max&show=patches&filter=class1"
    for again in (page, browser.open(hash_)):
        again.reload()
        again.locator("#grid a").first.wait_for()
        assert shown(again) == wanted
        assert again.get_by_label("Show", exact=True).input_value() == "patches"
    page.locator("#grid a").first.click()
    at(page, f"fc3/{wanted[0]:04d}")
    assert page.evaluate("location.hash").endswith("?sort=max&show=patches&filter=class1")
    other = browser.open("#fc3?sort=nonsense&find=fc3/3")
    playwright.expect(other.locator("#results a")).to_have_count(1)
    assert other.get_by_label("Sort", exact=True).input_value() == "number"


def test_a_quiz_is_answered_by_keys_kept_and_downloaded(
    browser: Browser, gallery: Path, do: Do, exact: dict[str, Any], tmp_path: Path
) -> None:
    flags = exact | {"dataset": str(tmp_path / "images"), "run": str(tmp_path / "run")}
    do("topk", **flags | {"topk__sample": 12})
    do("gallery", **flags)
    page = browser.open("#quiz")
    quiz = page.locator("#quiz")
    playwright.expect(quiz.locator(".choices button")).to_have_count(2)
    page.keyboard.press("ArrowRight")
    playwright.expect(quiz).to_contain_text("Question 2 of")
    quiz.get_by_role("button", name="left").press("Enter")
    playwright.expect(quiz).to_contain_text("Question 3 of")
    page.reload()
    playwright.expect(quiz).to_contain_text("Question 3 of")
    with page.expect_download() as download:
        quiz.get_by_text("Download").click()
    rows = [line.split("\t") for line in Path(download.value.path()).read_text().splitlines()]
    assert rows[0] == ["unit", "explanation", "left", "right", "chosen", "right_answer"]
    assert [row[4] for row in rows[1:]] == ["right", "left"]
    for _ in range(40):
        if quiz.locator(".choices").count() == 0:
            break
        told = quiz.locator("p").first.text_content()
        page.keyboard.press("ArrowLeft")
        playwright.expect(quiz.locator("p").first).not_to_have_text(str(told))
    playwright.expect(quiz).to_contain_text("are right")


def test_every_control_has_a_name(browser: Browser, gallery: Path) -> None:
    for address in ("", "#fc3", "#fc3/0001"):
        page = browser.open(address)
        controls = page.locator("a:visible, button:visible, input:visible, select:visible").all()
        assert len(controls) > 5
        for control in controls:
            assert control.evaluate(
                """(node) => node.ariaLabel || node.innerText.trim()
                || node.querySelector("[aria-label]")?.ariaLabel"""
            )


# a layer as wide as AlexNet's fc6


@pytest.fixture
def wide(do: Do, exact: dict[str, Any], tmp_path: Path, photographs: Callable[..., Path]) -> Path:
    """The gallery of a layer of 4,096 units, whose optimized images are noise."""
    Path("wide.py").write_text(
        "from torch import nn\n"
        f"def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, {WIDE}))\n"
    )
    folder = photographs(tmp_path / "images", 12, classes=3)
    flags = exact | {"model": "wide:wide", "dataset": str(folder), "run": str(tmp_path / "run")}
    do("topk", **flags)
    draw = np.random.default_rng(0)
    block: dict[str, NDArray[Any]] = {
        "image": draw.normal(0, 20, (WIDE, 1, 32, 32, 3)).astype(np.float16),
        "activation": draw.random((WIDE, 1), np.float32),
        "start": np.zeros((WIDE, 1), np.float32),
        "best_step": np.ones((WIDE, 1), np.int32),
        "outcome": draw.integers(1, 4, (WIDE, 1)).astype(np.int8),
        "history": np.zeros((WIDE, 1, 2), np.float32),
        "unit": np.arange(WIDE, dtype=np.int32),
    }
    with open_session(Plan.make(None, flags), Report(quiet=True)) as session:
        layer = session.layers[0]
        noise = Optimized({"history": 1}, block["unit"], (1, 32, 32), 2, [block])
        file = OptimizedFile(session.run.optimized(layer.alias))
        file.publish(session.header(layer), {"3": noise})
    do("gallery", **flags | {"workers": None})
    return tmp_path / "run" / "gallery"


def test_a_layer_of_4096_units_opens_soon_and_scrolls(
    browser: Browser, wide: Path, record_property: Callable[[str, object], None]
) -> None:
    page = browser.open()
    seconds = page.evaluate(
        """async () => {
          const start = performance.now();
          location.hash = "#fc1";
          const next = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          const first = () => document.querySelector("#grid a .crop");
          while (!first()?.style.backgroundImage) await next();
          await next();
          return (performance.now() - start) / 1000;
        }"""
    )
    record_property("seconds", seconds)
    print(f"a layer of {WIDE} units is open after {seconds:.2f} s")
    assert seconds < 6  # 0.5 to 1 by itself; machines are busy
    assert page.locator("#grid a").count() == WIDE
    sheets = sum("grid" in path.name for path in browser.files)
    assert sheets < 10, "pictures far below are loaded although nobody looks at them"
    slowest = page.evaluate(
        """async () => {
          let last = performance.now(), slowest = 0;
          for (let top = 0; top < document.body.scrollHeight; top += 2000) {
            scrollTo(0, top);
            await new Promise(requestAnimationFrame);
            slowest = Math.max(slowest, performance.now() - last);
            last = performance.now();
          }
          return slowest / 1000;
        }"""
    )
    print(f"the slowest frame while scrolling took {slowest:.3f} s")
    assert slowest < 1
    page.get_by_label("Sort", exact=True).select_option("max")
    page.get_by_label("Filter by class or name").fill("class1")
    page.locator("#grid a").first.wait_for()
    assert is_narrow_enough(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Search all layers").click()
    page.get_by_label("Class, name or unit").fill("class1")
    page.locator("#results a").first.wait_for()
    milliseconds = page.evaluate(
        """() => {
          const field = document.getElementById("find");
          field.value = "class2";
          const start = performance.now();
          field.dispatchEvent(new Event("input"));
          return performance.now() - start;
        }"""
    )
    print(f"a search of {WIDE} units took {milliseconds:.0f} ms")
    assert milliseconds < 100 * WIDE / 1000
