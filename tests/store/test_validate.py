"""HDF5 files in a run directory that cnnvis did not write: one clear line, and nothing followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cnnvis_cli import histogram
from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.nouns import Axis, Layer, ReceptiveField
from cnnvis_cli.store.hdf5 import stored_key
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.schema import PLACES, TOPK_LAYER
from cnnvis_cli.store.search import SearchFile
from cnnvis_cli.store.spectrum_file import SpectrumFile
from cnnvis_cli.store.topk import TopK
from cnnvis_cli.store.topk_file import Images, LayerResult, TopKFile
from cnnvis_cli.store.validate import strangers
from tests.sealing import seal_again

PLAN = {"model": "m", "weights_sha256": "w", "k": 2, "precision": "float32", "decode": "exact"}
FIELD = ReceptiveField(Axis(5, 2, 0), Axis(5, 2, 0))
LENGTHS = {"C": 3, "Q": len(histogram.LEVELS), "bins": len(histogram.edges()) - 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A topk.h5 of one layer, three channels and two images, as cnnvis writes it."""
    images = Images(
        np.array([b"a.jpg", b"b.jpg"]),
        *(np.zeros(2, dtype) for dtype in ("i4", "?", "i8", "u4", "i8")),
    )
    image = np.array([[0, 1], [1, 0], [0, -1]])
    places = TopK.of(np.ones((3, 2), np.float32), image, image * 0, image * 0, 2)
    arrays = {
        name: np.zeros([LENGTHS[axis] for axis in column.axes], column.dtype)
        for name, column in TOPK_LAYER.items()
        if name not in PLACES
    }
    layer = Layer("conv1", "features.0", "conv", 3, (4, 4), FIELD)
    file = TopKFile(tmp_path / "topk.h5")
    plan = {**PLAN, "preprocessing": {}, "layers": ["conv1"]}
    file.publish(plan, images, [LayerResult(layer, places, None, arrays)])
    return file.path


def read(path: Path) -> None:
    """All that anybody reads of it."""
    file = TopKFile(path)
    assert file.identity() is not None
    assert file.summary() == (2, 0)
    assert len(file.images().path) == 2
    for alias in file.layers():
        assert file.layer(alias).box.shape == (3, 2, 4)
        assert len(file.histogram(alias)) == 3


def test_our_own_file_is_read(path: Path) -> None:
    read(path)


LAYER = "layers/conv1"


def swap(file: h5py.File, name: str, **settings: Any) -> None:
    """Another dataset under a name."""
    del file[name]
    file.create_dataset(name, **settings)


def put(file: h5py.File, name: str, value: object) -> None:
    del file[name]
    file[name] = value


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 2))
    del file[f"{LAYER}/activation"]
    file.create_virtual_dataset(f"{LAYER}/activation", layout)


def nested(file: h5py.File) -> None:
    file["layers/again"] = file["layers"]


def chunked(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, "chunks": (1,) * len(shape)}


