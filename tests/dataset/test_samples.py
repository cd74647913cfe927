"""WebDataset's tars: one image of each sample, with the class that it states."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def tar(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def paths(manifest: Manifest) -> list[str]:
    return [manifest.path(i).partition(".tar/")[2] for i in range(len(manifest))]


def test_numbers_beside_images_are_their_labels(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    tar(root / "0.tar", {"0.jpg": b"a", "0.cls": b"10\n", "1.cls": b"2", "1.jpg": b"bb"})
    tar(root / "1.tar", {"2.jpg": b"ccc", "2.json": b'{"label": 0}', "3.jpg": b"d"})
    manifest = Manifest.scan(root)
    assert manifest.labels.tolist() == [10, 2, 0, -1]
    assert manifest.classes == tuple(map(str, range(11)))
    assert manifest.level == "stated"
    assert manifest.passed_over == {}
    assert [manifest.read(i) for i in range(4)] == [b"a", b"bb", b"ccc", b"d"]


def test_names_beside_images_are_sorted_classes(tmp_path: Path) -> None:
    names = {"x/0.cls": b"dog", "y/1.json": b'{"class": "cat", "caption": "-"}', "2.cls": b""}
    images = {"x/0.jpg": b"", "y/1.jpg": b"", "2.jpg": b""}
    path = tar(tmp_path / "0.tar", dict(sorted((images | names).items())))
    manifest = Manifest.scan(path)
    assert manifest.classes == ("cat", "dog")
    assert dict(zip(paths(manifest), manifest.labels.tolist(), strict=True)) == {
        "x/0.jpg": 1,
        "y/1.jpg": 0,
        "2.jpg": -1,
    }
    assert Manifest.scan(path, "first").classes == ("x", "y")


def test_large_numbers_are_names_in_their_order(tmp_path: Path) -> None:
    labels = {"0.cls": b"900000000", "1.cls": b"7", "2.cls": b"80"}
    images = {f"{n}.jpg": b"" for n in range(3)}
    manifest = Manifest.scan(tar(tmp_path / "a.tar", dict(sorted((images | labels).items()))))
    assert manifest.classes == ("7", "80", "900000000")
    assert manifest.labels.tolist() == [2, 0, 1]


def test_a_mask_is_no_image_of_its_own(tmp_path: Path) -> None:
    sample = {"0.jpg": b"", "0.seg.png": b"", "0.depth.png": b"", "0.txt": b"a dog"}
    manifest = Manifest.scan(tar(tmp_path / "a.tar", sample))
    assert paths(manifest) == ["0.jpg"]
    assert manifest.passed_over == {"further images of a sample": 2, "not images": 1}
    both = {"1.png": b"", "1.jpg": b"", "1.cls": b"3"}
    assert paths(Manifest.scan(tar(tmp_path / "b.tar", both))) == ["1.jpg"]


def test_dots_in_plain_names_drop_nothing(tmp_path: Path) -> None:
    names = ("a/x.1.jpg", "a/x.2.jpg", "a/y.jpg", "a/y.png", "b/z.JPG")
    manifest = Manifest.scan(tar(tmp_path / "a.tar", dict.fromkeys(names, b"")))
    assert paths(manifest) == list(names)
    assert manifest.passed_over == {}


def test_what_a_tar_holds_besides_is_counted(tmp_path: Path) -> None:
    contents = {"a/": b"", "b/": b"", "a/0": PNG, "a/1": b"text", "a/.x.jpg": b"", "c/2.tar": b""}
    path = tar(tmp_path / "a.tar", contents | {"a/3.cls": b"1", "a/huge.json": b"{" * 9})
    manifest = Manifest.scan(path)
    assert paths(manifest) == ["a/0"]
    assert manifest.classes == ("a", "b")
    assert manifest.passed_over == {
        "archives inside archives": 1,
        "hidden": 1,
        "labels without an image": 1,
        "not images": 2,
    }


@pytest.mark.parametrize("label", [b"\xff\xfe", b"x" * (1 << 21)])
def test_a_label_that_cannot_be_read_is_refused(label: bytes, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"0.jpg": b"", "0.cls": label})
    with pytest.raises(UsageError, match=r"a\.tar: 0\.cls, the label of an image, cannot be read"):
        Manifest.scan(path)


def test_a_tar_of_tars_says_what_to_do(tmp_path: Path) -> None:
    inner = tar(tmp_path / "n01440764.tar", {"0.JPEG": b""}).read_bytes()
    path = tar(tmp_path / "train.tar", {"n01440764.tar": inner, "n01443537.tar": inner})
    with pytest.raises(UsageError, match=r"such as n01440764\.tar, and no images; unpack it once"):
        Manifest.scan(path)


def test_a_folder_of_compressed_tars_says_what_it_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    (root / "0.tar.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no images .*; passed over: 1 compressed archives"):
        Manifest.scan(root)
    tar(root / "0.tar", {"0.jpg": b""})
    assert Manifest.scan(root).passed_over == {"compressed archives": 1}


def test_as_the_library_writes_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number in range(4):
            writer.write({"__key__": f"k{number}", "jpg": b"x", "seg.png": b"y", "cls": number})
    manifest = Manifest.scan(tmp_path)
    assert paths(manifest) == [f"k{number}.jpg" for number in range(4)]
    assert manifest.labels.tolist() == [0, 1, 2, 3]


def test_folders_that_only_hold_class_folders_are_no_classes(tmp_path: Path) -> None:
    names = (
        "pets/",
        "pets/cats/",
        "pets/cats/1.jpg",
        "pets/dogs/",
        "pets/dogs/2.jpg",
        "pets/owls/",
    )
    path = tar(tmp_path / "pets.tar", dict.fromkeys(names, b""))
    for level in ("auto", "own", "2", "2+"):
        assert Manifest.scan(path, level).classes == ("cats", "dogs", "owls")
    more = ("a/", "a/apt/", "a/apt/outdoor/", "a/apt/outdoor/1.jpg", "b/", "b/bar/", "b/bar/2.jpg")
    places = Manifest.scan(tar(tmp_path / "places.tar", dict.fromkeys(more, b"")))
    assert places.classes == ("apt/outdoor", "bar")
