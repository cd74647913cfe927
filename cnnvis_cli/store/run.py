"""The run directory: whose it is, who works in it, and what it is about."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnvis_cli.errors import Stopped, StorageError, UsageError
from cnnvis_cli.store.publish import publish

Record = dict[str, Any]


def differences(have: Record, want: Record) -> str:
    """What two records disagree on, for a person."""
    unequal = [k for k in want if have.get(k) != want[k]]
    return "; ".join(f"{k} is {_short(have.get(k))} there, {_short(want[k])} here" for k in unequal)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


@dataclass(frozen=True)
class Run:
    """One run directory; `identity` is what all its files have in common.

    The network, its weights and its preprocessing belong to the identity: a directory that holds
    another network's results is refused.
    """

    path: Path

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
        """The styles that searches have kept."""
        return self.path / "styles.toml"

    def projected(self, layer: str) -> Path:
        return self.path / "projected" / f"{layer}.h5"

    def saliency(self, name: str) -> Path:
        return self.path / "saliency" / f"{name}.h5"

    def occluded(self, name: str) -> Path:
        return self.path / "occluded" / f"{name}.h5"

    def figure(self, kind: str, name: str) -> Path:
        """A figure's file, without its suffix."""
        return self.path / "figures" / kind / name

    def parts(self, *names: str) -> Path:
        """Where finished pieces of unfinished work are kept."""
        return self.path.joinpath("parts", *names)

    def read(self) -> Record:
        """What run.json says; empty where there is none."""
        try:
            found = json.loads(self.manifest.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.manifest}: cannot be read ({error})") from None
        if not isinstance(found, dict) or found.get("format") != "cnnvis/run":
            raise UsageError(f"{self.manifest}: was not written by cnnvis; choose another --run")
        return found

    def claim(self, identity: Record, weights: str | None) -> None:
        """Make this directory the run of a network, or check that it is.

        `weights` is where they came from, for commands that name no network later on.

        Raises `UsageError` if it belongs to another network or holds somebody's other files.
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
        own = (self.styles.name,)  # a person may put it there beforehand
        if any(not e.name.startswith(".") and e.name not in own for e in self.path.iterdir()):
            if self.read():  # another shard has just begun it
                self.claim(identity, weights)
                return
            raise UsageError(
                f"{self.path} holds files that cnnvis did not write; choose another --run"
            )
        self._write({"format": "cnnvis/run", "version": 1, **identity, "weights": weights})

    def note(self, section: str, record: Record) -> None:
        """Add to run.json what a stage did; nothing is written where it says the same already."""
        known = self.read()
        if known.get(section) != record:
            self._write({**known, section: record})

    def _write(self, record: Record) -> None:
        publish(self.manifest, (json.dumps(record, indent=1) + "\n").encode())

    @contextmanager
    def lock(self, shard: str | None = None) -> Iterator[None]:
        """Work alone in the directory; raises `Stopped` (exit 75) if another process does.

        Shards work beside each other, each of them alone on its own. It only saves work: what is
        published is whole even without it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot use {self.path}: {error.strerror}") from None
        if shard is None:
            with self._held(".lock", fcntl.LOCK_EX):
                yield
            return
        own = f".lock-{shard.replace('/', 'of')}"
        with self._held(".lock", fcntl.LOCK_SH), self._held(own, fcntl.LOCK_EX):
            yield

    @contextmanager
    def _held(self, name: str, kind: int) -> Iterator[None]:
        try:
            handle = (self.path / name).open("a+")
        except OSError as error:
            raise StorageError(f"cannot use {self.path}: {error.strerror}") from None
        with handle:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise Stopped(
                    f"{self.path} is in use by {handle.read().strip() or 'another process'}; "
                    "try again when it has ended"
                ) from None
            except OSError:  # a file system without locks: work without one
                pass
            if kind == fcntl.LOCK_SH:  # one of several, who write nothing
                yield
                return
            handle.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            handle.write(f"process {os.getpid()} on {os.uname().nodename} since {since}\n")
            handle.flush()
            try:
                yield
            finally:
                handle.truncate(0)  # a finished run looks the same however often it is started
