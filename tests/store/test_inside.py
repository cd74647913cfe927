"""A run directory from elsewhere: nothing in it is followed, opened or deleted that is not ours."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnvis_cli import api
from cnnvis_cli.errors import UsageError
from cnnvis_cli.store.inside import check_inside, open_regular

Cnnvis = Callable[..., Any]
FILES = ("run.json", "topk.h5", "skipped.tsv", ".lock", "styles.toml", "optimized/conv1.h5")
DEEPER = ("receipts/x.json", "parts/topk/x/000000.h5", "shards/1of2.json", ".failed", ".progress")
FOLDERS = ("figures", "gallery", "optimized", "parts", "receipts", "gallery/conv9")
COMMANDS = (
    *("topk images --model demo --run {}", "optimize --model demo --run {}", "gallery --run {}"),
    *("montage optimized --run {}", "status {}", "verify {}", "merge {} --run whole"),
    *("project --run {}", "filters --run {}", "search --run {} --layer conv1"),
    *("saliency images --run {}", "occlude images --run {}", "activations images --run {}"),
)


def link(path: Path) -> None:
    path.symlink_to(Path("home/keys").absolute())


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def listening(path: Path) -> None:
    """Make a socket; its address may be short only."""
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "link": (link, "is a link"),
    "dangling": (dangling, "is a link"),
    "pipe": (os.mkfifo, "is a pipe"),
    "socket": (listening, "is a socket"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a file or a folder of each kind, of which nothing needs to be read."""
    run = tmp_path_factory.mktemp("made") / "r"
    for name in (*FILES, *DEEPER, "gallery/conv1/0000.jpg", "figures/top/conv1.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    return run


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder of the user's; it must stay as it is."""
    home = Path("home")
    (home / "photos").mkdir(parents=True)
    Path("images").mkdir()
    (home / "keys").write_text("key\n")
    for name in ("0001.jpg", "layer.js", "conv1.png", ".x.h5.0123456789ab.tmp"):
        (home / "photos" / name).write_text("p")
    before = state(home)
    yield home
    assert state(home) == before


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, *DEEPER])
def test_what_is_no_file_is_refused_by_name(
    name: str, kind: str, small: Path, outside: Path, cnnvis: Cnnvis
) -> None:
    shutil.copytree(small, "r")
    place, (make, said) = Path("r", name), KINDS[kind]
    place.unlink()
    make(place)
    for line in ("gallery --run r", "status r", "verify r"):
        told = cnnvis(line, code=2)
        assert f"{place}: {said}" in told.err.replace(str(Path.cwd()) + "/", "")
    assert place.is_symlink() == (said == "is a link")


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("name", ["figures", "gallery/conv9", "run.json", ".lock"])
def test_every_command_refuses_a_link(
    line: str, name: str, small: Path, outside: Path, cnnvis: Cnnvis
) -> None:
    shutil.copytree(small, "r")
    place = Path("r", name)
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to((outside / ("keys" if name in FILES else "photos")).absolute())
    assert f"{name}: is a link" in cnnvis(line.format("r"), code=2).err


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_a_link_is_refused(
    name: str, small: Path, outside: Path, cnnvis: Cnnvis
) -> None:
    shutil.copytree(small, "r")
    if Path("r", name).exists():
        shutil.rmtree(Path("r", name))
    Path("r", name).symlink_to((outside / "photos").absolute())
    assert f"r/{name}: is a link" in cnnvis("gallery --run r", code=2).err
    with pytest.raises(UsageError, match="only the run directory itself may be a link"):
        api.open_run("r").layers  # noqa: B018


def test_the_run_directory_itself_may_be_a_link(small: Path) -> None:
    shutil.copytree(small, "disk/r")
    Path("r").symlink_to("disk/r")
    Path("disk/r/mine").symlink_to("/dev/null")  # a name that cnnvis does not use
    check_inside(Path("r"))


def test_a_folder_that_cannot_be_listed_is_refused(small: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    shutil.copytree(small, "r")
    Path("r/figures").chmod(0o333)
    with pytest.raises(Exception, match="cannot be listed"):
        check_inside(Path("r"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_after_the_look_is_not_opened(kind: str, outside: Path) -> None:
    KINDS[kind][0](Path("x"))
    with pytest.raises(UsageError, match=KINDS[kind][1]):
        open_regular(Path("x"))


def test_a_lock_with_another_name_elsewhere_is_not_emptied(outside: Path, cnnvis: Cnnvis) -> None:
    Path("r").mkdir()
    os.link("home/keys", "r/.lock")
    cnnvis("gallery --run r", code=2)


def test_only_what_a_gallery_made_is_dropped(plans: None, cnnvis: Cnnvis) -> None:
    cnnvis("optimize --model demo --layer conv1 --units 0,1 --iterations 2 --run r")
    kept = [Path("r/gallery/conv9/0001.jpg"), Path("r/gallery/.mine.tmp")]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    cnnvis("gallery --run r")
    assert [path.read_text() for path in kept] == ["mine", "mine"]
    figure = Path("r/figures/optimized/conv1_page2.png")
    figure.parent.mkdir(parents=True)
    figure.write_text("mine")
    cnnvis("montage optimized --run r --layer conv1")
    assert figure.read_text() == "mine"


def test_a_folder_of_the_users_stays_as_it_was(outside: Path, cnnvis: Cnnvis) -> None:
    cnnvis("gallery --run home", code=2)
    cnnvis("optimize --model demo --run home", code=2)
    assert {path.name for path in outside.iterdir()} == {"keys", "photos"}
