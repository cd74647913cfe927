"""The command line: one module per command, each from options to a stage to a report."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from types import FrameType

import click

from cnnvis_cli import __version__
from cnnvis_cli.cli.options import reports
from cnnvis_cli.errors import CnnvisError, Stopped, StorageError, UsageError
from cnnvis_cli.registry import unknown
from cnnvis_cli.report import SIGNALS as STOPPING
from cnnvis_cli.report import printable

COMMAND_GROUPS = {
    "Start": {
        "look": "One sheet on what a network sees in an image",
        "demo": "The whole pipeline, bundled: no data, no GPU",
        "layers": "A network's layers",
    },
    "Whole dataset": {
        "topk": "The strongest images and places of every unit",
        "optimize": "The image that each unit prefers",
        "project": "What in its strongest images a unit answers to",
        "search": "Regularization parameters that give good pictures",
    },
    "One image": {
        "activations": "Every layer's activations, also of a video",
        "saliency": "What a class or a unit depends on",
        "occlude": "Which parts a prediction depends on",
    },
    "Figures": {
        "montage": "The papers' figures, as PNG and PDF",
        "filters": "First-layer filters: dominating, dead, frequencies",
        "gallery": "A web page to browse every unit",
    },
    "Numbers": {
        "score": "How well pictures explain each unit",
        "name": "A word for each unit",
        "compare": "Two runs, matched unit by unit",
    },
    "Operations": {
        "run": "All stages of a TOML file, resumable",
        "status": "What is done, what is left, and for how long",
        "verify": "Whether files are whole and numbers come out again",
        "merge": "Join runs made with --shard i/n",
        "bench": "This machine's limits, and what cnnvis reaches",
    },
}
"""The commands, grouped by purpose; each summary fits in 80 columns."""

COMMANDS = tuple(command for group in COMMAND_GROUPS.values() for command in group)


class _Commands(click.Group):
    """The commands: each is a module of its name, loaded when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"cnnvis_cli.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in COMMAND_GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cnnvis")
def cli() -> None:
    """Show what each unit of a trained vision network has learned.

    Top images, projections and preferred images of every unit of every layer, as figures to print.
    Start with `cnnvis look demo`.
    """


def main() -> None:
    """Run a command; a failure is one line on stderr and the documented exit code."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed; the next file to be opened would take its number
            setattr(sys, name, open(os.devnull, "r+" if number else "r"))  # noqa: PTH123, SIM115
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop_at_once)
    code = _code()
    for number in STOPPING:  # the interpreter would die of one while it ends
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # or it would look through all objects of all libraries before they go anyway
    sys.exit(code)


def _stop_at_once(number: int, _frame: FrameType | None) -> None:
    """End the process: there is no work to save, and whatever is being imported may be half done.

    An exception would surface anywhere, in the middle of an import or of the exit.
    """
    with suppress(Exception):
        _fail(f"stopped by {signal.Signals(number).name} before it began", Stopped.exit_code)
    os._exit(Stopped.exit_code)


_UNPRINTED = "standard output: cannot be written ({})"


def _code() -> int:
    try:
        result = cli.main(sys.argv[1:] or ["--help"], prog_name="cnnvis", standalone_mode=False)
        for report in reports:
            if report.unprinted is not None:
                why = report.unprinted.strerror
                return _fail(_UNPRINTED.format(why), StorageError.exit_code)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return _fail("stopped", 75)
    except click.ClickException as error:
        return _fail(error.format_message(), UsageError.exit_code)
    except CnnvisError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _fail(f"{error.filename}: {error.strerror}", UsageError.exit_code)
        if traceback.extract_tb(error.__traceback__)[-1].name == "echo":  # click prints help
            return _fail(_UNPRINTED.format(error.strerror), StorageError.exit_code)
        remedy = "; make room, and run the command again" if error.errno == errno.ENOSPC else ""
        return _fail(f"input/output error: {error}{remedy}", StorageError.exit_code)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error or 'no message'} (-v shows where)", 1)


LONGEST_MESSAGE = 2000  # characters of a message


def _fail(message: str, code: int) -> int:
    message = (
        message if len(message) <= LONGEST_MESSAGE else f"{message[:1000]} ... {message[-900:]}"
    )
    if {"-v", "--verbose"} & set(sys.argv):
        traceback.print_exc()
    for report in reports:
        report.failed(f"failed with exit code {code}: {message}")
    try:
        print(f"cnnvis: {printable(' '.join(message.split()))}", file=sys.stderr)
    except OSError:
        return code
    return code
