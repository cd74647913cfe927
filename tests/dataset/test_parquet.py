"""Parquet files as the Hugging Face hub has them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import cnnvis_cli
from cnnvis_cli.dataset.kinds import Unreadable
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import StorageError, UsageError

pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")

NAMES = ["tench", "dog", "cat", "owl"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(path: Path, contents: list[bytes | None], group: int = 10, **columns: Any) -> Path:
    """Write images with columns of labels; a tuple (values, names) is a column of classes."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    data: dict[str, Any] = {
        "image": pa.array([{"bytes": content, "path": "x.jpg"} for content in contents], IMAGE)
    }
    for name, values in columns.items():
        if isinstance(values, tuple):
            features[name] = {"_type": "ClassLabel", "names": values[1]}
        data[name] = values[0] if isinstance(values, tuple) else values
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(data).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(made, path, row_group_size=group, write_batch_size=8, use_dictionary=False)
    return path


def contents(count: int) -> list[bytes | None]:
    return [b"image %d" % number for number in range(count)]


def test_rows_are_images_with_their_classes(tmp_path: Path) -> None:
    for shard in range(2):
        labels = ([2, 0, -1, None, 2] * 5, NAMES)
        table(tmp_path / "data" / f"train-{shard}.parquet", contents(25), label=labels)
    manifest = Manifest.scan(tmp_path / "data")
    assert manifest.path(26) == "train-1.parquet/000000001"
    assert manifest.labels.tolist() == [2, 0, -1, -1, 2] * 10
    assert manifest.classes == tuple(NAMES)
    assert manifest.level == "stated"
    order = [*range(50), 3, 49, 24, 0, 11, 10, 9, 30]  # forwards, and back and forth
    for index in order:
        assert manifest.read(index) == b"image %d" % (index % 25)
    one = Manifest.scan(tmp_path / "data" / "train-1.parquet")
    assert [one.read(index) for index in range(25)] == contents(25)


@pytest.mark.parametrize(
    ("columns", "classes", "labels"),
    [
        ({"label": [3, 0, 3]}, ("0", "1", "2", "3"), [3, 0, 3]),
        ({"label": ["b", "a", "b"]}, ("a", "b"), [1, 0, 1]),
        (
            {"fine_label": ([1, 0, 1], NAMES), "coarse_label": ([0, 0, 0], ["x"])},
            tuple(NAMES),
            None,
        ),
        ({"mood": ([1, 0, 1], NAMES)}, tuple(NAMES), [1, 0, 1]),
        ({"young": ([1, 0, 1], ["n", "y"]), "tall": ([1, 0, 1], ["n", "y"])}, (), [-1] * 3),
        ({"caption": ["a", "b", "c"]}, (), [-1] * 3),
    ],
)
def test_the_column_of_classes(
    columns: dict[str, Any], classes: tuple[str, ...], labels: list[int] | None, tmp_path: Path
) -> None:
    manifest = Manifest.scan(table(tmp_path / "a.parquet", contents(3), **columns))
    assert manifest.classes == classes
    assert manifest.labels.tolist() == (labels or [1, 0, 1])


@pytest.mark.parametrize("value", [4, -2, 1 << 40])
def test_a_label_outside_the_names_of_the_classes_is_refused(value: int, tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", contents(3), label=([0, value, 1], NAMES))
    with pytest.raises(UsageError, match=f"row 1 has the label {value}, .* the classes 0 to 3"):
        Manifest.scan(path)


@pytest.mark.parametrize(
    ("labels", "passed"),
    [
        ([0.0, 1.0, 2.0], {"columns of labels that are neither numbers nor names": 1}),
        ([True, False, True], {"columns of labels that are neither numbers nor names": 1}),
        ([[0, 1], [1], []], {"columns of labels that are neither numbers nor names": 1}),
        (([0.0, None, 1.5], NAMES), {"labels that are neither numbers nor names": 2}),
        ([0, -3, -1], {"labels that are neither numbers nor names": 1}),
    ],
)
def test_labels_that_cannot_be_used_are_counted(
    labels: Any, passed: dict[str, int], tmp_path: Path
) -> None:
    manifest = Manifest.scan(table(tmp_path / "a.parquet", contents(3), label=labels))
    assert manifest.passed_over == passed
    assert set(manifest.labels.tolist()) <= {-1, 0}


def test_a_column_of_plain_bytes_is_one_of_images_by_its_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"one", b"two"], "cls": [4, 5]}), tmp_path / "a.parquet")
    manifest = Manifest.scan(tmp_path)
    assert [manifest.read(1), manifest.read(0)] == [b"two", b"one"]
    assert manifest.labels.tolist() == [4, 5]


