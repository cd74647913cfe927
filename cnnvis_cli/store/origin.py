"""Whose file is it: a result under the right name may be of another network, layer or version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py

from cnnvis_cli import __version__
from cnnvis_cli.errors import UsageError
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.schema import VERSION, VERSION_WITH_LOCAL_FIELDS

LATEST = {"topk": VERSION_WITH_LOCAL_FIELDS}  # versions that are read, where it is not VERSION
OF_ALL_LAYERS = ("topk", "sample", "spectrum")  # kinds with one file per run, made from the dataset
# kinds whose files are named by their layer
OF_ONE_LAYER = ("optimized", "projected", "search", "typical", "typical-mean")


def check_origin(path: Path, kind: str, file: h5py.File) -> None:
    """Raise `UsageError`, naming both sides, if an open file is not of the run that it stands in.

    Model, weights, layer, module and version are compared, and of a file made from the dataset its
    preprocessing and dataset, as far as both sides state them: files of older versions, or outside
    a run, are read.
    """
    run = Run(path.parent if kind in OF_ALL_LAYERS else path.parent.parent)
    state = path, kind, _state(path), _state(run.manifest)
    if state in _checked:
        return
    attributes, record = dict(file.attrs), run.read()
    _check_version(path, kind, attributes)
    identity = {name: record.get(name) for name in ("model", "weights_sha256")}
    both = [(identity, attributes)]
    if kind in OF_ONE_LAYER:
        both.append(({"layer": path.stem, "module": _modules(record).get(path.stem)}, attributes))
    elif kind in OF_ALL_LAYERS:
        both += _of_all_layers(attributes, file, record)
    for known, have in both if record else []:
        _refuse_difference(path, run, have, known)
    _checked.add(state)


_checked: set[tuple[object, ...]] = set()  # files that belong, each with its run.json as it was


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _check_version(path: Path, kind: str, attributes: Record) -> None:
    version, latest = int(attributes.get("version", VERSION)), LATEST.get(kind, VERSION)
    if version > latest:
        raise UsageError(
            f"{path}: is of version {version}, and cnnvis {__version__} reads versions up to "
            f"{latest}; read it with the cnnvis that wrote it"
        )


def _modules(record: Record) -> dict[str, str]:
    """Return the module of each layer that run.json lists."""
    layers = record.get("network", {}).get("layers", [])
    return {layer["alias"]: layer["module"] for layer in layers}


def _of_all_layers(
    attributes: Record, file: h5py.File, record: Record
) -> Iterator[tuple[Record, Record]]:
    """Yield what else run.json and a file of all layers state: the run's, then the file's."""
    yield record.get("preprocessing", {}), json.loads(attributes.get("preprocessing", "{}"))
    dataset = json.loads(attributes.get("plan", "{}")).get("dataset")
    yield {"dataset": record.get("dataset", {}).get("digest")}, {"dataset": dataset}
    layers = file["layers"].items() if "layers" in file else ()
    modules = {f"module of {alias}": group.attrs.get("module") for alias, group in layers}
    yield {f"module of {alias}": name for alias, name in _modules(record).items()}, modules


def _refuse_difference(path: Path, run: Run, have: Record, known: Record) -> None:
    """Raise `UsageError` for what both sides state, and not alike."""
    both = [n for n in known if known[n] is not None and have.get(n) is not None]
    apart = differences({n: have[n] for n in both}, {n: known[n] for n in both}, _SIDES)
    if apart:
        raise UsageError(
            f"{path}: does not belong to {run.path}: {apart}; move the file away, or put the run's "
            "own in its place"
        )


_SIDES = ("in the file", "in the run")
