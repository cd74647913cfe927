"""The list of images against Python's own sort of a folder walked by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError

PATHS = (
    "b/2.jpg",
    "b/10.JPG",
    "B/1.png",
    "a/deep/er/x.webp",
    "a/deep.png",
    "a-b/0.gif",
    "loose.jpeg",
    "zoë/naïve café.tiff",
    "two\nlines/tab\there.bmp",
    "notes.txt",
    "a/readme",
    "a/image.jpg.part",
)
IMAGES = tuple(p for p in PATHS if p not in ("notes.txt", "a/readme", "a/image.jpg.part"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files in an order that is no sorted one."""
    root = tmp_path / "images"
    for number, path in enumerate(PATHS):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * number)
    return root


def test_images_come_in_the_order_of_sorted(root: Path) -> None:
    manifest = Manifest.scan(root)
    assert manifest.paths == tuple(sorted(IMAGES))
    assert len(manifest) == len(IMAGES)
    assert manifest.sizes == tuple(PATHS.index(path) for path in sorted(IMAGES))


def test_labels_count_the_sorted_class_folders(root: Path) -> None:
    manifest = Manifest.scan(root)
    folders = sorted({path.split("/")[0] for path in IMAGES if "/" in path})
    assert manifest.classes == tuple(folders)
    wanted = [folders.index(p.split("/")[0]) if "/" in p else -1 for p in sorted(IMAGES)]
    assert manifest.labels.tolist() == wanted
    assert -1 in wanted


def test_a_flat_folder_has_no_labels(tmp_path: Path, photographs: Callable[..., Path]) -> None:
    manifest = Manifest.scan(photographs(tmp_path / "images", 3) / "class0")
    assert manifest.classes == ()
    assert manifest.labels.tolist() == [-1, -1, -1]


def test_a_name_that_is_no_utf8_is_an_image_like_any_other(root: Path) -> None:
    name = os.fsdecode(b"b/\xff\xfe.jpg")
    (root / name).write_bytes(b"x")
    manifest = Manifest.scan(root)
    assert name in manifest.paths
    assert len(manifest.digest) == 64


def test_a_folder_that_contains_itself_is_walked_once(root: Path) -> None:
    (root / "a" / "loop").symlink_to(root)
    (root / "c").symlink_to(root / "b")  # a second name for the same class
    assert sorted(Manifest.scan(root).paths) == sorted(IMAGES)


def test_linked_images_and_folders_count(tmp_path: Path, root: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "class").symlink_to(root / "b")
    (linked / "one.jpg").symlink_to(root / "loose.jpeg")
    (linked / "gone.jpg").symlink_to(root / "nowhere")
    manifest = Manifest.scan(linked)
    assert manifest.paths == ("class/10.JPG", "class/2.jpg", "gone.jpg", "one.jpg")
    assert manifest.sizes == (1, 0, 0, PATHS.index("loose.jpeg"))


def test_the_digest_is_that_of_paths_and_sizes(root: Path) -> None:
    digest = Manifest.scan(root).digest
    assert Manifest.scan(root).digest == digest
    root.rename(root.with_name("moved"))
    moved = root.with_name("moved")
    assert Manifest.scan(moved).digest == digest
    (moved / "notes.txt").write_text("another text")
    assert Manifest.scan(moved).digest == digest
    (moved / "loose.jpeg").write_bytes(b"longer than before")
    longer = Manifest.scan(moved).digest
    (moved / "loose.jpeg").rename(moved / "b" / "loose.jpeg")
    assert len({digest, longer, Manifest.scan(moved).digest}) == 3


@pytest.mark.parametrize("case", ["missing", "a file", "empty", "no images"])
def test_a_dataset_without_images_is_named(case: str, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    if case == "a file":
        root.touch()
    elif case != "missing":
        root.mkdir()
    if case == "no images":
        (root / "a").mkdir()
        (root / "a" / "notes.txt").touch()
    with pytest.raises(UsageError, match="dataset"):
        Manifest.scan(root)
