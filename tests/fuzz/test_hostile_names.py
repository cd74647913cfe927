"""A hundred names that no sane person gives to a file, through the real command line."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from PIL import Image

from cnnvis_cli.cli import _code

NAMES: tuple[str, ...] = (  # of folders, and with .png behind them of files; \udcXX is a bare byte
    *("two\nlines", "\n", "end\n", "tab\there", "\t", "\r", "over\rwritten", "\r\n"),
    *("\x1b[2J", "\x1b]0;title\x07", "\x1b[31mred", "\udc9b2J", "\x9b2J", "\x07", "\x08\x08"),
    *("\x7f", "\x01\x02\x03", "\x0c", "\x0b", "\x1f", "\x85", "\xa0"),
    *("<script>alert(1)<", "<img src=x onerror=y>", "<!--", "&amp;", "a&b", "<b>", "]]>"),
    *("'", '"', "`id`", "'; rm -rf *", '"quoted"', "it's", "$(id)", "${x}", "$HOME"),
    *("a..", "a....b", "a..%2f..%2fb", "x\\..\\..", "%2e%2e", "a:b", "C:"),
    *("-", "--", "-rf", "--help", "--run=x", "-v", "@file", "+x", "=1+1"),
    *("%s", "%n%n%n", "%(x)s", "{}", "{0}", "{x!r}", "{0.__class__}", "%"),
    *("back\\slash", "\\", "\\n", "\\x1b", "\\\\server", "a\\tb"),
    *(" ", "  ", " lead", "trail ", "a b  c", "CON", "NUL", "aux", "LPT1"),
    *("*", "?", "[a-z]", "~", "~root", "!", "#comment", "|cat", ">out", "a;b", "a,b"),
    *("\udcff\udcfe", "caf\udce9", "\udced\udca0\udc80", "\udcc0\udcaf", "a\udcffb", "\udc80"),
    *("\u202eexe", "\u202dx", "\u2066a\u2069", "\u200ea", "a\u2028b", "\ufeffbom"),
    *("😀", "👩\u200d👧", "日本語", "ערב", "a\u0301\u0302\u0303", "ﷺ", "\U000e0041"),
    *(unicodedata.normalize(form, "é") for form in ("NFC", "NFD")),
    *("n" * 251, "é" * 125, "\udcff" * 251, "con.jpg", "x.png", "run.json", "a.tar"),
)
UNUSABLE = ("\x1b[2J", "two\nlines\t", "\u202e", "\udcff\x9b", "back\\nslash")
HIDDEN = (".png", "...png", ".. .png", "..\n/x.png")  # begin with a dot: passed over
FLAGS = ("--model", "demo", "--run", "run", "--device", "cpu", "--log", "log.txt")
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Told(NamedTuple):
    code: int
    text: str  # of stdout, stderr and the log file together


Call = Callable[..., Told]


@pytest.fixture
def cnnvis(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """The command, as a shell would start it."""

    def call(*arguments: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["cnnvis", *arguments, *FLAGS])
        capfdbinary.readouterr()
        code = _code()
        out, err = capfdbinary.readouterr()
        log = Path("log.txt")
        said = out + err + (log.read_bytes() if log.exists() else b"")
        return Told(code, said.decode("utf-8", "surrogateescape"))

    return call


@pytest.fixture
def images() -> Path:
    """A file and a class folder of each name, and some that hold no picture."""
    rng, folder = np.random.default_rng(0), Path("images")
    names = [f"{name}.png" for name in NAMES] + [f"{name}/image.png" for name in NAMES]
    for name in (*names, *HIDDEN, *(f"{name}.jpg" for name in UNUSABLE)):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(buffer, "PNG")
        place.write_bytes(b"no picture" if name.endswith(".jpg") else buffer.getvalue())
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_there_are_a_hundred_names() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 100


def test_a_dataset_of_hostile_names(images: Path, cnnvis: Call) -> None:
    listed = sorted(
        [f"{name}.png" for name in NAMES]
        + [f"{name}/image.png" for name in NAMES]
        + [f"{name}.jpg" for name in UNUSABLE]
    )
    before = files(Path.cwd().parent)
    small = ("--layer", "conv1", "--units", "0-3")
    single = [f"images/{name}.png" for name in (*NAMES[::9], *NAMES[-14:])]
    single += [f"images/{name}.jpg" for name in UNUSABLE]
    allowed = Path("allowed.toml")
    allowed.write_text("topk = {max-unreadable = 1}\n")
    for command in (
        ("topk", "images", "--layer", "conv1", "--workers", "0", "--config", "allowed.toml"),
        ("project", *small),
        ("montage", "top", "--pdf", *small),
        ("activations", *single, "--layer", "conv1", "--config", "allowed.toml"),
        ("saliency", *single, "--method", "gradient", "--config", "allowed.toml"),
        ("occlude", *single[:2], *single[-2:], "--stride", "60", "--config", "allowed.toml"),
    ):
        told = cnnvis(*command)
        assert told.code == 0, told.text[-2000:]
        assert not CONTROL.findall(told.text), command
    with h5py.File("run/topk.h5") as file:
        assert [os.fsdecode(path) for path in file["images/path"][()]] == listed
        assert file.attrs["skipped"] == len(UNUSABLE)
    lines = Path("run/skipped.tsv").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    assert len(lines) == len(UNUSABLE) + 1
    assert all(line.count("\t") == 1 for line in lines[:-1])
    places = ("cwd/run/", "cache/")  # of the run, and of what is kept between commands
    inside = {name for name in files(Path.cwd().parent) if name.startswith(places)}
    assert files(Path.cwd().parent) - inside - before == {"cwd/allowed.toml", "cwd/log.txt"}
    figures = files(Path("run/figures"))
    assert len(figures) >= 3 * len(single) / 2
    assert not any(CONTROL.search(name) for name in files(Path("run")))
    assert all(
        path.resolve().is_relative_to(Path("run").resolve()) for path in Path("run").rglob("*")
    )


def test_hostile_names_in_errors(images: Path, cnnvis: Call) -> None:
    for name in NAMES[::4]:
        told = cnnvis("topk", f"nowhere/{name}", "--layer", f"conv{name}")
        assert told.code == 2
        assert not CONTROL.findall(told.text), name


@pytest.mark.parametrize("command", ["topk", "saliency"])
def test_a_name_longer_than_any_file_s(command: str, cnnvis: Call) -> None:
    told = cnnvis(command, "x" * 5000)
    assert told.code == 2
    assert "cannot be listed" in told.text or "no such image" in told.text
