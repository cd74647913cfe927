"""A command's output while it works, and how it ends."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from cnnvis_cli.errors import Stopped, UsageError

if TYPE_CHECKING:
    from logging.handlers import RotatingFileHandler

Item = TypeVar("Item")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


# Characters that move the cursor, change the direction or cannot be encoded: the control
# characters C0 and C1, line separators, the marks and brackets of Unicode's bidirectional
# algorithm (UAX 9), lone surrogates as from `os.fsdecode`, and the byte order mark.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str) -> str:
    """Return the text as one line that a terminal shows unchanged, whatever the names of files.

    Control characters become ``\\x1b``, those beyond Latin-1 ``\\u202e``; letters of all languages
    stay.
    """
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def leave_signals_to_the_parent() -> None:
    """For worker processes: a signal to the whole group stops the parent, which ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


SECONDS_PER_NOTE = 10  # seconds between two progress notes for `cnnvis status`
LOG_SIZE, LOGS = 1 << 20, 5  # bytes of a log file, and the number of older ones kept


class Report:
    """Progress on stderr, results on stdout, and requests to stop.

    On a terminal, progress is one line that is redrawn; elsewhere it is one line per minute.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.said: list[str] = []  # the results
        self.warned: list[str] = []  # what belongs to them, and is said with them each time
        self.unprinted: OSError | None = None  # why some of them are not on stdout
        self._told: set[str] = set()
        self.beat: Callable[[str, float | None], None] | None = None  # a line, seconds left
        self.log: Path | None = None
        self._log: RotatingFileHandler | None = None
        self._log_missed = False
        self._beaten = time.monotonic()
        self._signal: int | None = None
        self._spoken = 0.0

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Turn SIGTERM, SIGUSR1 and SIGINT into `Stopped` at the next safe moment."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._signal = number

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check_stop(self) -> None:
        """Raise `Stopped` here, at a safe moment, if a signal has asked for it."""
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            raise Stopped(f"stopped by {name}; finished work is saved, run again to continue")

    def result(self, text: str) -> None:
        """Print a line of the command's result, or a table of several."""
        self.said.append(text)
        text = "\n".join(map(printable, text.split("\n")))
        self.clear()
        self.unprinted = _print(text, sys.stdout) or self.unprinted
        self._write_log(text)

    def note(self, text: str) -> None:
        """Print a line about the work."""
        text = printable(text)
        if not self.quiet:
            self.clear()
            _print(text, sys.stderr)
        self._write_log(text)

    def warn(self, text: str) -> None:
        """Print a line about the results, which is repeated whenever they are."""
        self.warned.append(text)
        self.note(text)

    def once(self, text: str) -> None:
        """A line about the work, however often it is asked for."""
        if text not in self._told:
            self._told.add(text)
            self.note(text)

    def detail(self, text: str) -> None:
        """Print a line if more detail is wanted."""
        if self.verbose:
            self.note(text)

    def failed(self, text: str) -> None:
        """Write the message that a command fails with to the log file."""
        self._write_log(printable(text))

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, each at a safe moment."""
        for item in items:
            self.check_stop()
            yield item

    def track(
        self, items: Iterable[Item], what: str, total: int, unit: str, size: int = 1
    ) -> Iterator[Item]:
        """Yield the items and report progress; each counts as `size` units."""
        meter = Meter(self, what, total, unit)
        for item in items:
            self.check_stop()
            yield item
            meter.add(size)
        meter.end()

    def meter(self, what: str, total: int, unit: str) -> Meter:
        """Return a meter for work that reports its progress itself."""
        return Meter(self, what, total, unit)

    def progress(self, line: str, left: float | None = None) -> None:
        """Show the progress line if it is due; off a terminal, not at the very beginning.

        `left` is the estimated number of seconds left.
        """
        line, terminal = printable(line), sys.stderr.isatty()
        now = time.monotonic()
        if self.beat is not None and now - self._beaten > SECONDS_PER_NOTE:
            self.beat(line, left)
            self._beaten = now
        if self.quiet or now - self._spoken < (0.2 if terminal else 60):
            return
        if self._spoken or terminal:
            _print(
                f"\r\033[K{line}" if terminal else line, sys.stderr, end="" if terminal else "\n"
            )
            if not terminal:
                self._write_log(line)
        self._spoken = now

    def log_to(self, path: Path) -> None:
        """Also write every line to a file; raise `UsageError` if that is impossible."""
        from logging.handlers import RotatingFileHandler  # imported here: few commands need it

        try:
            self._log = RotatingFileHandler(path, "a", LOG_SIZE, LOGS, encoding="utf-8")
            self._log.handleError = self._miss_log  # type: ignore[method-assign, assignment]
            self._log.close()
            self.log = path
        except OSError as error:
            raise UsageError(f"--log {path}: cannot be written ({error.strerror})") from None

    def _write_log(self, text: str) -> None:
        if self._log is not None:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
            import logging

            try:
                self._log.handle(logging.makeLogRecord({"msg": line}))
                self._log.close()  # it reopens itself
            except OSError:
                self._miss_log()

    def _miss_log(self, _: object = None) -> None:
        """Say once why a line is not in the log; a full disk there never ends the work."""
        error = sys.exc_info()[1]
        if self.log is not None and not self._log_missed:
            self._log_missed = True
            why = getattr(error, "strerror", None) or error
            _print(f"--log {self.log}: cannot be written ({why}); the work goes on", sys.stderr)

    def clear(self) -> None:
        """Clear the progress line from the terminal."""
        if not self.quiet and sys.stderr.isatty():
            _print("\r\033[K", sys.stderr, end="")


class Meter:
    """The progress of some work, its speed, and the time left."""

    def __init__(self, report: Report, what: str, total: int, unit: str) -> None:
        self._report, self._what, self._total, self._unit = report, what, total, unit
        self._start = time.monotonic()
        self._done = 0

    def add(self, units: int, note: str = "") -> None:
        """Record `units` more as done; the `note` is shown beside the figures."""
        self._done = min(self._done + units, self._total)
        seconds = time.monotonic() - self._start
        if not seconds or not self._done:
            return
        rate = self._done / seconds
        figures = f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.1f} per second"
        left = (self._total - self._done) / rate
        parts = (figures, note, f"{_duration(left)} left")
        self._report.progress(", ".join(part for part in parts if part), left)

    def end(self) -> None:
        self._report.clear()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _print(text: str, stream: object, end: str = "\n") -> OSError | None:
    """Print; whatever happens to the stream never ends the work.

    Return the error of a full or failing disk, but none of a closed terminal or pipe: nobody
    listens. A character missing in the stream's encoding is written as its number.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, file=stream, end=end, flush=True)  # type: ignore[call-overload]
    except OSError as error:
        return None if error.errno in (errno.EPIPE, errno.EBADF) or _hung_up(error) else error
    except ValueError:  # closed
        pass
    return None


def _hung_up(error: OSError) -> bool:
    """Return whether stdout was a terminal that has gone."""
    gone = error.errno == errno.EIO
    return gone and stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode)
