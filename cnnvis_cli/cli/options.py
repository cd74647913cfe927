"""Options made from the declarations of the settings, and the groups that commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan, shown_default

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

COMPLETING = {
    "model": completing.models,
    "weights": completing.path_items,
    "run": completing.folders,
}


def takes(*options: str | Decorator) -> Callable[[Command], Command]:
    """Add options to a command, in this order: settings by name, like topk.k, and others."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            add = setting_option(option) if isinstance(option, str) else option
            command = add(command)
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
    help="A TOML file of settings; flags override it.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
MOVED = setting_option("dataset", help="Where the images are now, if they have moved.")

TALKING = (QUIET, VERBOSE, setting_option("log", type=click.Path(path_type=Path, dir_okay=False)))
CONFIGURING = (CONFIG, *TALKING)
NETWORK = ("model", "weights", "ema", "trust_code")
WORK = ("run", "layer", "device", "seed", "batch_size", "workers")
SHARING = ("shard", "scheduler", "trust_network")

DESCRIBING = (*NETWORK, "run", *CONFIGURING)  # a command that only describes a network
ONE_IMAGE = (*NETWORK, "run", "device", "seed", "batch_size", *CONFIGURING)  # single images
WORKING = (*NETWORK, *WORK, *CONFIGURING)  # that processes a dataset into a run directory
WORKING_ON_UNITS = (*NETWORK, *WORK, "units", *CONFIGURING)
RUNNING = (*NETWORK, *WORK, "units", *TALKING)  # whose settings file is its argument
MERGING = ("trust_code", "run", *CONFIGURING)
VERIFYING = ("weights", "trust_code", "device", "seed", *TALKING)

PAPER_SETTINGS = ("figure.paper", "figure.width", "figure.columns", "figure.points")
PRINTING = ("figure.dpi", "figure.pdf", *PAPER_SETTINGS)  # with tone and scale options of its own
SIZING = ("figure.scale", *PRINTING)  # with a tone option of its own
DRAWING = section("figure")


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
