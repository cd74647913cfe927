"""Caffe's files, written here byte by byte, and the two networks that come from that time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.caffe import read_caffemodel, read_mean
from cnnvis_cli.network.survey import find_layers
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import Blueprint, CaffeNet, blueprint

Array = NDArray[np.float32]
Layers = dict[str, list[Array]]  # name -> weight and bias

# The protocol buffers' wire format


def varint(number: int) -> bytes:
    """Seven bits a byte, the low ones first; negative numbers as 64 bits."""
    number %= 1 << 64
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def whole(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def part(field: int, content: bytes) -> bytes:
    """Return a string, a message, or numbers, prefixed by its length."""
    return varint(field << 3 | 2) + varint(len(content)) + content


# caffe.proto, as it is (2015 and after) and as it was


def blob(array: Array) -> bytes:
    """Return shape = 7 { dim = 1 }, data = 5; and diff = 6, which is never read."""
    dims = b"".join(varint(n) for n in array.shape)
    numbers = array.astype("<f4").tobytes()
    return part(7, part(1, dims)) + part(5, numbers) + part(6, numbers)


def old_blob(array: Array) -> bytes:
    """num = 1, channels = 2, height = 3, width = 4, data = 5."""
    shape = (1,) * (4 - array.ndim) + array.shape
    head = b"".join(whole(field, n) for field, n in enumerate(shape, 1))
    return head + part(5, array.astype("<f4").tobytes())


def double_blob(array: Array) -> bytes:
    """shape = 7, double_data = 8."""
    dims = b"".join(varint(n) for n in array.shape)
    return part(7, part(1, dims)) + part(8, array.astype("<f8").tobytes())


def model(layers: Layers, write: Callable[[Array], bytes] = blob) -> bytes:
    """name = 1, layer = 100 { name = 1, type = 2, bottom = 3, phase = 10, blobs = 7 }."""
    found = part(1, b"CaffeNet")
    for name, blobs in layers.items():
        head = part(1, name.encode()) + part(2, b"Convolution") + part(3, b"data") + whole(10, 1)
        found += part(100, head + b"".join(part(7, write(b)) for b in blobs))
    return found


def old_model(layers: Layers) -> bytes:
    """layers = 2 { bottom = 2, top = 3, name = 4, type = 5, blobs = 6, blobs_lr = 7 }."""
    found = part(1, b"CaffeNet")
    for name, blobs in layers.items():
        head = part(2, b"data") + part(3, b"out") + part(4, name.encode()) + whole(5, 4)
        rates = varint(7 << 3 | 5) + np.float32(2).tobytes()
        found += part(2, head + b"".join(part(6, old_blob(b)) for b in blobs) + rates)
    return found


class Small(nn.Module):
    """A corner of CaffeNet: its names, its groups, its kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.conv2 = nn.Conv2d(4, 6, 3, groups=2)
        self.fc8 = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc8(self.conv2(self.conv1(x)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def layers() -> Layers:
    generator = np.random.default_rng(0)
    shapes = {
        "conv1": [(4, 3, 5, 5), (4,)],
        "relu1": [],  # a layer without numbers
        "conv2": [(6, 2, 3, 3), (6,)],
        "fc8": [(10, 6), (10,)],
    }
    return {
        name: [generator.standard_normal(shape).astype(np.float32) for shape in both]
        for name, both in shapes.items()
    }


FORMATS: dict[str, Callable[[Layers], bytes]] = {
    "current": model,
    "before 2015": old_model,
    "double precision": lambda layers: model(layers, double_blob),
    "current layers, old shapes": lambda layers: model(layers, old_blob),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_caffemodel_is_read(form: str, layers: Layers, tmp_path: Path) -> None:
    path = tmp_path / "small.caffemodel"
    path.write_bytes(FORMATS[form](layers))
    found = read_caffemodel(path)
    expected = {
        f"{name}.{kind}": array
        for name, blobs in layers.items()
        for kind, array in zip(("weight", "bias"), blobs, strict=False)
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name].reshape(array.shape), array)
    if form in ("current", "double precision"):
        assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in expected.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_a_caffemodel_fits_a_network_with_its_names(
    form: str, layers: Layers, tmp_path: Path
) -> None:
    path = tmp_path / "small.caffemodel"
    path.write_bytes(FORMATS[form](layers))
    module, _ = load(Blueprint("small", Small), str(path))
    for name, tensor in module.state_dict().items():
        layer, kind = name.split(".")
        expected = layers[layer][("weight", "bias").index(kind)]
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_matrix_of_another_shape_does_not_fit(layers: Layers, tmp_path: Path) -> None:
    layers["fc8"][0] = layers["fc8"][0].T.copy()  # as many numbers, in another order
    path = tmp_path / "small.caffemodel"
    path.write_bytes(old_model(layers))
    with pytest.raises(UsageError, match=r"fc8\.weight is \(1, 1, 6, 10\), not \(10, 6\)"):
        load(Blueprint("small", Small), str(path))


def test_a_long_blob_is_read(tmp_path: Path) -> None:
    array = np.arange(70_000, dtype=np.float32).reshape(700, 100)  # lengths of several bytes
    path = tmp_path / "long.caffemodel"
    path.write_bytes(model({"fc": [array]}))
    np.testing.assert_array_equal(read_caffemodel(path)["fc.weight"], array)


def _blob(shape: Iterable[int], count: int) -> bytes:
    dims = b"".join(varint(n) for n in shape)
    return part(7, part(1, dims)) + part(5, bytes(4 * count))


def _old(shape: Iterable[int], count: int) -> bytes:
    return b"".join(whole(i, n) for i, n in enumerate(shape, 1)) + part(5, bytes(4 * count))


MALFORMED = {
    "nothing": b"",
    "text": b"name: 'CaffeNet'\nlayer { name: 'conv1' }\n",
    "cut off": model({"conv1": [np.ones((2, 3), np.float32)]})[:-3],
    "no weights": part(1, b"CaffeNet") + part(100, part(1, b"data")),
    "too few numbers": part(100, part(1, b"conv1") + part(7, _blob((2, 3), 5))),
    "too many numbers": part(100, part(1, b"conv1") + part(7, _blob((2, 3), 7))),
    "half a number": part(
        100, part(1, b"c") + part(7, part(7, part(1, varint(1))) + part(5, b"12345"))
    ),
    "a shape below zero": part(100, part(1, b"conv1") + part(7, _old((-1, 2, 1, 3), 6))),
    "a long shape below zero": part(100, part(1, b"conv1") + part(7, _blob((-1, 6), 6))),
    "a shape beyond counting": part(100, part(1, b"c") + part(7, _blob((1 << 32, 1 << 32), 0))),
    "a shape beyond all numbers": part(100, part(1, b"c") + part(7, _blob((0, (1 << 64) - 1), 0))),
    "a shape of too many bytes": part(
        100, part(1, b"c") + part(7, part(7, part(1, b"\xff" * 11 + b"\x01" + varint(0))))
    ),
}
MALFORMED["a shape without end"] = part(
    100, part(1, b"c") + part(7, part(7, part(1, b"\xff" * 400_000)) + part(5, bytes(4)))
)
MALFORMED["a shape of many axes"] = part(100, part(1, b"c") + part(7, _blob([1] * 400, 1)))


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_caffemodel_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(UsageError, match=re.escape(str(path))):
        read_caffemodel(path)


def test_a_damaged_caffemodel_raises_nothing_else(layers: Layers, tmp_path: Path) -> None:
    path, generator = tmp_path / "bad.caffemodel", np.random.default_rng(0)
    refused = 0
    for write in (model, old_model):
        content = write({"conv2": layers["conv2"]})
        for _ in range(300):
            damaged = bytearray(content)
            for place in generator.integers(0, 60, 3):  # where lengths and shapes are
                damaged[place] = generator.integers(256)
            path.write_bytes(damaged)
            try:
                read_caffemodel(path)
            except UsageError:
                refused += 1
    assert refused > 300


def test_a_caffemodel_of_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "long.caffemodel"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # bytes, all of them a hole
    with pytest.raises(UsageError, match=r"long\.caffemodel: not a Caffe NetParameter .*2 GB"):
        read_caffemodel(path)


def test_doubles_beyond_all_floats_are_infinite_and_quiet(tmp_path: Path) -> None:
    path = tmp_path / "huge.caffemodel"
    content = part(7, part(1, varint(1))) + part(8, np.array([1e300]).tobytes())
    path.write_bytes(part(100, part(1, b"c") + part(7, content)))
    assert read_caffemodel(path)["c.weight"].tolist() == [np.inf]


# Means


def test_a_mean_vector_is_taken_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", np.array([104.0, 116.7, 122.7]))
    assert read_mean(tmp_path / "mean.npy") == (104.0, 116.7, 122.7)


@pytest.mark.parametrize("suffix", [".npy", ".binaryproto", ".old.binaryproto"])
def test_a_mean_image_is_averaged_over_its_pixels(suffix: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(90, 130, (3, 16, 20)).astype(np.float32)
    path = tmp_path / f"mean{suffix}"
    if suffix == ".npy":
        np.save(path, image)
    else:
        path.write_bytes(old_blob(image) if "old" in suffix else blob(image))
    expected = [float(np.float64(channel).mean()) for channel in image]
    np.testing.assert_allclose(read_mean(path), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "array",
    [
        np.float64(5),
        np.ones(4),
        np.ones((16, 20, 3)),  # channels last
        np.ones((2, 3, 16, 20)),
        np.array(["a", "b", "c"]),
        np.array([1j, 2j, 3j]),
        np.array([{}, {}, {}], dtype=object),
        np.ones((3, 0, 5)),
        np.array([1.0, np.nan, 1.0]),
    ],
    ids=["number", "four", "last", "two", "words", "complex", "objects", "empty", "nan"],
)
def test_a_mean_of_another_shape_or_kind_is_refused(array: object, tmp_path: Path) -> None:
    path = tmp_path / "mean.npy"
    np.save(path, np.asarray(array))
    with pytest.raises(UsageError, match=re.escape(str(path))):
        read_mean(path)


@pytest.mark.parametrize("suffix", [".npy", ".binaryproto"])
@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"PK\x03\x04", blob(np.ones((3, 4), np.float32))[9:]]
)
def test_a_malformed_mean_is_named(content: bytes | None, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mean{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        read_mean(path)


@pytest.mark.parametrize("shape", ["(3, 1048576, 33554432)", "(3," + "(" * 3000])
def test_a_mean_of_absurd_size_is_refused(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "mean.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UsageError, match=r"mean\.npy: cannot read the mean"):
        read_mean(path)


def test_several_arrays_are_not_a_mean(tmp_path: Path) -> None:
    with (tmp_path / "mean.npy").open("wb") as file:
        np.savez(file, mean=np.ones(3))
    with pytest.raises(UsageError, match=r"mean\.npy: cannot read the mean"):
        read_mean(tmp_path / "mean.npy")


# The networks


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = blueprint(name).build()
        return module.eval()


# Krizhevsky et al. 2012, section 3.5, with Caffe's 227-pixel input
CAFFENET = {
    "conv1": ((96, 3, 11, 11), 55),
    "conv2": ((256, 48, 5, 5), 27),
    "conv3": ((384, 256, 3, 3), 13),
    "conv4": ((384, 192, 3, 3), 13),
    "conv5": ((256, 192, 3, 3), 13),
    "fc6": ((4096, 9216), 1),
    "fc7": ((4096, 4096), 1),
    "fc8": ((1000, 4096), 1),
}
# Zeiler & Fergus 2013, Fig. 3
ZFNET = {
    "conv1": ((96, 3, 7, 7), 110),
    "conv2": ((256, 96, 5, 5), 26),
    "conv3": ((384, 256, 3, 3), 13),
    "conv4": ((384, 384, 3, 3), 13),
    "conv5": ((256, 384, 3, 3), 13),
    "fc6": ((4096, 9216), 1),
    "fc7": ((4096, 4096), 1),
    "fc8": ((1000, 4096), 1),
}


@pytest.mark.parametrize(("name", "paper"), [("caffenet", CAFFENET), ("zfnet", ZFNET)])
def test_a_network_has_the_maps_and_parameters_of_its_paper(
    name: str, paper: dict[str, tuple[tuple[int, ...], int]]
) -> None:
    module, plan = built(name), blueprint(name)
    layers = find_layers(module, plan.preprocessing.crop)
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert [layer.alias for layer in layers] == [layer.module for layer in layers] == list(paper)
    for layer in layers:
        shape, side = paper[layer.alias]
        assert shapes.pop(f"{layer.module}.weight") == shape
        assert shapes.pop(f"{layer.module}.bias") == shape[:1]
        assert (layer.channels, layer.map) == (shape[0], (side, side))
    assert not shapes
    assert len(plan.classes) == 1000


def test_caffenet_pools_as_caffe_does_rounding_up() -> None:
    # 54 places under windows of 3 at every second: 26 fit, and a 27th is begun.
    maps = {layer.alias: layer.map for layer in find_layers(built("caffenet"), (224, 224))}
    assert (maps["conv1"], maps["conv2"]) == ((54, 54), (27, 27))


def test_caffenet_has_the_parameters_of_the_reference_model() -> None:
    assert sum(p.numel() for p in built("caffenet").parameters()) == 60_965_224


def test_caffenet_takes_blue_first_and_the_mean_of_ilsvrc12() -> None:
    preprocessing = blueprint("caffenet").preprocessing
    assert preprocessing.bgr
    assert preprocessing.mean == (122.67891434, 116.66876762, 104.00698793)
    assert preprocessing.std == (1.0, 1.0, 1.0)
    assert (preprocessing.resize, preprocessing.crop) == ((256, 256), (227, 227))


def test_caffenet_normalises_as_caffe_does() -> None:
    """x / (1 + alpha / n * sum of x^2 over n neighbouring channels)^beta; n 5, 1e-4, 0.75."""
    with torch.device("meta"):
        norm = CaffeNet().norm
    x = np.random.default_rng(0).normal(0, 100, (2, 8, 3, 4))
    expected = np.empty_like(x)
    for channel in range(8):
        near = x[:, max(channel - 2, 0) : channel + 3]
        expected[:, channel] = x[:, channel] / (1 + 1e-4 / 5 * (near**2).sum(axis=1)) ** 0.75
    found = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_caffenet_has_the_order_of_the_reference_model() -> None:
    """deploy.prototxt: normalisation after pooling, after the first two convolutions only."""
    module = built("caffenet")
    seen: list[str] = []
    names = {child: name for name, child in module.named_modules() if name}
    for child in module.children():
        child.register_forward_hook(lambda child, _inputs, _output: seen.append(names[child]))
    module(torch.empty(1, 3, 227, 227, device="meta"))
    assert " ".join(seen) == (
        "conv1 relu pool norm conv2 relu pool norm conv3 relu conv4 relu conv5 relu pool "
        "fc6 relu drop fc7 relu drop fc8"
    )
