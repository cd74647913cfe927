"""The run directory: its identity, its lock and its notes."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from types import NoneType
from typing import Any

from cnnvis_cli import __version__
from cnnvis_cli.errors import StorageError, UsageError
from cnnvis_cli.store.inside import no_folder, read_regular
from cnnvis_cli.store.lock import alone, file_name, is_alone
from cnnvis_cli.store.publish import publish, remove_remains

Record = dict[str, Any]
RUN_VERSION = 1  # of run.json


def differences(have: Record, want: Record, sides: tuple[str, str] = ("there", "here")) -> str:
    """Return the differences of two records, in words that name both sides."""
    unequal = [k for k in want if have.get(k) != want[k]] or sorted(have.keys() - want.keys())
    return "; ".join(
        f"{k} is {_short_value(have.get(k))} {sides[0]}, {_short_value(want.get(k))} {sides[1]}"
        for k in unequal
    )


def _with_origin(identity: Record, weights: Any) -> Record:
    """Return an identity with the weights' file or name beside the beginning of their digest."""
    told = f"{weights or 'those that come with it'} ({str(identity.get('weights_sha256'))[:12]})"
    return {**{k: v for k, v in identity.items() if k != "weights_sha256"}, "weights": told}


def _short_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    most = 240 if isinstance(value, str) and "/" in value else 60  # a path is told whole
    return text if len(text) <= most else f"{text[:28]}...{text[-28:]}"


