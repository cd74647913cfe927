"""The caption of a figure for a paper, as a LaTeX figure."""

from __future__ import annotations

import re
from pathlib import Path

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
ONE_COLUMN = 300  # points: wider figures span two columns
KEY = re.compile(r"% cnnvis-key ([0-9a-f]+)\n")


def escaped(text: str) -> str:
    """Return a text in which LaTeX finds no command."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def latex(caption: str, name: str, width: float, key: str) -> str:
    """Return a figure of a file beside it, `name` without suffix, `width` points wide."""
    kind = "figure*" if width > ONE_COLUMN else "figure"
    lines = [
        f"% cnnvis-key {key}",
        rf"\begin{{{kind}}}",
        r"  \centering",
        rf"  \includegraphics[width={width / 72:.4g}in]{{{name}.pdf}}",
        rf"  \caption{{{escaped(caption)}}}",
        rf"  \label{{fig:{re.sub(r'[^A-Za-z0-9:-]+', '-', name)}}}",
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def read_latex_key(path: Path) -> str | None:
    """Return the key in the first line of such a file; None if it is absent or of another kind."""
    try:
        found = KEY.match(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found[1] if found else None
