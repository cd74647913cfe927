"""Every command line of the documentation runs, in the order of its page, with less to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click
import pytest

from cnnvis_cli.cli import COMMANDS, cli
from cnnvis_cli.settings import Plan

if TYPE_CHECKING:
    from tests.docs.conftest import Told
    from tests.docs.pages import (
        PAGES,
        ROOT,
        Block,
        Line,
        blocks,
        command_lines,
        inline,
        is_ours,
        links,
        name_of,
    )
else:
    from pages import (
        PAGES,
        ROOT,
        Block,
        Line,
        blocks,
        command_lines,
        inline,
        is_ours,
        links,
        name_of,
    )

Call = Callable[[list[str]], "Told"]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="this is no checkout")

NOT_RUN = {
    # how a command line begins, and why it is not run here
    "python tests/": "needs other networks' weights, or takes minutes",
    "python -c": "needs a million files; the figure beside it says of what",
    "make test": "is this",
    "make setup": "installs",
    "make showcase": "is run in test_showcase.py",
    "make long": "takes minutes; is this, in its long form",
    "make meaning": "takes 20 minutes",
    "make evolution": "trains a network; 15 minutes",
    "make train": "takes 12 minutes",
    "make bench": "its three lines are in the help of bench, and are run there",
    "make check": "is run beside the tests",
}
OTHERS = {
    # commands that are not cnnvis's own
    *("pip", "dask", "scontrol", "eval", ".", "cd", "tail", "head", "sha256sum", "#!/bin/bash"),
}


def reason(line: Line) -> str | None:
    """Why a line is not run."""
    return next((why for start, why in NOT_RUN.items() if str(line).startswith(start)), None)


def tasks(page: Path) -> list[str]:
    """Return the numbers of the page's SLURM array."""
    found = re.search(r"--array=(\d+)-(\d+)", page.read_text(encoding="utf-8"))
    return [str(n) for n in range(int(found[1]), int(found[2]) + 1)] if found else []


def of_tasks(line: Line, numbers: list[str]) -> Iterator[Line]:
    """Yield a line, or its form in each task of an array."""
    if "SLURM_ARRAY_TASK_ID" not in str(line):
        yield line
        return
    for number in numbers:
        words = (re.sub(r"\$\{?SLURM_ARRAY_TASK_ID\}?", number, word) for word in line.words)
        yield Line(line.number, tuple(words))


def globbed(words: list[str]) -> list[str]:
    """As a shell has it."""
    found = [(sorted(map(str, Path().glob(w))) if "*" in w else []) or [w] for w in words]
    return [word for each in found for word in each]


def steps(page: Path) -> Iterator[Block | Line]:
    """Files to write and lines to run, in order."""
    for block in blocks(page):
        if block.file:
            yield block
        elif block.language in ("", "sh", "console", "crontab"):
            for line in filter(is_ours, command_lines(block)):
                yield from of_tasks(line, tasks(page))


def made(line: Line) -> list[str]:
    """Return the command that `make TARGET` comes to."""
    told = subprocess.run(
        ["make", "-n", "--no-print-directory", *line.words[1:]],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if "MAKE" not in name},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.splitlines()[-1].split()


def run(line: Line, cnnvis: Call, python: Call) -> Told:
    """Run a line in this process."""
    words = made(line) if line.words[0] == "make" else list(line.words)
    command, *arguments = globbed(words)
    return (cnnvis if Path(command).name == "cnnvis" else python)(arguments)


LONG = ("docs/measurements.md", "docs/unattended-runs.md", "docs/plan.md")  # half a minute or more
WITHOUT_DEMO = ("docs/measurements.md",)  # pages that begin without its run
READ = [
    pytest.param(page, marks=[pytest.mark.long] if name_of(page) in LONG else []) for page in PAGES
]


