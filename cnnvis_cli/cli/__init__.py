"""The command line: one module a command, each from options to a stage to a report."""

from __future__ import annotations

import sys
import traceback

import click

from cnnvis_cli import __version__
from cnnvis_cli.cli import demo, layers, montage, optimize, project, run, topk
from cnnvis_cli.errors import CnnvisError, StorageError, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cnnvis")
def cli() -> None:
    """See what each unit of a trained convnet has learned.

    Top images, deconvnet projections and regularized activation maximization for every unit of
    every layer, as figures to print. Start with `cnnvis demo`.
    """


for _module in (demo, layers, topk, optimize, project, montage, run):
    cli.add_command(_module.command)


def main() -> None:
    """Run a command; every failure is one line on stderr and the documented exit code."""
    sys.exit(_code())


def _code() -> int:
    try:
        result = cli.main(sys.argv[1:] or ["--help"], prog_name="cnnvis", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return _fail("stopped", 75)
    except click.ClickException as error:
        return _fail(error.format_message(), UsageError.exit_code)
    except CnnvisError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"input/output error: {error}", StorageError.exit_code)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error or 'no message'} (-v shows where)", 1)


def _fail(message: str, code: int) -> int:
    if {"-v", "--verbose"} & set(sys.argv):
        traceback.print_exc()
    try:
        print(f"cnnvis: {' '.join(message.split())}", file=sys.stderr)
    except OSError:
        return code
    return code
