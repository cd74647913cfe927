"""Options made from the declarations of the settings, and the groups that commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.errors import UsageError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan, shown_default

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

COMPLETING = {
    "model": completing.models,
    "weights": completing.path_items,
    "run": completing.folders,
}


def takes(*options: str | Decorator, idle: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Add options to a command, in this order: settings by name, like topk.k, and others.

    Those of `idle` have no effect on the command. They are accepted, since some options are
    promised to every command, but help does not show them.
    """

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            if isinstance(option, str):
                command = setting_option(option, hidden=option in idle)(command)
            else:
                command = option(command)
        return command

    return decorate


def setting_option(name: str, help: str = "", shown: str = "", **changes: Any) -> Decorator:
    """Return the option of a setting, with what a command wants to say or have otherwise."""
    section, _, key = name.rpartition(".")
    field, hint = _declared(section)[key]
    default = shown or shown_default(field)
    text = (help or field.metadata["help"]) + (f"  [default: {default}]" if default else "")
    metavar = field.metadata["metavar"]
    given = {"metavar": metavar, "shell_complete": COMPLETING.get(name), **_kind(hint, metavar)}
    return click.option(*_flags(field), name.replace(".", "__"), help=text, **{**given, **changes})


def section(name: str) -> tuple[str, ...]:
    """Return the names of all settings of a section that are options."""
    return tuple(f"{name}.{key}" for key, (field, _) in _declared(name).items() if _flags(field))


@cache
def _declared(section: str) -> dict[str, tuple[Field[Any], Any]]:
    """Return the settings of a section, "" being the top level, with their types."""
    cls = get_type_hints(Plan)[section] if section else Plan
    hints = get_type_hints(cls)
    return {field.name: (field, hints[field.name]) for field in fields(cls)}


def _flags(field: Field[Any]) -> list[str]:
    """Return a setting's options, without an argument's name."""
    return [flag for flag in field.metadata["flags"].split() if flag.startswith("-")]


def _kind(hint: Any, metavar: str | None) -> dict[str, Any]:
    """Return click's parameters for values of a type; words with a metavar are not listed."""
    if get_origin(hint) is UnionType or get_origin(hint) is Union:
        hint = next(each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is tuple:
        return {"multiple": True}
    if get_origin(hint) is Literal:
        return {} if metavar else {"type": click.Choice(get_args(hint))}
    return {"is_flag": True, "default": None} if hint is bool else {"type": hint}


QUIET = click.option(
    "-q", "--quiet", is_flag=True, help="Show no progress, only results and errors."
)
VERBOSE = click.option(
    "-v", "--verbose", is_flag=True, help="Show more detail, and tracebacks for errors."
)
CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file of settings; flags override it.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
MOVED = setting_option("dataset", help="Where the images are now, if they have moved.")

RUN_AS_ALL = (setting_option("model", help="The network whose run it is."), "run")
TALKING = (QUIET, VERBOSE, setting_option("log", type=click.Path(path_type=Path, dir_okay=False)))
CONFIGURING = (CONFIG, *TALKING)
NETWORK = ("model", "weights", "ema", "trust_code")
WORK = ("run", "layer", "device", "seed", "batch_size", "workers")
SHARING = ("shard", "scheduler", "trust_network")

DESCRIBING = (*NETWORK, "run", *CONFIGURING)  # a command that only describes a network
ONE_IMAGE = (*NETWORK, "run", "device", "seed", "batch_size", *CONFIGURING)  # single images
WORKING = (*NETWORK, *WORK, *CONFIGURING)  # that processes a dataset into a run directory
WORKING_ON_UNITS = (*NETWORK, *WORK, "units", *CONFIGURING)
DRAWERS = setting_option("workers", help="Processes that draw; 0: draw in this process.")
SHOWING_UNITS = (*NETWORK, *WORK[:-1], DRAWERS, "units", *CONFIGURING)  # what a run holds
RUNNING = (*NETWORK, *WORK, "units", *TALKING)  # whose settings file is its argument
MERGING = ("trust_code", "run", *CONFIGURING)
VERIFYING = ("weights", "trust_code", "device", "seed", *TALKING)

PAPER_SETTINGS = ("figure.paper", "figure.width", "figure.columns", "figure.points")
PRINTING = ("figure.dpi", "figure.pdf", *PAPER_SETTINGS)  # with tone and scale options of its own
SIZING = ("figure.scale", *PRINTING)  # with a tone option of its own
DRAWING = section("figure")


def of_run(flags: dict[str, Any]) -> dict[str, Any]:
    """Return a command's flags with the run that its argument names, or --run, or --model.

    Raise `UsageError` for several, or none; it names those in outputs/.
    """
    folder, model, run = flags.pop("folder"), flags.pop("model"), flags["run"]
    if sum(map(bool, (folder, model, run))) > 1:
        raise UsageError("name the run once: RUN, --run RUN, or --model for outputs/<model>")
    if not (folder or model or run):
        known = sorted(str(path.parent) for path in Path("outputs").glob("*/run.json"))
        there = f" (there are {', '.join(known[:8])})" if known else ""
        raise UsageError(f"which run? name its folder, or give --model{there}")
    run = folder or run or str(Plan(model=model).folder)
    return {**flags, "run": run, "config": None}


reports: list[Report] = []
"""The reports of this process; a failure is written to their log files."""


def planned(flags: dict[str, Any]) -> tuple[Plan, Report]:
    """Return the plan and the report for a command's parameters; raise `UsageError` if invalid."""
    log: Path | None = flags.pop("log")
    report = Report(flags.pop("quiet"), flags.pop("verbose"))
    reports.append(report)
    plan = Plan.make(flags.pop("config"), flags)
    if log is not None:
        from cnnvis_cli.stages.run.plan_log import check_log

        check_log(log, plan)
        report.log_to(log)
    if log is None and plan.log is not None:
        from cnnvis_cli.stages.run.plan_log import plan_log  # few plans have one

        report.log_to(plan_log(plan))
    return plan, report