ATTACKS: dict[str, Callable[[h5py.File], None]] = {
    "external link": lambda f: put(f, LAYER, h5py.ExternalLink("other.h5", "/")),
    "external link to an array": lambda f: put(
        f, f"{LAYER}/activation", h5py.ExternalLink("other.h5", "x")
    ),
    "external images": lambda f: put(f, "images", h5py.ExternalLink("other.h5", "/")),
    "external statistics": lambda f: put(f, f"{LAYER}/stats", h5py.ExternalLink("other.h5", "/")),
    "soft link": lambda f: put(f, f"{LAYER}/image", h5py.SoftLink("/layers/conv1/box")),
    "dangling link": lambda f: put(f, f"{LAYER}/image", h5py.SoftLink("/nowhere")),
    "virtual dataset": virtual,
    "numbers of another file": lambda f: swap(
        f, f"{LAYER}/activation", shape=(3, 2), dtype="f4", external=[("secret", 0, 24)]
    ),
    "group for an array": lambda f: put(f, f"{LAYER}/activation", f["images"]),
    "array for a group": lambda f: put(f, LAYER, np.zeros(3)),
    "wrong type": lambda f: put(f, f"{LAYER}/activation", np.zeros((3, 2), "f8")),
    "words": lambda f: put(f, "images/size", np.array([b"a", b"b"])),
    "objects": lambda f: swap(f, "images/path", shape=(2,), dtype=h5py.special_dtype(vlen=bytes)),
    "too few axes": lambda f: put(f, f"{LAYER}/activation", np.zeros(3, "f4")),
    "too few channels": lambda f: put(f, f"{LAYER}/image", np.zeros((2, 2), "i8")),
    "five edges": lambda f: put(f, f"{LAYER}/box", np.zeros((3, 2, 5), "i4")),
    "nothing at all": lambda f: swap(f, "images/size", data=h5py.Empty("i8")),
    "terabytes": lambda f: swap(f, "images/size", **chunked((1 << 40,), "i8")),
    "exabytes": lambda f: swap(f, f"{LAYER}/histogram", **chunked((3, 1 << 58), "i8")),
    "missing": lambda f: f.__delitem__(f"{LAYER}/box"),
    "unlisted image": lambda f: f[f"{LAYER}/image"].__setitem__((0, 0), 2),
    "image below none": lambda f: f[f"{LAYER}/image"].__setitem__((0, 0), -2),
    "endless window": lambda f: f[f"{LAYER}/box"].__setitem__((0, 0, 2), 2**31 - 1),
    "window inside out": lambda f: f[f"{LAYER}/box"].__setitem__((0, 0, 2), -(2**31)),
    "plan of no JSON": lambda f: f.attrs.__setitem__("plan", "{"),
    "plan of a number": lambda f: f.attrs.__setitem__("plan", "7"),
    "empty plan": lambda f: f.attrs.__setitem__("plan", "{}"),
    "nested plan": lambda f: f.attrs.__setitem__("plan", "[" * 50_000),
    "plan of bytes": lambda f: f.attrs.__setitem__("plan", np.zeros(3)),
    "count of words": lambda f: f.attrs.__setitem__("images", "many"),
    "no order": lambda f: f[LAYER].attrs.__delitem__("order"),
    "the layers in themselves": nested,
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_file_of_somebody_else_is_one_line(kind: str, path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["x"] = np.zeros((3, 2), "f4")
    path.with_name("secret").write_bytes(bytes(24))
    with h5py.File(path, "r+") as file:
        ATTACKS[kind](file)
    seal_again(path)
    with pytest.raises(CnnvisError, match=r"topk\.h5: .*(delete it and run again)") as found:
        read(path)
    assert found.value.exit_code == 1
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("value", [np.zeros(3), 7, b"cnnvis/topk\xff", "cnnvis/other"])
def test_a_format_that_is_none_is_refused(value: object, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = value
    with pytest.raises(CnnvisError, match=r"topk\.h5: is not a cnnvis/topk file"):
        read(path)
    assert stored_key(path, "topk") is None


def test_a_fifo_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "topk.h5")
    with pytest.raises(CnnvisError, match="is a pipe"):
        read(tmp_path / "topk.h5")
    with pytest.raises(CnnvisError, match="is a pipe"):
        stored_key(tmp_path / "topk.h5", "saliency")


READERS = {
    "optimized": lambda path: OptimizedFile(path).styles(),
    "projected": lambda path: ProjectedFile(path).methods(),
    "search": lambda path: SearchFile(path).searches(),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_link_among_styles_and_methods_is_not_followed(kind: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.attrs["format"] = f"cnnvis/{kind}"
        file["one"] = h5py.ExternalLink("other.h5", "/")
    with pytest.raises(CnnvisError, match=r"file\.h5: .*/one is a link"):
        READERS[kind](tmp_path / "file.h5")


def test_a_damaged_file_is_read_or_one_line(path: Path) -> None:
    """A few bytes changed anywhere; most of the file is under checksums."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        with suppress(CnnvisError, AssertionError):  # what nobody can tell from another file
            read(path)


NONSENSE = [b"", b"7", b"[]", b"null", b'{"format": 5}', b"\xff", b"{" * 9, b'"cnnvis/run"']


@pytest.mark.parametrize("content", NONSENSE)
def test_a_run_json_of_nonsense_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(CnnvisError, match=r"run\.json: ") as found:
        Run(tmp_path).read()
    assert found.value.exit_code == 2
    assert len(str(found.value).splitlines()) == 1


def test_arrays_at_the_top_of_a_file_are_checked_too(tmp_path: Path) -> None:
    """spectrum.h5, and the maps of single images."""
    path = tmp_path / "spectrum.h5"
    arrays = {
        "magnitude": np.zeros((3, 4, 3), np.float32),
        "colour": np.eye(3, dtype=np.float32),
        "offset": np.zeros(3, np.float32),
    }
    plan = {"model": "m", "weights_sha256": "w", "preprocessing": {}, "images": 1, "dataset": "d"}
    file = SpectrumFile(path)
    file.publish(plan, arrays, 4)
    first = path.read_bytes()
    assert file.read()[0].keys() == arrays.keys()
    assert strangers(path, "spectrum") == []
    file.publish(plan, arrays, 4)
    assert path.read_bytes() == first
    for wrong in (np.zeros((3, 2), np.float32), np.eye(3)):
        with h5py.File(path, "r+") as opened:
            del opened["colour"]
            opened["colour"] = wrong
        seal_again(path)
        with pytest.raises(CnnvisError, match="colour"):
            file.read()
