"""A process that has imported everything, and forks a child for each start of the command line.

Started as ``python -m tests.reliability.zygote`` it reads an order a line (JSON) and answers
``{"pid"}``, then ``{"ended", "code", "seconds", "megabytes"}``. A start costs some hundredths of
a second instead of three seconds. The process itself never computes: a child must not use
autograd if its parent has, and threads would not come along.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image

import cnnvis_cli.cli
from cnnvis_cli.network.tally import load_loops
from tests.reliability import faults

ALSO = (  # what the commands import when they come to it
    *("torchvision", "torchvision.transforms.v2.functional", "scipy.ndimage", "jinja2"),
    *("safetensors.torch", "cnnvis_cli.stages.run.pipeline", "cnnvis_cli.stages.common.session"),
)


def main() -> None:
    """Serve until there are no more orders."""
    prepare()
    going: dict[int, tuple[int, float]] = {}  # by descriptor: process, start
    ready = selectors.DefaultSelector()
    ready.register(0, selectors.EVENT_READ)
    emit({"pid": os.getpid()})
    waiting = b""
    while True:
        for key, _ in ready.select():
            if key.fd:
                ready.unregister(key.fd)
                emit(_ended(*going.pop(key.fd)))
                os.close(key.fd)
                continue
            found = os.read(0, 1 << 16)
            if not found:
                for pid, _ in going.values():
                    os.killpg(pid, signal.SIGKILL)
                return
            *lines, waiting = (waiting + found).split(b"\n")
            for line in lines:
                pid = start(json.loads(line))
                descriptor = os.pidfd_open(pid)
                going[descriptor] = pid, time.monotonic()
                ready.register(descriptor, selectors.EVENT_READ)
                emit({"pid": pid})


def prepare() -> None:
    """Import and compile what every child would."""
    torch.set_num_threads(1)
    for name in (*(f"cnnvis_cli.cli.{name}" for name in cnnvis_cli.cli.COMMANDS), *ALSO):
        import_module(name)
    Image.init()
    load_loops()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, (
        "a thread would not come along into children"
    )


def emit(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _ended(pid: int, start: float) -> dict[str, Any]:
    _, status, usage = os.wait4(pid, 0)
    code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - start
    return {"ended": pid, "code": code, "seconds": seconds, "megabytes": usage.ru_maxrss >> 10}


def start(order: dict[str, Any]) -> int:
    """Return a child that does the command of an order, in a process group of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            _become(order)
        finally:
            os._exit(99)  # an order that cannot be understood
    return pid


def _become(order: dict[str, Any]) -> NoReturn:
    os.setsid()
    os.chdir(order["folder"])
    for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.path.insert(0, order["folder"])
    sys.argv = ["cnnvis", *order["line"]]
    if order["locks"] is False:
        faults.without_locks()
    for place, value in (order["patches"] or {}).items():
        module, name = place.rsplit(".", 1)
        setattr(import_module(module), name, value)
    if order["calls"]:
        os.environ.update(order["calls"])
        ctypes.CDLL(None).failing_calls_again()
    if order["fault"]:
        faults.install(faults.Steps(**order["fault"]))
    code = 1
    try:
        cnnvis_cli.cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
