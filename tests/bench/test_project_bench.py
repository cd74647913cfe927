"""`bench project` measures what it says, in the form for programs."""

from __future__ import annotations

import json

from cnnvis_cli.bench.project import measure_project
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan, ProjectPlan


def test_the_table_and_the_record_say_the_same() -> None:
    settings = ProjectPlan(method=("deconv", "guided"))
    plan = Plan(model="demo", layer=("conv1", "fc8"), units="0-5", project=settings)
    found = measure_project(plan, Report(quiet=True), seconds=0.1, rounds=2)
    record = json.loads(json.dumps(found.record()))
    rows = record["layers"]
    assert [(row["layer"], row["group"]) for row in rows] == [
        (layer, method) for layer in ("conv1", "fc8") for method in ("deconv", "guided")
    ]
    for row in rows:
        assert row["places"] == 6 * 9
        assert len(row["project"]) == len(row["whole"]) == 2
        assert min(*row["project"], *row["whole"]) > 0
    assert rows[0]["field"] == [7, 7]
    assert rows[0]["gain"] > 3  # a window of 7x7 against a whole input of 112x112
    table = found.table()
    assert "guided" in table
    assert f"{found.rows[0].gain:.1f}x" in table


def test_other_settings_are_named() -> None:
    settings = ProjectPlan(start="map", lrn="pass")
    plan = Plan(model="demo", layer=("conv2",), units="0", project=settings)
    found = measure_project(plan, Report(quiet=True), seconds=0.01, rounds=1)
    assert found.rows[0].group == "deconv-map-lrn"