@dataclass(frozen=True)
class Run:
    """One run directory; `identity` is common to all its files.

    The network, its weights and its preprocessing belong to the identity: a directory that holds
    another network's results is refused. A shard keeps its notes in its own file.
    """

    path: Path
    shard: str | None = None

    @property
    def manifest(self) -> Path:
        return self.path / "run.json"

    @property
    def topk(self) -> Path:
        return self.path / "topk.h5"

    @property
    def sample(self) -> Path:
        return self.path / "sample.h5"

    @property
    def spectrum(self) -> Path:
        """The colours and frequencies of the dataset's images."""
        return self.path / "spectrum.h5"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.tsv"

    def optimized(self, layer: str) -> Path:
        return self.path / "optimized" / f"{layer}.h5"

    def typical(self, layer: str, of_mean: bool) -> Path:
        """What images leave in the layers below one, on its canvas or on the whole input."""
        return self.path / ("typical-mean" if of_mean else "typical") / f"{layer}.h5"

    def measurements(self) -> list[Path]:
        """Return the files that were measured on the dataset's images, for styles."""
        typical = sorted(self.path.glob("typical/*.h5")) + sorted(
            self.path.glob("typical-mean/*.h5")
        )
        return [path for path in (self.spectrum, *typical) if path.exists()]

    def searched(self, layer: str) -> Path:
        return self.path / "search" / f"{layer}.h5"

    @property
    def styles(self) -> Path:
        """The styles that searches have saved."""
        return self.path / "styles.toml"

    def projected(self, layer: str) -> Path:
        return self.path / "projected" / f"{layer}.h5"

    def saliency(self, name: str) -> Path:
        return self.path / "saliency" / f"{name}.h5"

    def occluded(self, name: str) -> Path:
        return self.path / "occluded" / f"{name}.h5"

    def figure(self, kind: str, name: str) -> Path:
        """Return the path of a figure's file, without its suffix."""
        return self.path / "figures" / kind / name

    def parts(self, *names: str) -> Path:
        """Return the folder of finished pieces of unfinished work."""
        return self.path.absolute().joinpath("parts", *names)

    @property
    def notes(self) -> Path:
        """The file in which the work done here is noted."""
        if self.shard is None:
            return self.manifest
        return self.path / "shards" / f"{file_name(self.shard)}.json"

    def read(self) -> Record:
        """Return the content of run.json; empty if there is none.

        Raise `UsageError` if it is not as cnnvis writes it, or of a later version.
        """
        found = _read_record(self.manifest)
        missing = [name for name in _OF_EVERY_RUN if found and name not in found]
        if missing:
            raise UsageError(f"{self.manifest}: states no {missing[0]}; {_PUT_BACK}")
        return found

    def noted(self) -> Record:
        """Return the notes made by `note`."""
        return _read_record(self.notes)

    def all_notes(self) -> list[Record]:
        """What has been noted here by this run and by its shards."""
        files = [self.manifest, *sorted((self.path / "shards").glob("*.json"))]
        return [_read_record(path) for path in files]

    def claim(
        self, identity: Record, weights: str | None, ema: bool = False, log: Path | None = None
    ) -> None:
        """Make this directory the run of a network, or check that it is.

        `weights` is their origin, for later commands that name no network; with `ema` they are
        the averaged ones there.

        Raise `UsageError` if it belongs to another network or contains other files. This command's
        `log` and output may be in it, and other logs and plans.
        """
        known = self.read()
        if known:
            same = {key: known.get(key) for key in identity}
            if same != identity:
                alike = same["weights_sha256"] == identity["weights_sha256"]
                origin = weights if alike else known.get("weights")
                there, here = _with_origin(same, origin), _with_origin(identity, weights)
                raise UsageError(
                    f"{self.path} belongs to another plan: "
                    f"{differences(there, here)}; "
                    "choose another --run"
                )
            return
        strange = [path for path in self.path.iterdir() if not self._may_be_there(path, log)]
        if strange:
            if self.read():  # another shard has just begun it
                self.claim(identity, weights, ema)
                return
            raise UsageError(
                f"{self.path} holds files that cnnvis did not write ({min(strange).name}); choose "
                "another --run"
            )
        first = {"format": "cnnvis/run", "version": RUN_VERSION, **identity, "weights": weights}
        if ema:
            first["ema"] = True
        _write_record(self.manifest, first)

    def _may_be_there(self, path: Path, log: Path | None) -> bool:
        """Return whether a file or folder may be in a directory before its run begins."""
        if path.name.startswith(".") or path.name == "shards":
            return True
        try:
            found = path.lstat()
        except FileNotFoundError:  # another shard's
            return True
        if stat.S_ISREG(found.st_mode) and _LOGS.search(path.name):
            return True
        return any(os.path.samestat(found, each) for each in _written_by_this_command(log))

    def note(self, section: str, record: Record) -> None:
        """Add a stage's note to run.json; nothing is written if it is unchanged."""
        known = self.noted() or {"format": "cnnvis/run", "version": RUN_VERSION}
        if known.get(section) != record:
            _write_record(self.notes, {**known, section: record})

    @contextmanager
    def lock(
        self, shard: str | None = None, say: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Work alone in the directory; see `store.lock`.

        Half-written files of killed processes are removed at the end.
        """
        with alone(self.path, shard, say):
            try:
                yield
            finally:
                if shard is None and is_alone(self.path) and self.manifest.exists():
                    remove_remains(self.path)


# Logs of other starts, those that were rotated, and plans such as styles.toml.
_LOGS = re.compile(r"\.(log|out|err|toml)(\.\d+)?$")


def _written_by_this_command(log: Path | None) -> Iterator[os.stat_result]:
    """Yield the state of its log, stdout and stderr, as far as they are files."""
    for number in (1, 2):
        with suppress(OSError):
            yield os.fstat(number)
    with suppress(OSError):
        if log is not None:
            yield log.stat()


_NAMED = ("preprocessing", "network", "dataset", "stages", "asked", "images")
_TIMED = ("topk", "search", "optimize", "project", "saliency", "occlude")
_TIME: dict[str, Any] = {"seconds": (int, float), "arithmetic": [dict]}
RUN_FORM: dict[str, Any] = {  # of run.json, as far as it is read: types, lists and tables of them
    **dict.fromkeys(("model", "weights_sha256"), str),
    **dict.fromkeys(_NAMED, dict),
    **dict.fromkeys(_TIMED, _TIME),
    "version": int,
    "weights": (str, NoneType),
    "ema": bool,
    "dataset": {"path": str, "digest": str},
    "network": {"classes": [str], "layers": [{"alias": str, "module": str}]},
    "asked": dict.fromkeys(_TIMED, dict),
}
_OF_EVERY_RUN = ("model", "weights_sha256", "preprocessing")
_PUT_BACK = "put the file back as cnnvis wrote it, or choose another --run"


def _ill_formed(value: Any, form: Any, place: str = "") -> str | None:
    """Return the first place where a value does not have a form; None if it has."""
    kind = type(form) if isinstance(form, (dict, list)) else form
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return place
    inside: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(form, dict):
        inside = ((value[n], form[n], f"{place}.{n}") for n in form if n in value)
    elif isinstance(form, list):
        inside = ((item, form[0], f"{place}[{n}]") for n, item in enumerate(value))
    return next((found for found in starmap(_ill_formed, inside) if found is not None), None)


def _read_record(path: Path) -> Record:
    try:
        found = json.loads(read_regular(path))
    except FileNotFoundError:
        if path.parent.is_symlink() and not path.parent.exists():
            raise no_folder(path.parent) from None
        return {}
    except NotADirectoryError:
        raise no_folder(path.parent) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is damaged ({error}); {_PUT_BACK}") from None
    if not isinstance(found, dict) or found.get("format") != "cnnvis/run":
        raise UsageError(f"{path}: was not written by cnnvis; choose another --run")
    misfit = _ill_formed(found, RUN_FORM)
    if misfit is not None:
        raise UsageError(f"{path}: {misfit.lstrip('.')} is of the wrong type; {_PUT_BACK}")
    if found.get("version", RUN_VERSION) > RUN_VERSION:
        raise UsageError(
            f"{path}: is of version {found['version']}, and cnnvis {__version__} reads versions up "
            f"to {RUN_VERSION}; use the cnnvis that wrote it"
        )
    return dict(found)


def _write_record(path: Path, record: Record) -> None:
    publish(path, (json.dumps(record, indent=1) + "\n").encode())
