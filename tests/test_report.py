"""What a command says and how it stops: three signals, a log, and nothing on a quiet night."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest

from cnnvis_cli.errors import Stopped, UsageError
from cnnvis_cli.report import LOGS, SIGNALS, Report, printable


def test_the_three_signals_are_those_of_the_contract() -> None:
    assert set(SIGNALS) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_the_next_safe_moment(number: signal.Signals) -> None:
    report, before, done = Report(quiet=True), signal.getsignal(number), list[str]()

    def work() -> None:
        for item in report.track(range(5), "work", 5, "pieces"):
            done.append(str(item))
            if item == 2:
                os.kill(os.getpid(), number)
                done.append("finished")  # the piece in hand is not torn

    with report.stoppable(), pytest.raises(Stopped, match=number.name) as found:
        work()
    assert done == ["0", "1", "2", "finished"]
    assert found.value.exit_code == 75
    assert signal.getsignal(number) == before


def test_what_is_tracked_is_passed_on() -> None:
    assert list(Report(quiet=True).track("abc", "work", 3, "pieces")) == ["a", "b", "c"]
    assert list(Report().track([], "work", 0, "pieces")) == []


def test_results_are_on_stdout_notes_on_stderr_and_both_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report()
    report.log_to(tmp_path / "log.txt")
    report.result("found")
    report.note("by the way")
    report.detail("in detail")
    out, err = capsys.readouterr()
    assert (out, err) == ("found\n", "by the way\n")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["found", "by the way"]


def test_quiet_keeps_the_results_and_verbose_tells_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for report in (Report(quiet=True), Report(verbose=True)):
        report.result("found")
        report.note("by the way")
        report.detail("in detail")
    assert capsys.readouterr() == ("found\nfound\n", "by the way\nin detail\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_log_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.log_to(Path("/dev/full"))
    report.result("found")
    report.result("more")
    said = "--log /dev/full: cannot be written (No space left on device); the work goes on\n"
    assert capsys.readouterr() == ("found\nmore\n", said)


def test_a_log_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--log .*nowhere.*cannot be written"):
        Report().log_to(tmp_path / "nowhere" / "log.txt")


def test_a_log_that_has_grown_is_renamed_and_the_oldest_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cnnvis_cli.report.LOG_SIZE", 200)
    report = Report()
    report.log_to(tmp_path / "log.txt")
    for number in range(40):
        report.result(f"line {number:02d}")
    assert len(capsys.readouterr().out.splitlines()) == 40
    logs = sorted(tmp_path.glob("log.txt*"))
    assert [path.name for path in logs] == [
        "log.txt",
        *(f"log.txt.{n}" for n in range(1, LOGS + 1)),
    ]
    assert all(path.stat().st_size <= 200 for path in logs)
    assert "line 39" in logs[0].read_text()


def test_progress_is_a_line_a_minute_and_not_on_a_short_night(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    report = Report()
    for _ in report.track(range(600), "topk", 600, "images"):
        clock[0] += 1.0
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 8 <= len(lines) <= 10
    assert all(
        "topk" in line and "/600 images" in line and "1.0 per second" in line for line in lines
    )
    for _ in Report().track(range(30), "topk", 30, "images"):
        clock[0] += 1.0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("zoë, 日本語, ערב, नमस्ते, 👩\u200d👧, a\u0301, ~\\", None),  # stays as it is
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\r\n\t\0", r"\x0d\x0a\x09\x00"),
        ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
        ("\u202egpj.exe\u2066\u2069", r"\u202egpj.exe\u2066\u2069"),
        ("\u200e\u2028\u2029\ufeff", r"\u200e\u2028\u2029\ufeff"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_its_number(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)
    assert printable(printable(text)) == printable(text)


HOSTILE = "a\x1b[2J\r\udcff\u202e"
HARMLESS = r"a\x1b[2J\x0d\udcff\u202e"


def test_every_way_of_telling_is_printable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    report = Report(verbose=True)
    report.log_to(log)
    for emit in (report.result, report.note, report.detail, report.failed):
        emit(HOSTILE)
    report._spoken = -1000.0  # long ago
    report.progress(HOSTILE)
    assert report._log is not None
    report._log.close()
    out, err = capsys.readouterr()
    assert out == f"{HARMLESS}\n"
    assert err == f"{HARMLESS}\n" * 3
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()] == [HARMLESS] * 5


def test_a_table_keeps_its_lines_and_a_note_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    Report().result("one\n two\x1b\n")
    Report().note("one\ntwo")
    assert capsys.readouterr() == ("one\n two\\x1b\n\n", "one\\x0atwo\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_s_line_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    report = Report()
    report.progress(HOSTILE)
    report.note("done")
    assert terminal.getvalue() == f"\r\033[K{HARMLESS}\r\033[Kdone\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_a_letter_gets_its_number(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    Report().result("café 日本")
    assert written.getvalue() == "café 日本\n".encode(encoding, "backslashreplace")
