"""`cnnvis layers --json` says what the table says, for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from cnnvis_cli.cli import _code


def test_layers_are_a_list_of_objects(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, str] = {}
    for flag in ("", "--json"):
        monkeypatch.setattr(sys, "argv", ["cnnvis", "layers", "--model", "demo", *flag.split()])
        assert _code() == 0
        told[flag] = capfd.readouterr().out
    layers = json.loads(told["--json"])
    assert layers[3] == {
        "alias": "conv4",
        "module": "features.8",
        "kind": "conv",
        "channels": 96,
        "map": [12, 12],
        "receptive_field": [67, 67],
        "stride": [8, 8],
    }
    rows = [line.split() for line in told[""].splitlines()[1:]]
    assert [[text(value) for value in layer.values()] for layer in layers] == rows


def text(value: Any) -> str:
    """Return a number, a word, or a size as the table has it."""
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
