"""`cnnvis bench`."""

from __future__ import annotations

import json
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import (
    JSON,
    WORKING,
    WORKING_ON_UNITS,
    planned,
    section,
    setting_option,
    takes,
)


@click.group("bench")
def command() -> None:
    """Measure this machine's limits, and what cnnvis reaches of them.

    Example: cnnvis bench topk demo --model demo
    """


@command.command("topk", cls=Grouped)
@click.argument("dataset")
@click.option("--seconds", default=3.0, show_default=True, help="Seconds per measurement.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of all measurements.")
@takes(JSON, *WORKING)
def bench_topk(seconds: float, rounds: int, as_json: bool, **flags: Any) -> None:
    """Measure decoding alone, the forward pass alone, their combined limit, and topk.

    DATASET is as in `cnnvis topk`. Use at least 500 images, ideally a multiple of the batch size;
    each round goes through all of them.

    Example: cnnvis bench topk demo --model demo --rounds 1
    """
    plan, report = planned(flags)
    from cnnvis_cli.bench import topk as bench

    found = bench.measure_topk(plan, report, seconds, max(rounds, 1))
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())


@command.command("optimize", cls=Grouped)
@takes(
    setting_option("optimize.style", help="A style; repeatable.", shown="1, 2, 3, 4"),
    "optimize.precision",
)
@click.option("--seconds", default=3.0, show_default=True, help="Seconds per measurement.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of all measurements.")
@takes(JSON, *WORKING_ON_UNITS)
def bench_optimize(seconds: float, rounds: int, as_json: bool, **flags: Any) -> None:
    """Measure each layer's forward and backward pass alone, optimize, and the toolbox's way.

    In unit steps per second, on the same canvas and batch. The toolbox's way is the whole network
    on the whole input, one unit at a time.

    Example: cnnvis bench optimize --model demo --layer conv2 --rounds 1 --seconds 0.5
    """
    flags["optimize__style"] = flags["optimize__style"] or ("1", "2", "3", "4")
    plan, report = planned(flags)
    from cnnvis_cli.bench.optimize import measure_optimize

    found = measure_optimize(plan, report, seconds, max(rounds, 1))
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())


@command.command("occlude", cls=Grouped)
@takes(setting_option("occlude.size", metavar=None), setting_option("occlude.stride", metavar=None))
@click.option("--rounds", default=5, show_default=True, help="Rounds of all measurements.")
@takes(JSON, *WORKING)
def bench_occlude(rounds: int, as_json: bool, **flags: Any) -> None:
    """Measure occlude, in positions of the square per second, and the forward pass alone.

    The forward pass has the same batch size, with the images already on the device. "Whole images"
    reuses nothing of the first maps from the image without a square.

    Example: cnnvis bench occlude --model demo --rounds 3
    """
    plan, report = planned(flags)
    from cnnvis_cli.bench.occlude import measure_occlude

    found = measure_occlude(plan, report, max(rounds, 1))
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())


@command.command("project", cls=Grouped)
@takes(*section("project"), setting_option("topk.k", help="Places per channel."))
@click.option("--seconds", default=3.0, show_default=True, help="For one image at a time.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of all measurements.")
@takes(JSON, *WORKING_ON_UNITS)
def bench_project(seconds: float, rounds: int, as_json: bool, **flags: Any) -> None:
    """Measure each layer's projections, and one image at a time through the whole network.

    In places per second, for random places in random images that are already decoded. A round
    projects as many of the layer's units as one batch of work has; --units makes it fewer.

    Example: cnnvis bench project --model demo --layer conv2 --rounds 1 --seconds 0.5
    """
    plan, report = planned(flags)
    from cnnvis_cli.bench.project import measure_project

    found = measure_project(plan, report, seconds, max(rounds, 1))
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())


@command.command("activations", cls=Grouped)
@click.option(
    "--frames", default=300, show_default=True, help="Frames of the video, 320x240 pixels."
)
@click.option("--rounds", default=3, show_default=True, help="Rounds of both measurements.")
@takes(JSON, *WORKING)
def bench_activations(frames: int, rounds: int, as_json: bool, **flags: Any) -> None:
    """Measure activations of a video, and the bare forward pass.

    In frames per second, in turns. The video is drawn and decoded, and its films are encoded,
    while the network runs; the forward pass is that of the whole network on the same batch.

    Example: cnnvis bench activations --model demo --layer conv5 --rounds 1 --frames 64
    """
    plan, report = planned(flags)
    from cnnvis_cli.bench.activations import measure_activations

    found = measure_activations(plan, report, max(frames, 1), max(rounds, 1))
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())
