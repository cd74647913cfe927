"""The wheel: all of the package and nothing else; and it works where there is no checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from email import message_from_string
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest

import cnnvis_cli

ROOT = Path(cnnvis_cli.__file__).parents[1]
CHECKOUT = ("cnnvis_cli", "tests", "configs", "pyproject.toml", "README.md", "LICENSE")
SETUPTOOLS = 77  # the first that reads the licence of pyproject.toml


def _setuptools() -> int:
    """Return its major version; 0 where it is not installed."""
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


pytestmark = [
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="this is no checkout"),
    pytest.mark.skipif(
        _setuptools() < SETUPTOOLS, reason=f"building offline needs setuptools {SETUPTOOLS} here"
    ),
]


def call(*words: object, folder: Path) -> str:
    """Return what a program prints; it finds nothing of this checkout, and no index of packages."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**environment, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from a clean copy, without the network and with the setuptools of here."""
    folder = tmp_path_factory.mktemp("wheel")
    copy, out = folder / "copy", folder / "out"
    copy.mkdir()
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    call(*pip, "--wheel-dir", out, copy, folder=folder)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def held(wheel: Path) -> dict[str, str]:
    """The wheel's files; of those about it, what they say."""
    with ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/")]
        about = {name for name in names if ".dist-info/" in name}
        return {name: file.read(name).decode() if name in about else "" for name in names}


def said(held: dict[str, str], ending: str) -> str:
    """Return the text of the one file of the wheel with this ending."""
    (name,) = (name for name in held if name.endswith(ending))
    return held[name]


@pytest.fixture
def metadata(held: dict[str, str]) -> Message:
    return message_from_string(said(held, ".dist-info/METADATA"))


def test_it_holds_the_package_and_nothing_else(held: dict[str, str]) -> None:
    """No tests, no settings; what the code reads beside itself is there: weights, the gallery."""
    there = {name for name in held if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "cnnvis_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    }
    assert there == here
    assert {
        "cnnvis_cli/py.typed",
        "cnnvis_cli/demo/demo.safetensors",
        "cnnvis_cli/demo/demo.json",
        "cnnvis_cli/figure/gallery/index.html",
        "cnnvis_cli/figure/gallery/gallery.js",
        "cnnvis_cli/figure/gallery/gallery.css",
        "cnnvis_cli/figure/gallery/icon.svg",
    } <= there


def test_it_says_what_it_is(wheel: Path, held: dict[str, str], metadata: Message) -> None:
    release = cnnvis_cli.__version__
    assert wheel.name == f"cnnvis-{release}-py3-none-any.whl"
    assert (metadata["Name"], metadata["Version"]) == ("cnnvis", release)
    assert metadata["License-Expression"] == "MIT"
    assert said(held, ".dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    entries = said(held, ".dist-info/entry_points.txt").split("\n")
    assert entries[:2] == ["[console_scripts]", "cnnvis = cnnvis_cli.__main__:main"]


def test_it_asks_for_what_the_code_imports(metadata: Message) -> None:
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    names = {re.split(r"[^\w-]", need)[0] for need in needs}
    assert {"torch", "torchvision", "numpy", "h5py", "pillow", "click", "jinja2"} <= names
    assert {"video", "cluster", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert not names & {"pytest", "ruff", "mypy", "nbclient"}


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The folder of programs of a new environment that has the wheel.

    What cnnvis needs, torch's 5 GB above all, is not installed again: a .pth file adds this
    environment's packages behind its own. A folder that is added so is no place for .pth files, so
    that the one which makes this checkout importable here does nothing there.
    """
    place = tmp_path / "environment"
    call(sys.executable, "-m", "venv", "--without-pip", place, folder=tmp_path)
    python = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    call(*pip, "install", "--quiet", "--no-deps", wheel, folder=tmp_path)
    own = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=place)
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(own.strip()) / "needs.pth").write_text("".join(f"{path}\n" for path in paths))
    found = call(python, "-c", "import cnnvis_cli; print(cnnvis_cli.__file__)", folder=place)
    assert Path(found.strip()).is_relative_to(place)
    return place / "bin"


@pytest.mark.long
def test_the_demo_and_its_gallery_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    """Installed in an environment of its own, used in a folder of its own, seen in a browser."""
    work = tmp_path / "work"
    work.mkdir()
    release = call(installed / "cnnvis", "--version", folder=work)
    assert cnnvis_cli.__version__ in release
    told = call(installed / "cnnvis", "demo", "--quiet", folder=work)
    for picture in re.findall(r"^  (\S+\.png) ", told, re.MULTILINE):
        assert (work / picture).read_bytes().startswith(b"\x89PNG")
    assert call(installed / "cnnvis", "verify", "outputs/demo", folder=work)
    call(installed / "cnnvis", "gallery", "--run", "outputs/demo", folder=work)
    gallery = work / "outputs" / "demo" / "gallery"
    page = (gallery / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="([^"#:]+)"', page):
        assert (gallery / name).is_file(), name
    assert len(list(gallery.glob("*/layer.js"))) == 8
    opened_in_a_browser(gallery / "index.html")


def opened_in_a_browser(page: Path) -> None:
    """Where there is a Chromium: the page shows its layers, and complains of nothing."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        return
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(page.as_uri())
        tab.locator("section:not([hidden]) h2").first.wait_for()
        text = tab.inner_text("body")
        browser.close()
    assert not wrong
    assert all(name in text for name in ("conv1", "conv5", "fc8"))