def test_files_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", contents(1), label=([0], ["cat"]))
    table(tmp_path / "b.parquet", contents(1), label=([0], ["dog"]))
    with pytest.raises(UsageError, match=r"\.parquet: names other classes"):
        Manifest.scan(tmp_path)


def test_several_columns_of_images_are_refused_by_name(tmp_path: Path) -> None:
    pictures = pa.array([{"bytes": b"x", "path": ""}], IMAGE)
    pq.write_table(pa.table({"left": pictures, "right": pictures}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"several columns of images \(left, right\)"):
        Manifest.scan(tmp_path)


def test_a_row_without_bytes_is_unreadable(tmp_path: Path) -> None:
    manifest = Manifest.scan(table(tmp_path / "a.parquet", [b"x", None]))
    with pytest.raises(Unreadable, match="holds no bytes"):
        manifest.read(1)
    assert manifest.read(0) == b"x"


def test_a_table_without_images_is_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    pq.write_table(pa.table({"caption": ["a"], "label": [1]}), root / "captions.parquet")
    with pytest.raises(UsageError, match="1 Parquet files without images"):
        Manifest.scan(root / "captions.parquet")
    (root / "a.jpg").write_bytes(b"x")
    assert Manifest.scan(root).passed_over == {"Parquet files without images": 1}


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "a.parquet", contents(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'cnnvis\[parquet\]'"):
        Manifest.scan(tmp_path)


def test_a_broken_file_is_refused_and_a_damaged_row_unreadable(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", [os.urandom(4000) for _ in range(20)])
    manifest, whole = Manifest.scan(path), path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match=r"a\.parquet: is not a complete Parquet file"):
        Manifest.scan(path)
    path.unlink()
    path.write_bytes(whole[:8] + bytes(2000) + whole[2008:])
    with pytest.raises(Unreadable, match="is damaged in its Parquet file"):
        manifest.read(0)
    path.unlink()
    with pytest.raises(StorageError, match="no such file"):
        manifest.read(0)


def test_rows_that_a_file_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.parquet", contents(50))
    monkeypatch.setattr("cnnvis_cli.dataset.parquet.ROWS_PER_BYTE", 0.001)
    with pytest.raises(UsageError, match=r"50 rows in \d+ bytes"):
        Manifest.scan(path)


def test_a_huge_row_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.scan(table(tmp_path / "a.parquet", [b"x" * 2000]))
    monkeypatch.setattr("cnnvis_cli.dataset.containers.LARGEST_IMAGE", 1000)
    with pytest.raises(Unreadable, match="too large: 2000 bytes"):
        manifest.read(0)


def test_a_file_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """A group of 200 MB never is in memory at once."""
    from cnnvis_cli.dataset.parquet import read_image

    big = [os.urandom(1 << 16) * 16 for _ in range(200)]
    path = table(tmp_path / "a.parquet", list(big), group=200)
    status = path.stat()
    version = (status.st_dev, status.st_ino)
    size = len(big[0])
    del big
    before = pa.total_allocated_bytes()
    highest = 0
    for row in range(0, 200, 5):
        assert len(read_image(str(path), version, row)) == size
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert highest < 100 << 20


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_rows_is_one_on_files(
    workers: int, do: Any, exact: dict[str, Any], photographs: Any, tmp_path: Path
) -> None:
    files = sorted(photographs(tmp_path / "images", 21).rglob("*.png"))
    labels = ([number % 4 for number in range(21)], NAMES)
    table(tmp_path / "a.parquet", [file.read_bytes() for file in files], group=6, label=labels)
    runs = {"rows": tmp_path / "a.parquet", "files": tmp_path / "images"}
    found = {}
    for name, dataset in runs.items():
        flags = exact | {"dataset": str(dataset), "run": str(tmp_path / name), "workers": workers}
        do("topk", **flags)
        do("project", **flags, layer=("conv2",), units="0,3")
        with h5py.File(tmp_path / name / "topk.h5") as file:
            about = file["layers/conv2"]
            found[name] = [about[key][()] for key in ("activation", "image", "position")]
        with h5py.File(tmp_path / name / "projected" / "conv2.h5") as file:
            found[name].append(file["deconv/projection"][()])
    for rows, plain in zip(found["rows"], found["files"], strict=True):
        assert np.array_equal(rows, plain, equal_nan=True)
    places = cnnvis_cli.open(tmp_path / "rows", trust_code=True)["conv2/0000"].strongest
    assert [each.class_name for each in places[:3]] == [
        NAMES[int(each.path.rpartition("/")[2]) % 4] for each in places[:3]
    ]
