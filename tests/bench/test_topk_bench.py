"""The bench measures real things; how fast they are is no matter for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnvis_cli.bench.topk import Rate, RateRow, TopKBench, measure_topk
from cnnvis_cli.errors import UsageError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@pytest.fixture
def found(exact: dict[str, Any], photographs: Callable[..., Path], tmp_path: Path) -> TopKBench:
    folder = photographs(tmp_path / "images", 24)
    plan = Plan.make(None, exact | {"dataset": str(folder), "workers": 1})
    return measure_topk(plan, Report(quiet=True), 0.05, 2)


def test_every_limit_and_what_topk_reaches_is_measured_in_each_round(found: TopKBench) -> None:
    whats = [row.what for row in found.rows]
    assert whats[0] == "decode"
    assert whats[-3:] == ["forward", "topk", "topk, all of it"]
    assert whats[-4] == "forward, bf16"
    assert set(whats[1:-4]) == {"forward"}
    for row in found.rows:
        assert len(row.rates) == 2
        assert all(rate.speed > 0 for rate in row.rates)
        assert all(rate.cost > 0 for rate in row.rates)
    decoded, forward = found.rows[0], found.rows[-3]
    for limit, a, b in zip(found.limits, decoded.rates, forward.rates, strict=True):
        assert limit == pytest.approx(found.about["cores"] / (a.cost + b.cost))


def test_a_person_and_a_program_are_told_the_same(found: TopKBench) -> None:
    record = json.loads(json.dumps(found.record()))
    table = found.table()
    assert f"{found.ratio:.3f}" in table
    assert record["ratio"] == pytest.approx(found.ratio, abs=1e-4)
    for row in record["rows"]:
        assert row["how"] in table
    assert record["images"] == 24
    assert record["layers"] == 3


def test_the_ratio_is_taken_round_by_round() -> None:
    rates = tuple(Rate(speed, 1 / speed) for speed in (10.0, 40.0, 27.0))
    whole = tuple(Rate(1.0, 1.0) for _ in rates)
    rows = (RateRow("topk", "", rates), RateRow("topk, all of it", "", whole))
    bench = TopKBench({}, rows, (20.0, 50.0, 30.0))
    assert bench.ratio == pytest.approx(0.8)  # of 0.5, 0.8 and 0.9


def test_it_wants_images(exact: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="which images"):
        measure_topk(Plan.make(None, exact), Report(quiet=True), 0.05, 1)
