"""What the documentation's pages hold: command lines, files, links and words, in their order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cnnvis_cli

ROOT = Path(cnnvis_cli.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "console", "crontab", "")  # languages of blocks that hold command lines
COMMANDS = ("cnnvis", "make", "python")
SCHEDULE = re.compile(r"(?:[\d*/,-]+\s+){5}")  # of a crontab
BREAKS = ("&&", "||", ";", "|", "if", "then", "fi", "[", "do", "done")


class Block(NamedTuple):
    """A block of code: its language ("" for one that is indented), first line's number, lines."""

    language: str
    number: int
    lines: list[str]

    @property
    def file(self) -> str | None:
        """The name that the first line gives the block."""
        found = re.fullmatch(r"# file: (\S+)", self.lines[0])
        return found[1] if found else None

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


class Line(NamedTuple):
    """A command line: the number of its line in the page, and its words."""

    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yield all blocks of code, fenced and indented; an indented one follows an empty line."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number, previous = 0, ""
    while number < len(lines):
        line, first = lines[number], number
        if line.startswith("```"):
            end = lines.index("```", number + 1)
            yield Block(line[3:].strip() or "text", first + 2, lines[number + 1 : end])
            number = end
        elif line.startswith("    ") and not previous.strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number]):
                number += 1
            inside = [each[4:] for each in lines[first:number]]
            yield Block("", first + 1, inside)
            number -= 1
        previous = lines[number]
        number += 1


def command_lines(block: Block) -> Iterator[Line]:
    """Yield the command lines of a block that a shell would be given, whatever the command."""
    number, lines = block.number, iter(block.lines)
    for text in lines:
        whole, count = text, 1
        while whole.endswith("\\"):
            whole, count = whole[:-1] + next(lines).strip(), count + 1
        whole = whole.removeprefix("$ ") if block.language == "console" else SCHEDULE.sub("", whole)
        for words in _apart(_split(whole)):
            yield Line(number, words)
        number += count


def _split(text: str) -> list[str]:
    """Return the words of a line, or none if it is invalid, such as an unfinished quotation."""
    reader = shlex.shlex(text, posix=True, punctuation_chars=";|&<>")
    reader.commenters = "#"
    reader.whitespace_split = True
    try:
        return list(reader)
    except ValueError:
        return []


def _apart(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield commands one by one, without redirections and prefixes."""
    found: list[str] = []
    rest = iter([*words, ";"])
    for word in rest:
        if word in (">", "<", ">>"):
            next(rest)
        elif word in BREAKS:
            while found and (found[0] in ("srun", "exec") or re.match(r"[A-Z_]+=", found[0])):
                del found[0]
            if found:
                yield tuple(found)
            found = []
        else:
            found.append(word)


def is_ours(line: Line) -> bool:
    """Return whether a command line is one that has to be run."""
    return Path(line.words[0]).name in COMMANDS


def inline(page: Path) -> Iterator[tuple[str, ...]]:
    """Command lines within the text, `cnnvis ...`, also where they go on in the next line."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for found in re.findall(r"`(cnnvis [^`]*)`", text):
        yield tuple(_split(" ".join(found.replace("\\|", "|").split())))


def links(page: Path) -> list[str]:
    """Return where links and pictures lead."""
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
