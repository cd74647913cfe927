"""`bench optimize` measures what it says, in the form for programs."""

from __future__ import annotations

import json

from cnnvis_cli.bench.optimize import measure_optimize
from cnnvis_cli.report import Report
from cnnvis_cli.settings import OptimizePlan, Plan


def test_the_table_and_the_record_say_the_same() -> None:
    settings = OptimizePlan(style=("3", "2"))
    plan = Plan(model="demo", layer=("conv1", "fc8"), workers=0, batch_size=8, optimize=settings)
    found = measure_optimize(plan, Report(quiet=True), seconds=0.2, rounds=2)
    record = json.loads(json.dumps(found.record()))
    assert [row["layer"] for row in record["layers"]] == ["conv1", "fc8"]
    for row in record["layers"]:
        assert set(row["styles"]) == {"3", "2"}
        assert len(row["bare"]) == len(row["toolbox"]) == len(row["cut"]) == 2
        for rates in (row["bare"], row["toolbox"], row["cut"], *row["styles"].values()):
            assert min(rates) > 0
        assert all(0 < share < 2 for share in row["share"].values())
    conv1 = record["layers"][0]
    assert conv1["canvas"] == [7, 7]
    assert conv1["gain"] > 3  # a window of 7x7 against a whole input of 112x112
    table = found.table()
    assert "conv1" in table
    assert "style 3" in table
    assert f"{found.rows[0].gain():.1f}x" in table
