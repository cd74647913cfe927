"""Shell completion, and how fast it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete
from torchvision import models

from cnnvis_cli.cli import COMMANDS, cli, completing
from cnnvis_cli.network.zoo import OWN
from cnnvis_cli.stages.figures.montage import KINDS, SCREEN


def offered(line: str) -> list[str]:
    """Return the completions of a line's last word; the line ends in a space to begin a new one."""
    *words, begun = line.split(" ")
    complete = ShellComplete(cli, {}, "cnnvis", "_CNNVIS_COMPLETE")
    return [item.value for item in complete.get_completions(words[1:], begun)]


LINES = {
    "cnnvis ": list(COMMANDS),
    "cnnvis op": ["optimize"],
    "cnnvis optimize --prec": ["--precision"],
    "cnnvis optimize --precision ": ["float32", "tf32", "bf16"],
    "cnnvis topk images --decode f": ["fast"],
    "cnnvis montage to": ["toolbox", "top"],
    "cnnvis montage top uni": ["unit"],
    "cnnvis layers --model de": [
        "demo",
        "densenet121",
        "densenet161",
        "densenet169",
        "densenet201",
    ],
    "cnnvis optimize -m caf": ["caffenet"],
}


@pytest.mark.parametrize("line", LINES)
def test_words_are_completed(line: str) -> None:
    assert offered(line) == LINES[line]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("cnnvis topk im", "file"),
        ("cnnvis saliency im", "file"),
        ("cnnvis layers --weights im", "file"),
        ("cnnvis montage --config im", "file"),
        ("cnnvis montage --run im", "dir"),
    ],
)
def test_paths_are_the_shell_s_own_affair(line: str, kind: str) -> None:
    *words, begun = line.split(" ")
    complete = ShellComplete(cli, {}, "cnnvis", "_CNNVIS_COMPLETE")
    (item,) = complete.get_completions(words[1:], begun)
    assert (item.value, item.type) == ("im", kind)


def test_what_is_offered_is_what_there_is() -> None:
    """The names are written by hand, or read from a source: here they are compared."""
    assert set(completing.OWN_MODELS) == set(OWN)
    assert set(completing.MONTAGE_KINDS) == {*KINDS, SCREEN}
    assert set(completing._builders()) == set(models.list_models(module=models))


MAIN = (
    "import sys; from cnnvis_cli.cli import main\n"
    "try:\n    main()\nfinally:\n"
    "    print({'torch', 'torchvision', 'numpy'} & {*sys.modules}, file=sys.stderr)"
)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_and_answered_without_torch(shell: str) -> None:
    """As shells call it: once to learn how to ask, then at each Tab."""
    begun = {"COMP_WORDS": "cnnvis layers --model alex", "COMP_CWORD": "3"}
    if shell == "fish":
        begun["COMP_CWORD"] = "alex"  # fish gives the word itself
    for what, expected in (("source", "_cnnvis_completion"), ("complete", "alexnet")):
        environment = {**os.environ, "_CNNVIS_COMPLETE": f"{shell}_{what}", **begun}
        done = subprocess.run(
            [sys.executable, "-c", MAIN],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in done.stdout
        assert done.stderr.splitlines()[-1] == "set()"
