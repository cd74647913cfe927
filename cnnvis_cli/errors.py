"""The failures, by exit code. Each message names the thing, the place and the remedy."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar


class CnnvisError(Exception):
    """The work failed: one line on stderr, exit code 1."""

    exit_code: ClassVar[int] = 1


class TasksFailed(CnnvisError):
    """All is done except pieces of work that ended every process that took them: exit code 1."""

    def __init__(self, message: str, numbers: Collection[int] = ()) -> None:
        super().__init__(message)
        self.numbers = frozenset(numbers)


class WorkerDied(CnnvisError):
    """A process ended unexpectedly; another can do its work."""


class UsageError(CnnvisError):
    """Wrong options, configuration or input, or a run directory of another plan: exit code 2."""

    exit_code = 2


class TooManyUnreadable(CnnvisError):
    """Finished, but more images were unreadable than allowed: exit code 3."""

    exit_code = 3


class StorageError(CnnvisError):
    """Disk full, or an input/output error: exit code 4."""

    exit_code = 4


class Gone(StorageError):
    """A file of the dataset is no longer there."""


class Stopped(CnnvisError):
    """Stopped by a signal (finished work is saved), or the directory is in use: exit code 75."""

    exit_code = 75
