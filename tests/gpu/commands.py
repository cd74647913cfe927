"""A process under the rules of a pretended device that forks a child for each command.

Started as ``python commands.py``, it reads one order per line (JSON) and answers with the exit
code. It imports everything once, which takes seconds, and never computes itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import torch

import cnnvis_cli.cli
from cnnvis_cli.network.tally import load_loops

ALSO = ("torchvision", "scipy.ndimage", "safetensors.torch", "cnnvis_cli.stages.run.pipeline")


def main() -> None:
    """Serve until there are no more orders."""
    torch.set_num_threads(1)
    for name in (*(f"cnnvis_cli.cli.{name}" for name in cnnvis_cli.cli.COMMANDS), *ALSO):
        import_module(name)
    load_loops()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _become(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(order: dict[str, Any]) -> NoReturn:
    os.setsid()
    signal.alarm(order["seconds"])  # ends it where nothing else does
    os.chdir(order["folder"])
    for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.environ |= order["environment"]
    sys.path.insert(0, order["folder"])
    sys.argv = ["cnnvis", *order["line"]]
    cnnvis_cli.cli.main()  # and leave Python normally, which ends loky's processes
    sys.exit()


if __name__ == "__main__":
    main()
