"""Disks that fail and processes that are killed at the n-th step in a folder.

A step is an open, read, write, fsync, replace, mkdir, unlink or rmdir below the folder, in a
process or its forked children. Python's own files get a raw file that can fail, so that buffers
meet the failure where they would meet it with a real disk. What HDF5 reads by itself fails where
h5py would say so.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py


def _behind(descriptor: int) -> str:
    """Return the path of what is open."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


_write, _open, _open_file = os.write, os.open, io.open
_opened_hdf5, _read_hdf5 = h5py.File.__init__, h5py.Dataset.__getitem__


class Steps:
    """Counts the steps in a folder, over a process and its forked children, and fails one.

    `how` is ``kill``, or the name of an error such as ``EIO``; `log` gets a line a step.
    """

    def __init__(self, folder: str, at: int, how: str, log: str) -> None:
        self._folder, self._at, self._how = str(Path(folder).resolve()), at, how
        self._log = _open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = get_context("fork").Value("q")

    def here(self, path: Any, folder: int | None = None) -> str | None:
        """Return the path, if it is in the folder; also of a descriptor, or relative to one."""
        found = _behind(path) if isinstance(path, int) else os.fsdecode(path)
        if folder is not None:
            found = f"{_behind(folder)}/{found}"
        found = str(Path.cwd() / found)  # as it is written: a link of that name is not followed
        return found if f"{found}/".startswith(f"{self._folder}/") else None

    def step(self, kind: str, path: str) -> None:
        """One more step; it is the one that fails, or it is not."""
        with self._count.get_lock():
            self._count.value += 1
            number = self._count.value
        fails = number == self._at
        _write(self._log, f"{number}\t{kind}\t{path}\t{'here' if fails else ''}\n".encode())
        if fails and self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fails:
            number = getattr(errno, self._how)
            raise OSError(number, os.strerror(number), path)


class _Raw(io.FileIO):
    """A file whose reads and writes are steps."""

    steps: Steps
    place: str

    def readinto(self, buffer: Any) -> Any:
        self.steps.step("read", self.place)
        return super().readinto(buffer)

    def readall(self) -> Any:
        self.steps.step("read", self.place)
        return super().readall()

    def write(self, content: Any) -> Any:
        try:
            self.steps.step("write", self.place)
        except OSError:  # a full disk has taken the first half
            super().write(bytes(content)[: len(content) // 2])
            raise
        return super().write(content)

    def truncate(self, size: int | None = None) -> int:
        self.steps.step("write", self.place)
        return super().truncate(size)


def install(steps: Steps) -> None:
    """Make the steps of this process, and of those that it forks, countable."""
    _count_calls(steps)
    _count_files(steps)
    _count_hdf5(steps)


def _count_calls(steps: Steps) -> None:
    """The calls of `os` that change a folder or make bytes lasting."""
    kinds = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir")
    for kind in (*kinds, "posix_fallocate"):
        _wrap(steps, kind, getattr(os, kind))


def _wrap(steps: Steps, kind: str, action: Callable[..., Any]) -> None:
    def call(path: Any, *arguments: Any, **named: Any) -> Any:
        place = steps.here(path, named.get("dir_fd"))
        if place is not None:
            steps.step({"posix_fallocate": "write", "remove": "unlink"}.get(kind, kind), place)
        return action(path, *arguments, **named)

    setattr(os, kind, call)


def _count_files(steps: Steps) -> None:
    """`open`, as built in and as `pathlib` calls it."""

    def opened(path: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        place = None if isinstance(path, int) else steps.here(path)
        if place is None:
            return _open_file(path, mode, buffering, *rest, **named)
        steps.step("open", place)
        if named.get("opener"):  # a file without a name
            return _open_file(path, mode, buffering, *rest, **named)
        raw = _Raw(path, mode.replace("b", "").replace("t", ""))
        raw.steps, raw.place = steps, place
        if buffering == 0:
            return raw
        buffered = _buffered(raw, mode)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    builtins.open = io.open = opened  # type: ignore[assignment]


def _buffered(raw: io.FileIO, mode: str) -> Any:
    if "+" in mode:
        return io.BufferedRandom(raw)
    return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)


def _count_hdf5(steps: Steps) -> None:
    """HDF5's own files, which are only ever read."""

    def init(self: Any, name: Any, *arguments: Any, **named: Any) -> None:
        place = steps.here(name) if isinstance(name, str | os.PathLike) else None
        if place is not None:
            steps.step("open", place)
        _opened_hdf5(self, name, *arguments, **named)

    def read(self: Any, *arguments: Any, **named: Any) -> Any:
        place = steps.here(self.file.filename) if isinstance(self.file.filename, str) else None
        if place is not None:
            steps.step("read", place)
        return _read_hdf5(self, *arguments, **named)

    h5py.File.__init__, h5py.Dataset.__getitem__ = init, read


def without_locks() -> None:
    """Be on a file system that has no locks, as some network ones."""

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refused
