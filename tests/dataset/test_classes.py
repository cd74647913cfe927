"""One rule for label and name: which folder is the class, in the layouts that people have."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnvis_cli
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.class_names import _from_paths, class_names, names_before
from cnnvis_cli.stages.run.merge import merge
from cnnvis_cli.store.topk_file import Images


def fill(root: Path, names: Sequence[str]) -> Path:
    """Make files, and folders where a name ends in a slash."""
    for name in names:
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"x")
    return root


def classes_of(manifest: Manifest) -> dict[str, str]:
    """Return the class of each image by its path; empty without one."""
    names = (*manifest.classes, "")
    labels = manifest.labels.tolist()
    return {manifest.path(i): names[label] for i, label in enumerate(labels)}


LAYOUTS = {  # a layout: its level, and images with their classes
    "class folders": ("1", {"cats/1.jpg": "cats", "dogs/2.jpg": "dogs", "loose.jpg": ""}),
    "folders in class folders": ("1", {"cats/in/1.jpg": "cats", "dogs/out/far/2.jpg": "dogs"}),
    "one class": ("1", {"cats/1.jpg": "cats"}),
    "one class, deep": ("2", {"pets/cats/images/1.jpg": "cats"}),
    "Places365": (
        "2+",
        {
            "a/abbey/1.jpg": "abbey",
            "a/apartment_building/outdoor/1.jpg": "apartment_building/outdoor",
            "b/bazaar/outdoor/1.jpg": "bazaar/outdoor",
        },
    ),
    "Tiny-ImageNet": (
        "wordnet",
        {"n01443537/images/0.JPEG": "n01443537", "n01629819/images/0.JPEG": "n01629819"},
    ),
    "Tiny-ImageNet, all of it": (
        "wordnet",
        {
            "train/n01443537/images/0.JPEG": "n01443537",
            "val/images/0.JPEG": "",
            "test/images/0.JPEG": "",
        },
    ),
    "ImageNet": (
        "wordnet",
        {
            "train/n01440764/1.JPEG": "n01440764",
            "val/n01440764/2.JPEG": "n01440764",
            "train/n01443537/3.JPEG": "n01443537",
        },
    ),
    "ImageNet and a class beside it": ("1", {"n01440764/1.jpg": "n01440764", "own/1.jpg": "own"}),
    "splits": ("2", {"train/cats/1.jpg": "cats", "val/cats/2.jpg": "cats", "test/3.jpg": ""}),
    "a single top folder": ("2", {"pets/cats/1.jpg": "cats", "pets/dogs/2.jpg": "dogs"}),
    "a top folder and splits": ("3", {"data/train/a1/1.jpg": "a1", "data/test/b1/2.jpg": "b1"}),
    "one folder of test": ("1", {"test/1.jpg": "test"}),
    "loose": ("1", {"1.jpg": "", "2.jpg": ""}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_class_is_the_folder_that_a_person_would_name(
    layout: str, kind: str, tmp_path: Path
) -> None:
    level, wanted = LAYOUTS[layout]
    if kind == "folder":
        manifest = Manifest.scan(fill(tmp_path / "images", list(wanted)))
    else:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for name in wanted:
                archive.writestr(name, b"x")
        manifest = Manifest.scan(tmp_path / "images.zip")
        wanted = {f"images.zip/{name}": value for name, value in wanted.items()}
    assert classes_of(manifest) == wanted
    assert manifest.level == level
    assert manifest.classes == tuple(sorted(set(wanted.values()) - {""}))


def test_a_list_names_each_images_own_folder_unless_that_says_nothing(tmp_path: Path) -> None:
    for lines, level, classes in (
        (("a/b/1.jpg", f"{tmp_path}/data/c/2.jpg"), "own", ("b", "c")),
        (("x/cats/images/1.jpg", "x/dogs/images/2.jpg"), "2", ("cats", "dogs")),
        (("d/train/n01440764/1.JPEG", "d/train/n01443537/images/1.JPEG"), "wordnet", None),
    ):
        for line in (*lines, "here.jpg"):
            (tmp_path / line).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / line).write_bytes(b"x")
        (tmp_path / "list.txt").write_text("\n".join((*lines, "here.jpg")))
        manifest = Manifest.scan(tmp_path / "list.txt")
        assert manifest.level == level
        assert manifest.classes == (classes or ("n01440764", "n01443537"))


def test_ilsvrc_as_a_folder_of_tars_has_the_tars_ids(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}_1.JPEG", b"x")
    manifest = Manifest.scan(tmp_path)
    assert manifest.classes == ("n01440764", "n01443537")
    assert manifest.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        ("first", ["x", "x", "y"]),
        ("1", ["x", "x", "y"]),
        ("2", ["n01440764", "b", "c"]),
        ("2+", ["n01440764/deep", "b", "c"]),
        ("3", ["deep", "", ""]),
        ("own", ["deep", "b", "c"]),
        ("wordnet", ["n01440764", "", ""]),
        ("none", ["", "", ""]),
    ],
)
def test_a_level_can_be_asked_for(level: str, wanted: list[str], tmp_path: Path) -> None:
    root = fill(tmp_path, ("x/n01440764/deep/1.jpg", "x/b/2.jpg", "y/c/3.jpg"))
    found = classes_of(Manifest.scan(root, level))
    names = ("x/n01440764/deep/1.jpg", "x/b/2.jpg", "y/c/3.jpg")
    assert [found[name] for name in names] == wanted


@pytest.mark.parametrize("level", ["0", "second", "-1", "2++", ""])
def test_a_level_that_is_none_is_refused(level: str) -> None:
    with pytest.raises(UsageError, match="--class-level"):
        Plan.make(None, {"topk__class_level": level})


def test_a_class_folder_without_images_is_a_class(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "images", ("a/1.jpg", "b/notes.txt", "c/", "d/4.jpg", "e/deep/5.jpg", "e/f/")
    )
    manifest = Manifest.scan(root)
    assert manifest.classes == ("a", "b", "c", "d", "e")
    assert manifest.labels.tolist() == [0, 3, 4]
    own = Manifest.scan(root, "own")
    assert own.classes == ("a", "b", "c", "d", "deep", "f")


def test_a_folder_beside_loose_images_or_shards_is_no_class(tmp_path: Path) -> None:
    assert Manifest.scan(fill(tmp_path / "loose", ("1.jpg", "cache/x.txt"))).classes == ()
    root = fill(tmp_path / "shards", ("cats/1.jpg", ".git/", "__MACOSX/x"))
    (root / "more").mkdir()
    with zipfile.ZipFile(root / "more" / "0.zip", "w") as archive:
        archive.writestr("dogs/2.jpg", b"x")
        archive.writestr("owls/", b"")
    assert Manifest.scan(root).classes == ("cats", "dogs", "owls")


def test_a_folder_below_the_class_is_named_if_it_may_be_meant(tmp_path: Path) -> None:
    assert Manifest.scan(fill(tmp_path / "a", ("x/1.jpg", "y/in/2.jpg"))).deeper == "y/in"
    assert not Manifest.scan(fill(tmp_path / "b", ("x/1.jpg", "y/images/2.jpg"))).deeper


def images_of(labels: dict[str, int], packed: bool = False) -> Images:
    zeros = np.zeros(len(labels), np.int64)
    paths = np.array([name.encode() for name in labels])
    numbers = np.array(list(labels.values()), np.int32)
    offset = zeros - (0 if packed else 1)
    return Images(paths, numbers, zeros.astype(bool), zeros, zeros.astype(np.uint32), offset)


def test_names_of_a_run_from_before_are_those_that_made_its_labels() -> None:
    first = images_of({"a/abbey/1.jpg": 0, "a/airfield/1.jpg": 0, "b/bar/1.jpg": 1, "l.jpg": -1})
    assert _from_paths(first) == ["a", "b"]
    own = images_of({"x/cats/1.jpg": 0, "y/cats/1.jpg": 0, "y/dogs/1.jpg": 1})
    assert _from_paths(own) == ["cats", "dogs"]
    packed = images_of({"s/0.tar/cats/1.jpg": 0, "s/1.tar/dogs/1.jpg": 1}, packed=True)
    assert _from_paths(packed) == ["cats", "dogs"]
    unknown = images_of({"a/x/1.jpg": 0, "a/y/2.jpg": 2})
    assert _from_paths(unknown) == ["class 0", "class 1", "class 2"]


def test_a_run_says_its_classes_and_what_it_passed_over(
    do: Any, exact: dict[str, Any], photographs: Any, tmp_path: Path, capsys: Any
) -> None:
    root = photographs(tmp_path / "images" / "n02086240", 3).parent
    photographs(root / "n01443537" / "deep", 3)
    fill(root, ("n00000000/", "notes.txt", ".hidden.jpg", "old/run.json", "more.tar.gz", "x.heif2"))
    (root / "z").symlink_to(root / "n02086240")
    run = tmp_path / "run"
    exact |= {"dataset": str(root), "run": str(run), "layer": ("conv1",)}
    do("topk", **exact)
    told = " ".join(capsys.readouterr().out.split())
    assert "6 images, 0 skipped, 1 layers, 3 classes by the folder with a WordNet id" in told
    assert "(1 without an image, such as n00000000); passed over: " in told
    passed = {"compressed archives": 1, "folders linked twice": 1, "hidden": 1}
    passed |= {"not images": 2, "run directories": 1}
    assert ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items())) in told
    record = json.loads((run / "run.json").read_text())["dataset"]
    assert record["passed_over"] == passed
    assert record["class_level"] == "wordnet"
    assert record["classes"] == ["n00000000", "n01443537", "n02086240"]
    strongest = cnnvis_cli.open(run)["conv1/0000"].strongest
    for each in strongest:
        name = {"n01443537": "goldfish", "n02086240": "Shih-Tzu"}[each.path.split("/")[0]]
        assert each.class_name == name


def test_a_run_with_other_classes_says_which_level_it_has(
    do: Any, exact: dict[str, Any], photographs: Any, tmp_path: Path
) -> None:
    """As a run has that was made before folders were skipped that hold everything."""
    root = photographs(tmp_path / "images" / "pets", 4, classes=2).parent
    exact |= {"dataset": str(root), "run": str(tmp_path / "run"), "layer": ("conv1",)}
    do("topk", **exact, topk__class_level="first")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["dataset"] = {"path": str(root), "digest": record["dataset"]["digest"]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    names = [s.class_name for s in cnnvis_cli.open(tmp_path / "run")["conv1/0000"].strongest[:2]]
    assert names == ["pets", "pets"]
    before = (tmp_path / "run" / "topk.h5").read_bytes()
    with pytest.raises(UsageError, match="by the first folder; go on with --class-level first"):
        do("topk", **exact)
    do("topk", **exact, topk__class_level="first")
    assert (tmp_path / "run" / "topk.h5").read_bytes() == before


def test_images_beside_a_table_of_classes_are_told(
    do: Any, exact: dict[str, Any], photographs: Any, tmp_path: Path, capsys: Any
) -> None:
    """Tiny-ImageNet's validation images are in one folder, and their classes in a text."""
    folder = photographs(tmp_path / "val", 4).joinpath("class0").rename(tmp_path / "val" / "images")
    (folder.parent / "val_annotations.txt").write_text("000.png\tn01443537\n")
    exact |= {"dataset": str(folder.parent), "run": str(tmp_path / "run"), "layer": ("conv1",)}
    do("topk", Report(), **exact)
    assert "the folder images counts as the only class" in capsys.readouterr().err
    do("topk", Report(), **exact | {"run": str(tmp_path / "none"), "topk__class_level": "none"})
    assert "the only class" not in capsys.readouterr().err


