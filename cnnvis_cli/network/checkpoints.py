"""Reading files of weights by their content: tensors under names, and never a line of code."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.pickles import TooHeavy, weigh

Tree = Mapping[str, Any]


def read_weights(path: Path) -> Tree:
    """Return what a file of weights holds: tensors by name, perhaps within other dictionaries.

    The kind of file is told by its content. Raise `UsageError` for one that holds no tensors, that
    is damaged, or that holds more than tensors and could run code.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if _is_safetensors(head, path.stat().st_size):
        return _read_safetensors(path)
    for start, kind, remedy in _FOREIGN:
        if head.startswith(start):
            raise UsageError(f"{path}: is {kind}; {remedy}")
    if path.suffix.lower() == ".onnx":
        raise UsageError(f"{path}: is an ONNX network; {_CONVERT}")
    if path.suffix.lower() == ".caffemodel":
        from cnnvis_cli.network.caffe import read_caffemodel

        return {name: torch.from_numpy(array) for name, array in read_caffemodel(path).items()}
    torchs = head.startswith((b"PK", b"\x80"))
    if path.suffix.lower() == ".safetensors" and not torchs:
        return _read_safetensors(path)
    return _read_checkpoint(path)


_CONVERT = "docs/tutorial.md shows how to make a network in Python of it"
_UNPACK = "unpack it, and give the file of weights inside"
_FOREIGN = (  # how a file begins, what it is, and what to do
    (b"\x89HDF", "an HDF5 file, as Keras writes", "save the weights with torch.save"),
    (b"\x1f\x8b", "compressed", _UNPACK),
    (b"BZh", "compressed", _UNPACK),
    (b"\xfd7zXZ", "compressed", _UNPACK),
    (b"\x93NUMPY", "a NumPy array", "save the weights of all layers with torch.save"),
    (b"GGUF", "a GGUF file", "save the state_dict alone, best as .safetensors"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
)


def _is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file begins with the length of its header and the header itself."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _read_safetensors(path: Path) -> Tree:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path}: not a safetensors file ({_first_line(error)})") from None


class _Inert:
    """What stands for an object that trainers save beside the weights: it keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignore what the object knew."""


def _inert(name: str) -> type[_Inert]:
    """Return a class that torch takes for the one of this name."""
    module, _, own = name.rpartition(".")
    return type(own, (_Inert,), {"__module__": module, "__qualname__": own})


# Objects in many training states. None of them is built: in their places stands nothing at all, so
# what they would do when they are built never happens.
_BESIDE: list[Any] = [
    _inert(name)
    for name in (
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"pathlib.{own}" for own in ("Path", "PosixPath", "WindowsPath")),
        *(f"pathlib._local.{own}" for own in ("Path", "PosixPath", "WindowsPath")),
        *(f"numpy.{own}" for own in ("dtype", "ndarray")),
        *(f"numpy.{part}.multiarray.scalar" for part in ("core", "_core")),
        *(f"numpy.{part}.multiarray._reconstruct" for part in ("core", "_core")),
    )
]

# Exceptions that torch.load raised for files with a few bytes changed.
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, struct.error),
)


def _read_checkpoint(path: Path) -> Tree:
    """Return what torch.save wrote, if that is a dictionary of tensors and plain values."""
    _refuse_archives(path)
    _refuse_heavy(path)
    try:
        # an open file, as torch looks at a path's suffix
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_BESIDE),
        ):
            warnings.simplefilter("ignore")  # invalid checkpoints are reported below, in one line
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path}: refused, because it is damaged or holds more than tensors and could run "
            f"code{_culprit(error)}; save the state_dict alone, best as .safetensors"
        ) from None
    except _DAMAGED as error:
        raise UsageError(f"{path}: not a torch checkpoint ({_first_line(error)})") from None
    if isinstance(found, (dict, OrderedDict)):
        return found
    raise UsageError(f"{path}: holds no state_dict, but {_article(type(found).__name__)}")


def _article(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def _culprit(error: Exception) -> str:
    """Return the class or function that was refused, in brackets; nothing if it is not known."""
    text = str(error)
    _, found, after = text.partition("GLOBAL ")
    name = after.split(" ")[0].strip("`'\",.")
    return f" ({name})" if found and name.replace(".", "").replace("_", "").isalnum() else ""


def _refuse_archives(path: Path) -> None:
    """Raise `UsageError` for a zip that is no checkpoint.

    A few compressed bytes may expand to terabytes, and torch never compresses a checkpoint. A file
    that is not a zip is left to torch, which has an older format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
        return
    names = [info.filename for info in infos]
    if any(name.endswith("/archive_format") or "exported_program" in name for name in names):
        raise UsageError(f"{path}: is an exported program (.pt2), not weights alone; {_CONVERT}")
    if names and all(name.endswith(".npy") for name in names):
        raise UsageError(f"{path}: is a NumPy archive; save the weights with torch.save")
    packed = any(info.compress_type != zipfile.ZIP_STORED for info in infos)
    if packed or any(name.endswith("/constants.pkl") for name in names):
        raise UsageError(
            f"{path}: refused, because "
            + ("parts of it are compressed as in TorchScript" if packed else "it is TorchScript")
            + "; save the state_dict alone with torch.save"
        )


STREAMS = 5  # pickles one after the other in torch's older format


def _refuse_heavy(path: Path) -> None:
    """Raise `UsageError` for a small file that would take hours to read."""
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP  # as torch itself tells its two formats apart
    try:
        if zipped:
            _weigh_members(path)
        else:
            _weigh_streams(path)
    except TooHeavy:
        raise UsageError(
            f"{path}: refused, because it nests values so deeply that reading it would not end; "
            "it was made to do so, and no training state is like that"
        ) from None
    except (zipfile.BadZipFile, *_DAMAGED) as error:  # nothing of it can be weighed
        raise UsageError(f"{path}: not a torch checkpoint ({_first_line(error)})") from None


ZIP = b"PK\x03\x04"


def _weigh_members(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".pkl"):
                with archive.open(info) as member:
                    weigh(member)


def _weigh_streams(path: Path) -> None:
    with path.open("rb") as file:
        for _ in range(STREAMS):
            if not weigh(file):
                return


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
