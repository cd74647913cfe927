"""Reading Caffe's files: weights (``.caffemodel``) and means (``.binaryproto``).

The messages are the few fields of caffe.proto that hold names and numbers, declared here for the
protobuf library. Packed floats are declared as bytes: the wire format is the same, and 60 million
of them become an array without a loop.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cnnvis_cli.errors import UsageError

LARGEST_MESSAGE = (1 << 31) - 1  # bytes of a message: the limit of protocol buffers
SHAPE = 320  # bytes of a shape: 32 axes of up to ten bytes; Caffe itself allows 32
_FIELD = descriptor_pb2.FieldDescriptorProto
_STRING, _BYTES, _INT32 = _FIELD.TYPE_STRING, _FIELD.TYPE_BYTES, _FIELD.TYPE_INT32
# message -> (field, number, type or message, repeated), with caffe.proto's own numbers
_MESSAGES: dict[str, tuple[tuple[str, int, Any, bool], ...]] = {
    "BlobShape": (("dim", 1, _BYTES, False),),
    "BlobProto": (
        ("num", 1, _INT32, False),
        ("channels", 2, _INT32, False),
        ("height", 3, _INT32, False),
        ("width", 4, _INT32, False),
        ("data", 5, _BYTES, False),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, _BYTES, False),
    ),
    "LayerParameter": (("name", 1, _STRING, False), ("blobs", 7, "BlobProto", True)),
    "V1LayerParameter": (("name", 4, _STRING, False), ("blobs", 6, "BlobProto", True)),
    "NetParameter": (
        ("layers", 2, "V1LayerParameter", True),  # files written before 2015
        ("layer", 100, "LayerParameter", True),
    ),
}


@cache
def _message(name: str) -> Any:
    """Return the class of one of Caffe's messages."""
    file = descriptor_pb2.FileDescriptorProto(name="cnnvis_caffe.proto", package="caffe")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, number, kind, repeated in fields:
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label)
            added.type = _FIELD.TYPE_MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                added.type_name = f".caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))


def _parse(name: str, path: Path) -> Any:
    message = _message(name)()
    if path.stat().st_size > LARGEST_MESSAGE:
        raise UsageError(f"{path}: not a Caffe {name} (of over 2 GB, which none can be)")
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UsageError(f"{path}: not a Caffe {name} ({error})") from None
    return message


def _varints(packed: bytes) -> list[int]:
    """Return whole numbers of seven bits per byte, the packed form of protocol buffers."""
    values, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value, shift = 0, 0
    return values


def _blob_array(blob: Any, path: Path, name: str) -> NDArray[np.float32]:
    """Return a blob's numbers in its shape; old files give num, channels, height and width."""
    packed, dtype = (blob.double_data, "<f8") if blob.double_data else (blob.data, "<f4")
    shape = (
        _varints(blob.shape.dim[:SHAPE])
        if blob.HasField("shape")
        else [blob.num, blob.channels, blob.height, blob.width]
    )
    try:
        if any(length < 0 for length in shape) or len(blob.shape.dim) > SHAPE:
            raise ValueError
        with np.errstate(over="ignore"):  # of doubles; infinite weights are reported elsewhere
            return np.frombuffer(packed, dtype=dtype).astype(np.float32).reshape(shape)
    except (ValueError, OverflowError):
        message = f"{path}: {name} does not hold the {str(shape)[:60]} numbers that it says"
        raise UsageError(message) from None


def read_caffemodel(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return weights by ``layer.weight`` and ``layer.bias``, from either of Caffe's layer formats.

    Raise `UsageError` for a file that is not a caffemodel or holds no weights.
    """
    net = _parse("NetParameter", path)
    weights = {}
    for layer in [*net.layer, *net.layers]:
        for part, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            weights[f"{layer.name}.{part}"] = _blob_array(blob, path, f"{layer.name}.{part}")
    if not weights:
        raise UsageError(f"{path}: a caffemodel with no weights in it")
    return weights


def read_mean(path: Path) -> tuple[float, float, float]:
    """Return the mean of each channel, in the file's own order, of a ``.npy`` or ``.binaryproto``.

    A mean image (3, height, width) is averaged over its pixels, as Caffe's own classification
    example does; a vector (3,) is taken as it is. Raise `UsageError` for anything else.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                mean = np.lib.format.read_array(file, allow_pickle=False)
        else:
            mean = _blob_array(_parse("BlobProto", path), path, "mean")
        if mean.dtype.kind not in "fiu":
            raise ValueError(f"it holds {mean.dtype}, not numbers")
    except (OSError, ValueError, MemoryError, TokenError) as error:
        raise UsageError(f"{path}: cannot read the mean ({error})") from None
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim not in (1, 3) or mean.shape[0] != 3 or not mean.size:
        raise UsageError(f"{path}: a mean of shape {mean.shape}; (3,) or (3, h, w) is needed")
    if not np.isfinite(mean).all():
        raise UsageError(f"{path}: a mean with NaN or infinite values in it; make it again")
    first, second, third = np.asarray(mean, np.float64).reshape(3, -1).mean(axis=1).tolist()
    return first, second, third
