"""Options that mean the same in every command, declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report

F = TypeVar("F", bound=Callable[..., Any])

_NETWORK = (
    click.option(
        "-m",
        "--model",
        shell_complete=completing.models,
        help="A torchvision builder (alexnet, vgg16, ...), caffenet, zfnet, demo, or "
        "package.module:function.",
    ),
    click.option(
        "-w",
        "--weights",
        shell_complete=completing.files,
        help="DEFAULT or another of torchvision's names, a file (.safetensors, .pth, "
        ".caffemodel), or random.",
    ),
    click.option(
        "--trust-code",
        is_flag=True,
        default=None,
        help="Allow --model to run a person's own code.",
    ),
)
_CONFIG = (
    click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        help="A TOML file with settings; flags win over it.",
    ),
)
_TALK = (
    click.option("-q", "--quiet", is_flag=True, help="No progress, only results and errors."),
    click.option("-v", "--verbose", is_flag=True, help="More detail; tracebacks for errors."),
    click.option(
        "--log",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write every line to this file, which is renamed when it has grown to 1 MB.",
    ),
)
_RUN = click.option(
    "-r",
    "--run",
    shell_complete=completing.folders,
    help="The run directory.  [default: outputs/<model>]",
)
_WORK = (
    _RUN,
    click.option(
        "-l",
        "--layer",
        multiple=True,
        help="Alias (conv5) or module path (features.10); repeatable.  [default: all]",
    ),
    click.option("--device", help="auto, cpu, cuda, cuda:0,cuda:1.  [default: auto]"),
    click.option("--seed", type=int, help="Decides every random choice.  [default: 0]"),
    click.option("--batch-size", type=int, help="Images at a time."),
    click.option(
        "--workers",
        type=int,
        help="Processes that decode images, on a CPU with the network as well; 0: none but this "
        "one.  [default: one a core]",
    ),
)
_SHARED = (
    click.option(
        "--shard", help="Do only part i/n of the work, beside the others or for cnnvis merge."
    ),
    click.option("--scheduler", help="Have a Dask cluster do it: tcp://host:port or tls://."),
    click.option(
        "--trust-network",
        is_flag=True,
        default=None,
        help="Allow a --scheduler elsewhere without TLS, where anybody can run code on it.",
    ),
)
MEAN = click.option(
    "--mean",
    "optimize__mean",
    is_flag=True,
    default=None,
    help="Climb the channel's mean over the whole map, not its centre unit.",
)
_DRAWING = (
    click.option(
        "--tone",
        "figure__tone",
        type=click.Choice(["tile", "unit", "sheet", "true"]),
        help="What shares one scale of grey; true adds the mean colour back.  [default: tile]",
    ),
    click.option(
        "--scale",
        "figure__scale",
        type=float,
        help="Pixels a pixel, a whole number; below 1 pictures become smaller.  [default: 1]",
    ),
    click.option("--dpi", "figure__dpi", type=int, help="Pixels an inch in print."),
    click.option(
        "--pdf", "figure__pdf", is_flag=True, default=None, help="Also write a PDF beside each PNG."
    ),
    click.option(
        "--classes",
        "figure__classes",
        help="A file of class names: one a line, or a folder's name and the class's.",
    ),
)
_PROJECT = (
    click.option(
        "--method",
        "project__method",
        multiple=True,
        help="deconv, guided or gradient; repeatable.  [default: deconv]",
    ),
    click.option(
        "--start",
        "project__start",
        type=click.Choice(["place", "map"]),
        help="What is sent back: a 1 at the stored place, or the channel's whole rectified map, "
        "which gives pictures of the whole input's size.  [default: place]",
    ),
    click.option(
        "--lrn",
        "project__lrn",
        type=click.Choice(["derivative", "pass"]),
        help="Through local response normalisation: by its derivative, or pass the signal on "
        "unchanged.  [default: derivative]",
    ),
)
_UNITS = (click.option("-u", "--units", help="Channels, like 0-63,151.  [default: all]"),)


def _apply(options: tuple[Any, ...]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def sharing(command: F) -> F:
    """The options of a command whose work several processes and machines can share."""
    return _apply(_SHARED)(command)


def processing(command: F) -> F:
    """The option of a command that works in several processes."""
    return _apply((_WORK[5],))(command)


def describing(command: F) -> F:
    """The options of a command that only looks at a network."""
    return _apply((*_NETWORK, _RUN, *_CONFIG, *_TALK))(command)


def working(command: F) -> F:
    """The options of a command that works through a dataset in a run directory."""
    return _apply((*_NETWORK, *_WORK, *_CONFIG, *_TALK))(command)


def working_on_units(command: F) -> F:
    """The options of a command that works on chosen units in a run directory."""
    return _apply((*_NETWORK, *_WORK, *_UNITS, *_CONFIG, *_TALK))(command)


def drawing(command: F) -> F:
    """The options of a command that draws figures."""
    return _apply(_DRAWING)(command)


def drawing_photographs(command: F) -> F:
    """The options of a command that draws figures of images whose classes nobody tells."""
    return _apply(_DRAWING[:4])(command)


def sizing(command: F) -> F:
    """The options of a command that draws figures in a tone of its own."""
    return _apply(_DRAWING[1:4])(command)


def printing(command: F) -> F:
    """The options of a command that draws figures in a tone and scale of their own."""
    return _apply(_DRAWING[2:4])(command)


def projecting(command: F) -> F:
    """The options that say how projections are made."""
    return _apply(_PROJECT)(command)


def explaining(command: F) -> F:
    """The options of a command that runs a network on single images."""
    return _apply((*_NETWORK, _RUN, *_WORK[2:5], *_CONFIG, *_TALK))(command)


def joining(command: F) -> F:
    """The options of a command that joins run directories."""
    trust = _NETWORK[2]
    return _apply((trust, _RUN, *_CONFIG, *_TALK))(command)


def telling(command: F) -> F:
    """The options of a command that only reads."""
    return _apply(_TALK)(command)


def verifying(command: F) -> F:
    """The options of a command that computes some of a run again."""
    return _apply((_NETWORK[1], _NETWORK[2], *_WORK[2:4], *_TALK))(command)


def running(command: F) -> F:
    """The options of a command whose settings file is its argument."""
    return _apply((*_NETWORK, *_WORK, *_UNITS, *_TALK))(command)


reports: list[Report] = []
"""The reports of this process, which a failure is told to as well."""


def planned(flags: dict[str, Any]) -> tuple[Plan, Report]:
    """The plan and the report of a command's parameters; raises `UsageError`."""
    log: Path | None = flags.pop("log")
    report = Report(flags.pop("quiet"), flags.pop("verbose"))
    reports.append(report)
    if log is not None:
        report.log_to(log)
    plan = Plan.make(flags.pop("config"), flags)
    if log is None and plan.log is not None:
        report.log_to(Path(plan.log))
    return plan, report
