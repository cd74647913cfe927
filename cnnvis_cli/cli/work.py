"""The step from a command's options to its work."""

from __future__ import annotations

from typing import Any

from cnnvis_cli.cli.options import planned
from cnnvis_cli.light_imports import load_torch
from cnnvis_cli.stages.run import receipt


def run_command(command: str, flags: dict[str, Any], work: receipt.Work) -> None:
    """Do a command's work, alone in the run directory, unless it has been done.

    Heavy modules are imported by `work`, so that a directory in use (exit code 75) or a finished
    run is reported at once.
    """
    plan, report = planned(flags)

    def loaded(*given: Any) -> None:
        load_torch()
        work(*given)

    receipt.carry_out(command, plan, report, loaded)
