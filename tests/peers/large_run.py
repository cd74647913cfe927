"""What `cnnvis status`, `montage` and `gallery` cost in a run of very many units.

    python tests/peers/large_run.py --units 1000 --units 10000 --units 100000

For each number a network with one layer of as many channels is made, one unit optimized, and its
result copied to all: the finished run. The unfinished one holds the same units in parts of eight.
Each command is a process of its own: its processor time and peak memory with its children.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np

from cnnvis_cli.digests import digest
from cnnvis_cli.store.hdf5 import Header
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.parts import Parts

NETWORK = """from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, {units}, 7, stride=4), nn.ReLU())
"""
PLAN = """model = "large.py:net"
weights = "random"
trust_code = true
run = "run"

[preprocessing]
resize = 32
crop = [32, 32]
"""
MADE = "optimize --style 3 --iterations 8 --units 0"
COMMANDS = {
    "status": "status run",
    "montage of 9 units": "montage optimized --units 0-8",
    "montage of 9 at random": "montage optimized --random 9",
    "montage of all": "montage optimized",
    "gallery of all": "gallery",
}
IN_PART = 8  # units


def cost_of(command: str, folder: Path) -> tuple[float, float]:
    """Return the seconds of processor time and the peak megabytes of a cnnvis command."""
    told = [] if command.startswith("status") else ["--config", "plan.toml", "--quiet"]
    words = [sys.executable, "-m", "cnnvis_cli", *command.split(), *told]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = code
    if code:
        raise click.ClickException(f"{command}: ended with {os.waitstatus_to_exitcode(code)}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def grow(folder: Path, units: int) -> None:
    """Give all units of the layer the result of the first."""
    path = folder / "run" / "optimized" / "conv1.h5"
    file = OptimizedFile(path)
    with h5py.File(path) as stored:
        header = Header(*(_plain(stored.attrs[name]) for name in Header.__dataclass_fields__))
    one = file.held("3")
    (first,) = one.blocks

    def blocks() -> Any:
        for start in range(0, units, 1000):
            some = min(1000, units - start)
            block = {name: np.repeat(values, some, axis=0) for name, values in first.items()}
            yield block | {"unit": np.arange(start, start + some, dtype=np.int32)}

    every = replace(one, units=np.arange(units, dtype=np.int32), blocks=blocks())
    path.unlink()
    file.publish(header, {"3": every})
    notes = folder / "run" / "run.json"
    known = json.loads(notes.read_text())
    known["asked"]["optimize"]["conv1 style 3"]["total"] = units
    notes.write_text(json.dumps(known))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def unfinish(folder: Path, units: int) -> None:
    """Put the units into parts instead of the file."""
    path = folder / "run" / "optimized" / "conv1.h5"
    block = next(iter(OptimizedFile(path).held("3").blocks))
    first = {name: values[:1] for name, values in block.items()}
    record = {"made": "up"}
    key = digest(record)
    parts = Parts(folder / "run" / "parts" / "optimized" / f"conv1-3-{key}", key)
    for start in range(0, units, IN_PART):
        some = np.arange(start, min(units, start + IN_PART), dtype=np.int32)
        block = {name: np.repeat(values, len(some), axis=0) for name, values in first.items()}
        parts[start // IN_PART] = block | {"unit": some}
    parts.describe(record)
    path.unlink()


@click.command()
@click.option("--units", multiple=True, type=int, default=(1000, 10000, 100000), show_default=True)
@click.option("--leave", multiple=True, help="Leave out commands whose name holds this.")
def main(units: tuple[int, ...], leave: tuple[str, ...]) -> None:
    """Measure each command in runs of these numbers of units."""
    print(f"{'units':>8}  {'what':28}{'s':>8}{'MB':>8}")
    for count in units:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "large.py").write_text(NETWORK.format(units=count))
            (folder / "plan.toml").write_text(PLAN)
            cost_of(MADE, folder)
            grow(folder, count)
            for name, command in COMMANDS.items():
                if not any(word in name for word in leave):
                    seconds, peak = cost_of(command, folder)
                    print(f"{count:8}  {name:28}{seconds:8.1f}{peak:8.0f}", flush=True)
            unfinish(folder, count)
            seconds, peak = cost_of("status run", folder)
            print(f"{count:8}  {'status, unfinished':28}{seconds:8.1f}{peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