@pytest.mark.parametrize("page", READ, ids=name_of)
def test_the_command_lines_run(page: Path, cnnvis: Call, python: Call) -> None:
    if name_of(page) in WITHOUT_DEMO:
        shutil.rmtree("outputs/demo")
    failed = []
    for step in steps(page):
        if isinstance(step, Block):
            Path(str(step.file)).write_text(step.text.replace('"/data/', '"data/'))
        elif reason(step) is None:
            told = run(step, cnnvis, python)
            if told.code:
                failed.append(f"{name_of(page)}:{step.number}: {step}\n  {told.code} {told.err}")
    assert not failed, "\n".join(failed)


def test_nothing_else_stands_where_command_lines_do() -> None:
    """What is neither ours nor known to be another's may be ours with a slip."""
    for page in PAGES:
        for block in blocks(page):
            for line in command_lines(block) if block.language in ("sh", "console") else ():
                first = Path(line.words[0]).name
                known = is_ours(line) or first in OTHERS or line.words[0].startswith("$")
                assert known, f"{name_of(page)}:{line.number}: {line}"


def test_every_reason_is_needed() -> None:
    lines = [str(step) for page in PAGES for step in steps(page) if isinstance(step, Line)]
    said = [start for start in NOT_RUN if any(line.startswith(start) for line in lines)]
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [start for start in NOT_RUN if start not in said and f"`{start}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_said_in_passing_exists(page: Path) -> None:
    """Commands and options in the text are those of the command line."""
    for words in inline(page):
        command: Any = cli
        names = list(words[1:])
        while isinstance(command, click.Group) and names and re.fullmatch("[a-z]+", names[0]):
            found = command.get_command(click.Context(command), names.pop(0))
            assert found is not None, f"{name_of(page)}: {' '.join(words)}"
            command = found
        known = {option for each in command.params for option in each.opts} | {"--help"}
        for word in names:
            if word.startswith("-") and not re.match(r"-\d", word):
                assert word.split("=")[0] in known, f"{name_of(page)}: {' '.join(words)}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if not re.match("[a-z]+:", link):
            assert (page.parent / link.partition("#")[0]).exists(), f"{name_of(page)}: {link}"


def test_the_readme_leads_to_every_page() -> None:
    linked = set(links(ROOT / "README.md"))
    assert {name_of(page) for page in PAGES} - {"README.md"} <= linked


def test_every_command_is_spoken_of() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`cnnvis {name}" not in readme] == []
    assert [name for name in COMMANDS if not re.search(rf"cnnvis {name}\b", text)] == []


def test_every_key_of_a_plan_is_spoken_of() -> None:
    sections = re.split(r"^## ", (ROOT / "docs/plan.md").read_text(encoding="utf-8"), flags=re.M)
    hints = get_type_hints(Plan)
    tables = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    top = next(each for each in sections if each.startswith("Top level"))
    assert [name for name in hints if name not in tables and f"| `{name}` |" not in top] == []
    for name, table in tables.items():
        text = next(each for each in sections if f"[{name}]" in each.partition("\n")[0])
        keys = [field.name for field in fields(table)]
        assert [key for key in keys if not re.search(rf"`(?:{name}\.)?{key}`", text)] == [], name


EXAMPLES = [name for name in COMMANDS if name != "bench"]


def example(command: str) -> list[str]:
    """Return the example in a command's help."""
    context, found = click.Context(cli), None
    for name in command.split():
        group = found or cli
        assert isinstance(group, click.Group)
        found = group.get_command(context, name)
        assert found is not None
    text = re.search(r"Example:\s+cnnvis ([^(]*)", (found and found.help) or "")
    assert text, command
    return text[1].split()


def test_every_command_s_help_is_shown_and_its_example_runs(cnnvis: Call) -> None:
    bench = cli.get_command(click.Context(cli), "bench")
    assert isinstance(bench, click.Group)
    failed = []
    for command in (*EXAMPLES, *(f"bench {name}" for name in bench.commands)):
        told = cnnvis([*command.split(), "--help"])
        assert told.code == 0
        assert "Example:" in told.out
        if command not in ("demo", "merge"):  # the demo is there; parts to merge are not
            told = cnnvis(example(command))
            if told.code:
                failed.append(f"{command}: {told.code} {told.err}")
    assert not failed, "\n".join(failed)
