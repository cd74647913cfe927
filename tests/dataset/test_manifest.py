"""The list of images against Python's own sort of paths written by hand."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnvis_cli.dataset import manifest as module
from cnnvis_cli.dataset.containers import read_file
from cnnvis_cli.dataset.decode import decode
from cnnvis_cli.dataset.kinds import Found, Unreadable
from cnnvis_cli.dataset.manifest import Manifest, root_of
from cnnvis_cli.errors import StorageError, UsageError
from cnnvis_cli.nouns import Preprocessing

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


def paths(manifest: Manifest) -> list[str]:
    return [manifest.path(index) for index in range(len(manifest))]


def fill(root: Path, names: Sequence[str]) -> Path:
    """Files of 0, 1, 2, ... bytes."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * number)
    return root


def tar(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files in an order that is no sorted one."""
    return fill(tmp_path / "images", PATHS)


def test_images_come_in_the_order_of_sorted(root: Path) -> None:
    manifest = Manifest.scan(root)
    assert paths(manifest) == sorted(IMAGES)
    assert len(manifest) == len(IMAGES)
    assert manifest.sizes.tolist() == [PATHS.index(path) for path in sorted(IMAGES)]
    assert manifest.offsets.tolist() == [-1] * len(IMAGES)


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
    assert paths(manifest) == sorted([*IMAGES, name])
    assert manifest.read(paths(manifest).index(name)) == b"x"


def test_a_folder_that_contains_itself_is_walked_once(root: Path) -> None:
    (root / "a" / "loop").symlink_to(root)
    (root / "c").symlink_to(root / "b")  # a second name for the same class
    assert paths(Manifest.scan(root)) == sorted(IMAGES)


def test_linked_images_and_folders_count(tmp_path: Path, root: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "class").symlink_to(root / "b")
    (linked / "one.jpg").symlink_to(root / "loose.jpeg")
    manifest = Manifest.scan(linked)
    assert paths(manifest) == ["class/10.JPG", "class/2.jpg", "one.jpg"]
    assert manifest.sizes.tolist() == [1, 0, PATHS.index("loose.jpeg")]


@pytest.mark.parametrize("name", ["gone.jpg", "gone", "class.v2", "images.tar", "b/circle.png"])
def test_a_link_that_leads_nowhere_is_named(name: str, root: Path) -> None:
    """Its image, or all images of its class or archive, may be on a disk that is away."""
    target = root / name if "circle" in name else root / "away"
    (root / name).symlink_to(target)
    with pytest.raises(StorageError, match=rf"1 of its links .* such as '{name}'; .* bring back"):
        Manifest.scan(root)
    (root / name).unlink()
    (root / ".hidden").symlink_to(target)
    assert paths(Manifest.scan(root)) == sorted(IMAGES)


def test_a_folder_that_goes_while_it_is_listed_is_no_wrong_dataset(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = module._of_one_folder

    def going(place: Path, *arguments: Any) -> Any:
        if place != root:
            shutil.rmtree(root / "b", ignore_errors=True)
        return before(place, *arguments)

    monkeypatch.setattr(module, "_of_one_folder", going)
    with pytest.raises(StorageError, match=r"b/?: cannot be listed \(No such file"):
        Manifest.scan(root)


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


def test_hidden_names_and_run_directories_are_passed_over(root: Path) -> None:
    fill(root, (".hidden/a.jpg", "a/.b.jpg", "run/figures/c.png", "run/run.json"))
    assert paths(Manifest.scan(root)) == sorted(IMAGES)


def test_images_by_another_suffix_or_none(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", ("a.JFIF", "b.jpe", "notes", "c.part", "README.md"))
    contents = {"d": "JPEG", "e": "PNG", "f": "GIF", "g": "WEBP", "h": "TIFF"}
    for name, kind in contents.items():
        Image.new("RGB", (4, 4)).save(root / name, kind)
    os.mkfifo(root / "pipe")
    manifest = Manifest.scan(root)
    assert paths(manifest) == ["a.JFIF", "b.jpe", *contents]
    assert manifest.passed_over == {"not images": 4}
    for index in range(2, 7):
        assert decode(manifest.read(index), SMALL).shape == (16, 16, 3)
    inside = {name: (root / name).read_bytes() for name in ("d", "notes", "h")}
    for path in (tar(tmp_path / "x.tar", inside), zipped(tmp_path / "x.zip", inside)):
        packed = Manifest.scan(path)
        assert [p.rpartition("/")[2] for p in paths(packed)] == ["d", "h"]
        assert packed.passed_over == {"not images": 1}


def test_a_format_that_is_not_read_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "images", ("a.jpg", "b.HEIC", "c.avif", "d.jp2"))
    monkeypatch.setattr("cnnvis_cli.dataset.decode.formats", lambda: ("JPEG", "HEIF"))
    manifest = Manifest.scan(root)
    assert paths(manifest) == ["a.jpg", "b.HEIC"]
    words = {kind.partition(",")[0]: count for kind, count in manifest.passed_over.items()}
    assert words == {"AVIF": 1, "JPEG 2000": 1}
    monkeypatch.setattr("cnnvis_cli.dataset.decode.formats", lambda: ("JPEG",))
    assert paths(Manifest.scan(root)) == ["a.jpg"]
    (root / "a.jpg").unlink()
    with pytest.raises(UsageError, match=r"1 HEIC \(pip install 'cnnvis\[heic\]' reads it\)"):
        Manifest.scan(root)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "bare"])
def test_a_disk_that_fails_while_it_is_listed_is_not_the_datasets_fault(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "images", ("a/1.jpg", "b/image"))
    places = {
        "tar": tar(tmp_path / "x.tar", {"a.jpg": b"x"}),
        "zip": zipped(tmp_path / "x.zip", {"a.jpg": b"x"}),
    }

    def fail(*_arguments: object, **_settings: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    name = {"folder": "os.scandir", "tar": "tarfile.TarFile.next", "bare": "os.pread"}
    monkeypatch.setattr(name.get(kind, "zipfile.ZipFile.infolist"), fail)
    with pytest.raises(StorageError, match=r"[Ii]nput/output error"):
        Manifest.scan(places.get(kind, root))


def test_the_digest_of_plain_class_folders_is_what_it_was(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", ("b/2.jpg", "a/1.jpg", "a/0.png", "c/deep/3.jpg"))
    before = "c37faae2acd2fbae5bf4d7a1bda61293a56a448bdf6ff52438c7a6ad8acd4472"
    assert Manifest.scan(root).digest == before
    fill(root, ("a/notes.txt", "b/.hidden", "again.tar.gz"))
    assert Manifest.scan(root).digest == before


CHARACTERS = "ab-/\udc80\udcff\ue000\U0001f600é"  # bytes that are no UTF-8 sort between others


@given(st.lists(st.text(st.sampled_from(CHARACTERS), max_size=9), max_size=9))
@settings(deadline=None)
def test_rows_in_any_order_become_python_s_order(names: list[str]) -> None:
    rows = [(name + ".jpg", number, -1, ()) for number, name in enumerate(names)]
    columns, _ = module._arranged(iter(rows), Found())
    last = {path: number for path, number, _, _ in rows}
    assert [os.fsdecode(path) for path in columns[0]] == sorted(last)
    assert columns[1].tolist() == [last[path] for path in sorted(last)]


def test_the_order_does_not_hang_on_the_blocks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Manifest.scan(root)
    monkeypatch.setattr(module, "ROWS_AS_ARRAYS", 2)
    parts = Manifest.scan(root)
    assert paths(parts) == paths(whole)
    assert parts.labels.tolist() == whole.labels.tolist()
    assert parts.digest == whole.digest


def test_a_manifest_is_its_arrays(root: Path) -> None:
    one = Manifest.scan(root)
    wider = one.paths.astype(f"S{one.paths.itemsize + 7}")  # as some other file might store them
    other = Manifest(one.root, wider, one.sizes.copy(), one.offsets, one.labels, one.classes)
    assert other.digest == one.digest
    assert paths(other) == paths(one)
    for index in range(len(one)):
        assert other.read(index) == one.read(index)
    again = pickle.loads(pickle.dumps(one))
    assert (paths(again), again.digest) == (paths(one), one.digest)


def test_a_list_of_which_nothing_is_there_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("n01/a.jpg 0\nn02/b.jpg 1\n")  # as Caffe has them, with labels
    with pytest.raises(UsageError, match=r"none of its 2 images is there.*one path per line"):
        Manifest.scan(listed)


def test_the_digest_knows_names_sizes_and_classes_and_no_more(root: Path) -> None:
    one = Manifest.scan(root)
    sizes, names = one.sizes.copy(), one.paths.copy()
    sizes[3] += 1
    names[0] = names[0].replace(b"1", b"2")
    assert replace(one, sizes=sizes).digest != one.digest
    assert replace(one, paths=names).digest != one.digest
    assert replace(one, labels=one.labels + 1).digest != one.digest
    assert replace(one, classes=(*one.classes, "z")).digest != one.digest
    assert replace(one, offsets=one.offsets + 9).digest == one.digest


SMALL = Preprocessing(resize=16, crop=(16, 16))


def same_images(folder: Path, to: Path) -> dict[str, Path]:
    """Return a folder of class folders as every kind of dataset."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    contents = {name: (folder / name).read_bytes() for name in reversed(names)}
    (folder / "list.txt").write_text("\n".join(reversed(names)))
    return {
        "list": folder / "list.txt",
        "tar": tar(to / "images.tar", contents),
        "zip": zipped(to / "images.zip", contents),
        "folder of tar": tar(to / "shards" / "0.tar", contents).parent,
        "folder of zip": zipped(to / "zips" / "0.ZIP", contents).parent,
    }


@pytest.mark.parametrize("kind", ["list", "tar", "zip", "folder of tar", "folder of zip"])
def test_the_same_images_in_another_form(
    kind: str, tmp_path: Path, photographs: Callable[..., Path]
) -> None:
    folder = photographs(tmp_path / "images", 7, classes=3)
    wanted, dataset = Manifest.scan(folder), same_images(folder, tmp_path)[kind]
    found = Manifest.scan(dataset)
    assert root_of(dataset) == found.root
    assert found.classes == wanted.classes
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.sizes.tolist() == wanted.sizes.tolist()
    prefix = {"list": "", "tar": "images.tar/", "zip": "images.zip/"}.get(kind)
    if prefix is not None:
        assert paths(found) == [prefix + path for path in paths(wanted)]
    for index in range(len(wanted)):
        assert found.read(index) == wanted.read(index)
        assert decode(found.read(index), SMALL).std() > 1


def test_classes_are_pooled_over_folders_and_containers(root: Path) -> None:
    tar(root / "b" / "shard.tar", {"m/1.jpg": b"1", "a/2.jpg": b"22", "3.jpg": b"333"})
    zipped(root / "more.zip", {"./zoo/deep/4.jpg": b"4444", "/abs/5.jpg": b"", "../6.jpg": b""})
    manifest = Manifest.scan(root)
    classes = [*manifest.classes, "none"]
    labels = {p: classes[label] for p, label in zip(paths(manifest), manifest.labels, strict=True)}
    assert manifest.classes == ("B", "a", "a-b", "abs", "b", "m", "two\nlines", "zoo", "zoë")
    assert {p: c for p, c in labels.items() if p not in IMAGES} == {
        "b/shard.tar/m/1.jpg": "m",
        "b/shard.tar/a/2.jpg": "a",
        "b/shard.tar/3.jpg": "none",
        "more.zip/zoo/deep/4.jpg": "zoo",
        "more.zip//abs/5.jpg": "abs",
        "more.zip/../6.jpg": "none",
    }
    for index, path in enumerate(paths(manifest)):
        assert (manifest.offsets[index] < 0) == (path in IMAGES)
        assert len(manifest.read(index)) == manifest.sizes[index]


def test_a_folder_may_be_named_like_a_container(tmp_path: Path) -> None:
    tar(tmp_path / "data" / "a.tar" / "b.zip" / "c.tar", {"d.tar/x.jpg": b"content"})
    fill(tmp_path / "data" / "a.tar", ("y.jpg", "z.jpg"))
    manifest = Manifest.scan(tmp_path / "data")
    assert paths(manifest) == ["a.tar/b.zip/c.tar/d.tar/x.jpg", "a.tar/y.jpg", "a.tar/z.jpg"]
    assert [manifest.read(index) for index in range(3)] == [b"content", b"", b"x"]
    assert manifest.classes == ("a.tar", "d.tar")


def test_a_list_says_what_its_lines_say(root: Path, tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "else where", ("0.jpg", "1.jpg")) / "1.jpg"
    lines = [
        "# a comment",
        "",
        "b/10.JPG\r",
        "  ./b/10.JPG ",
        str(elsewhere),
        "a/deep/er/x.webp",
        "../else where/1.jpg",
        "./loose.jpeg",
        "zoë/naïve café.tiff",
    ]
    text = "\n".join(lines).encode() + b"\n\xff\xfe.jpg"
    (root / os.fsdecode(b"\xff\xfe.jpg")).touch()
    (root / "some.lst").write_bytes(b"\xef\xbb\xbf" + text)
    manifest = Manifest.scan(root / "some.lst")
    assert manifest.root == root
    classes = (*manifest.classes, None)
    labels = {p: classes[label] for p, label in zip(paths(manifest), manifest.labels, strict=True)}
    assert labels == {
        "../else where/1.jpg": "else where",
        str(elsewhere): "else where",
        "a/deep/er/x.webp": "er",
        "b/10.JPG": "b",
        "loose.jpeg": None,
        "zoë/naïve café.tiff": "zoë",
        "\udcff\udcfe.jpg": None,
    }
    assert paths(manifest) == sorted(labels)
    sizes = dict(zip(paths(manifest), manifest.sizes.tolist(), strict=True))
    assert (sizes[str(elsewhere)], sizes["b/10.JPG"]) == (1, 1)


@pytest.mark.parametrize("line", ["missing/9.jpg", "b", "b/10.JPG 7", "b/10.JPG\0", "x" * 300])
def test_a_line_of_a_list_that_names_no_file_is_named(line: str, root: Path) -> None:
    images = root / "some.lst"
    images.write_text(f"loose.jpeg\n{line}\n")
    if line == "b":
        (root / "b").rename(root / "away")
    with pytest.raises(StorageError) as found:
        Manifest.scan(images)
    told = str(found.value)
    assert "1 of its 2 files" in told
    assert repr(line) in told
    assert "bring back" in told


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_unreadable_and_never_blocks(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "image.jpg"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    (tmp_path / "list.txt").write_text("image.jpg\n")
    with pytest.raises(Unreadable) as found:
        Manifest.scan(tmp_path / "list.txt").read(0)
    assert str(found.value) == "not a regular file"


@pytest.mark.parametrize("name", ["status", "pagemap", "mem"])
def test_files_of_the_system_are_unreadable_and_never_endless(name: str, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").symlink_to(f"/proc/self/{name}")
    with pytest.raises(
        (Unreadable, StorageError), match=r"changes while it is read|input/output error"
    ):
        Manifest.scan(tmp_path).read(0)


def test_a_file_that_becomes_a_fifo_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, image = tmp_path / "image.jpg", tmp_path / "before.jpg"
    os.mkfifo(fifo)
    image.write_bytes(b"x")
    before = image.stat()
    monkeypatch.setattr(Path, "stat", lambda _path: before)
    with pytest.raises(Unreadable, match="not a regular file"):
        read_file(fifo)


def test_a_socket_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("image.jpg")
        with pytest.raises(Unreadable, match="not a regular file"):
            Manifest.scan(tmp_path).read(0)


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "list.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match=r"list\.txt: has a line of over 4096 bytes"):
        Manifest.scan(tmp_path / "list.txt")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "image.jpg").open("wb") as file:
        file.truncate(1 << 40)  # bytes, all of them a hole
    manifest = Manifest.scan(tmp_path)
    assert manifest.sizes.tolist() == [1 << 40]
    with pytest.raises(Unreadable, match="too large"):
        manifest.read(0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.tar.gz", b"x", r"is compressed; unpack it \(gunzip --keep images.tar.gz\)"),
        ("images.tgz", b"x", "is compressed"),
        ("images.doc", b"x", r"give a folder, a list \(.txt, .lst\) or a file \(.tar, .zip, .parq"),
        ("nowhere.txt", None, "no such folder or file"),
        ("empty.txt", b"# nothing\n\n", "holds no images"),
        ("long.txt", b"a" * 5000 + b".jpg", "over 4096 bytes"),
        ("empty.tar", b"", "broken at byte 0"),
        ("empty.zip", b"", "is not a complete zip"),
    ],
)
def test_what_is_no_dataset_is_refused(
    file: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=message) as found:
        Manifest.scan(tmp_path / file)
    assert len(str(found.value).splitlines()) == 1


def test_a_container_in_a_folder_that_is_no_file_is_refused(root: Path) -> None:
    os.mkfifo(root / "fifo.tar")
    with pytest.raises(UsageError, match=r"fifo\.tar: is not a regular file"):
        Manifest.scan(root)


def test_labels_are_of_the_types_that_are_stored(root: Path) -> None:
    manifest = Manifest.scan(root)
    assert manifest.paths.dtype.kind == "S"
    assert manifest.sizes.dtype == manifest.offsets.dtype == np.int64
    assert manifest.labels.dtype == np.int32
