"""The run directory: its identity, its lock and its notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnvis_cli.errors import StorageError, UsageError
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.lock import alone, file_name, is_alone
from cnnvis_cli.store.publish import publish, remove_remains

Record = dict[str, Any]


def differences(have: Record, want: Record, sides: tuple[str, str] = ("there", "here")) -> str:
    """Return the differences of two records, in words that name both sides."""
    unequal = [k for k in want if have.get(k) != want[k]]
    return "; ".join(
        f"{k} is {_short_value(have.get(k))} {sides[0]}, {_short_value(want[k])} {sides[1]}"
        for k in unequal
    )


def _short_value(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


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
    def skipped(self) -> Path:
        return self.path / "skipped.tsv"

    def optimized(self, layer: str) -> Path:
        return self.path / "optimized" / f"{layer}.h5"

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
        """Return the content of run.json; empty if there is none."""
        return _read_record(self.manifest)

    def noted(self) -> Record:
        """Return the notes made by `note`."""
        return _read_record(self.notes)

    def all_notes(self) -> list[Record]:
        """What has been noted here by this run and by its shards."""
        files = [self.manifest, *sorted((self.path / "shards").glob("*.json"))]
        return [_read_record(path) for path in files]

    def claim(self, identity: Record, weights: str | None, ema: bool = False) -> None:
        """Make this directory the run of a network, or check that it is.

        `weights` is their origin, for later commands that name no network; with `ema` they are
        the averaged ones there.

        Raise `UsageError` if it belongs to another network or contains other files.
        """
        known = self.read()
        if known:
            same = {key: known.get(key) for key in identity}
            if same != identity:
                raise UsageError(
                    f"{self.path} belongs to another plan: {differences(same, identity)}; "
                    "choose another --run"
                )
            return
        own = (self.styles.name, "shards")  # the user may put the first there beforehand
        if any(not e.name.startswith(".") and e.name not in own for e in self.path.iterdir()):
            if self.read():  # another shard has just begun it
                self.claim(identity, weights, ema)
                return
            raise UsageError(
                f"{self.path} holds files that cnnvis did not write; choose another --run"
            )
        first = {"format": "cnnvis/run", "version": 1, **identity, "weights": weights}
        if ema:
            first["ema"] = True
        _write_record(self.manifest, first)

    def note(self, section: str, record: Record) -> None:
        """Add a stage's note to run.json; nothing is written if it is unchanged."""
        known = self.noted() or {"format": "cnnvis/run", "version": 1}
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


_NAMED = ("preprocessing", "network", "dataset", "stages", "asked")
_TIMED = ("topk", "search", "optimize", "project", "saliency", "occlude")
SECTIONS: dict[str, type] = {  # the sections of run.json, and their types
    **dict.fromkeys(("model", "weights_sha256"), str),
    **dict.fromkeys((*_NAMED, *_TIMED), dict),
}


def _read_record(path: Path) -> Record:
    try:
        found = json.loads(read_regular(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    ours = isinstance(found, dict) and found.get("format") == "cnnvis/run"
    if not ours or any(
        name in found and type(found[name]) is not SECTIONS[name] for name in SECTIONS
    ):
        raise UsageError(f"{path}: was not written by cnnvis; choose another --run")
    return dict(found)


def _write_record(path: Path, record: Record) -> None:
    publish(path, (json.dumps(record, indent=1) + "\n").encode())