def test_shards_hand_on_their_classes(
    do: Any, exact: dict[str, Any], photographs: Any, tmp_path: Path
) -> None:
    root = photographs(tmp_path / "images" / "pets", 8, classes=2).parent
    (root / "notes.txt").touch()
    exact |= {"dataset": str(root), "run": str(tmp_path / "run"), "layer": ("conv1",)}
    for shard in ("1/2", "2/2"):
        do("topk", **exact, shard=shard)
    plan = Plan.make(None, {"run": str(tmp_path / "run"), "trust_code": True})
    merge([tmp_path / "run"], plan, Report(quiet=True))
    record = json.loads((tmp_path / "run" / "run.json").read_text())["dataset"]
    assert (record["class_level"], record["classes"]) == ("2", ["class0", "class1"])
    assert record["passed_over"] == {"not images": 1}


def test_a_figure_is_drawn_again_only_where_its_names_are_others() -> None:
    plain = images_of({"polar_bear/1.jpg": 0, "zebra/1.jpg": 1})
    assert names_before(plain, ()) == class_names(_from_paths(plain), (), None)
    ids = images_of({"n01440764/1.jpg": 0, "n01443537/1.jpg": 1})
    own = ("tench", "goldfish")
    assert names_before(ids, own) == class_names(_from_paths(ids), own, None)
    assert names_before(ids, ()) != class_names(_from_paths(ids), (), None)
