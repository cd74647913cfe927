"""What a command says and how it stops: three signals, a log, and nothing on a quiet night."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cnnvis_cli.errors import Stopped
from cnnvis_cli.report import SIGNALS, Report


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
    report = Report(log=tmp_path / "log.txt")
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


def test_a_log_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Report(log=tmp_path / "nowhere" / "log.txt").result("found")
    assert capsys.readouterr() == ("found\n", "")


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
        "topk" in line and "/600 images" in line and "1.0 a second" in line for line in lines
    )
    for _ in Report().track(range(30), "topk", 30, "images"):
        clock[0] += 1.0
    assert capsys.readouterr().err == ""
