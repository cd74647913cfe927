"""The speed of `cnnvis optimize` compared with its peers: some layers of one network, in one run.

    python tests/peers/optimize.py --model alexnet --weights FILE --layer conv2 --layer conv5

A unit-step is one step of the ascent of one unit: forward to it, backward to the pixels, update.
Every tool runs in a process of its own, with the same number of threads, on the network that
cnnvis builds; each in turn, layer by layer, in every round. A constant step and style 3 of Yosinski
et al. 2015 (decay, and a Gaussian blur every fourth step) throughout.

cnnvis
    its command line, with few iterations and with many: the difference of the stage's own times is
    its pace, without any preparations. As a whole: the longer command, imports and files included.
toolbox
    as the deep-visualization-toolbox does it: one unit at a time on the whole input, forward
    through all of the network, blurred by scipy. In the other row it stops at the layer.
Lucent
    `render_vis`, at its own settings, of the unit at the middle of the map, on an image of the size
    of cnnvis's canvas. As it comes, it resizes images below 224 pixels to that before the network;
    in the other rows `fixed_image_size` keeps their size, though the unit then sees borders that
    the whole input has not. One image at a time, as its examples do it, or a batch of as many as
    cnnvis has units. Its steps are of another kind (Adam on a Fourier basis, random jitter, scale
    and rotation), so they are counted, not compared.

Lucent 0.1.8 wants a kornia of 2020, which runs with torch 2.15 as it is; keep it to an environment
of its own, which sees that of cnnvis:

    python -m venv LUCENT
    echo "import site; site.addsitedir('$(.venv/bin/python -c \
        "import sysconfig; print(sysconfig.get_path('purelib'))")')" \
        > LUCENT/lib/python3.11/site-packages/cnnvis.pth
    LUCENT/bin/pip install --no-deps torch-lucent==0.1.8 'kornia<=0.4.1'
    LUCENT/bin/pip install tqdm decorator ipython
    LUCENT/bin/python tests/peers/optimize.py ...
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import click
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Layer
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network

CNNVIS, WHOLE = "cnnvis optimize", "cnnvis optimize, whole command"
FEW = 50  # iterations of the shorter command
WARMING = 3  # steps before the clock is started
DECAY, BLUR, EVERY = 1e-4, 1.0, 4  # style 3, Yosinski et al. 2015, table 1

Paces = dict[str, float]  # unit steps per second, by the row of the table


@dataclass(frozen=True)
class Task:
    """What every tool is given."""

    model: str
    weights: str | None
    device: str
    layer: str
    units: int
    seconds: float  # to measure for, at the least
    cores: int

    def network(self) -> Network:
        torch.set_num_threads(self.cores)
        flags = {"model": self.model, "weights": self.weights, "device": self.device}
        return load_network(Plan.make(None, flags))

    @property
    def environment(self) -> dict[str, str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}  # Lucent takes any
        return {**os.environ, "OMP_NUM_THREADS": str(self.cores), **hidden}


def now(network: Network) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if network.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def cnnvis(task: Task) -> Paces:
    first, _ = _command(task, FEW)
    iterations = FEW
    while True:
        iterations *= 2
        stage, whole = _command(task, iterations)
        if stage - first >= task.seconds:
            pace = task.units * (iterations - FEW) / (stage - first)
            return {CNNVIS: pace, WHOLE: task.units * iterations / whole}


def _command(task: Task, iterations: int) -> tuple[float, float]:
    """Return the seconds of one command, by the stage's own clock and as a whole."""
    weights = ["--weights", task.weights] if task.weights else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "cnnvis_cli", "optimize", "--model", task.model, *weights]
        command += ["--layer", task.layer, "--units", f"0-{task.units - 1}", "--style", "3"]
        command += ["--step", "1", "--iterations", str(iterations), "--device", task.device]
        command += ["--run", str(run), "--quiet"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=task.environment, stdout=sys.stderr)
        whole = time.perf_counter() - start
        return float(json.loads((run / "run.json").read_text())["optimize"]["seconds"]), whole


def toolbox(task: Task, to_the_end: bool) -> Paces:
    network = task.network()
    layer = network.layer(task.layer)
    steps = ascent(network, layer, to_the_end)
    for _ in islice(steps, WARMING):
        pass
    start = now(network)
    made = next(n for n, _ in enumerate(steps, 1) if now(network) - start >= task.seconds)
    row = "toolbox's way" if to_the_end else "toolbox's way, to the layer only"
    return {row: made / (now(network) - start)}


def ascent(network: Network, layer: Layer, to_the_end: bool, unit: int = 0) -> Iterator[Tensor]:
    """Yield the best image so far of a unit at each step of its ascent, for ever."""
    outputs: dict[str, Tensor] = {}
    x = torch.randn(1, 3, *network.size, device=network.device) * 10
    best, best_value = x, -torch.inf
    tapped = [layer, network.layers[-1]] if to_the_end else [layer]
    number = 0
    with network.tap(tapped, lambda la, output: outputs.update({la.alias: output})) as run:
        while True:
            x = ((x + network.mean).clamp(0, 255) - network.mean).requires_grad_()
            run(network.normalise(x))
            output = outputs[layer.alias]
            value = output[(0, unit, *layer.centre)[: output.dim()]]
            if value.item() > best_value:
                best, best_value = x.detach().clone(), value.item()
            (gradient,) = torch.autograd.grad(value, x)
            with torch.no_grad():
                x = (x + gradient) * (1 - DECAY)
            if number % EVERY == 0:
                x = blurred(x)
            number += 1
            yield best


def blurred(x: Tensor) -> Tensor:
    """Return each channel by scipy, as in the toolbox."""
    channels = [gaussian_filter(channel, BLUR) for channel in x[0].cpu().numpy()]
    return torch.stack([torch.from_numpy(channel) for channel in channels])[None].to(x.device)


def lucent(task: Task, batch: bool, at_canvas: bool) -> Paces:
    names = ("objectives", "param", "render")
    objectives, param, render = (import_module(f"lucent.optvis.{name}") for name in names)
    network = task.network()
    layer = network.layer(task.layer)
    height, width = network.canvas(layer).size
    count = task.units if batch else 1
    name = layer.module.replace(".", "_")
    each = [objectives.neuron(name, unit, batch=unit) for unit in range(count)]

    def climb(steps: int) -> float:
        """Return the seconds of so many steps."""
        start = now(network)
        render.render_vis(
            network.module,
            objectives.Objective.sum(each),
            param_f=lambda: param.image(width, height, batch=count),
            thresholds=(steps,),
            progress=False,
            show_image=False,
            fixed_image_size=(height, width) if at_canvas else None,
        )
        return now(network) - start

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the layers behind do not fit into the canvas
        climb(WARMING)
        steps = max(WARMING, ceil(task.seconds * WARMING / climb(WARMING)))
        pace = count * steps / climb(steps)
    size = ", at the canvas's size" if at_canvas else ", as it comes"
    return {f"Lucent{size}{f', {count} at a time' if batch else ''}": pace}


TOOLS: dict[str, Callable[[Task], Paces]] = {
    "cnnvis": cnnvis,
    "toolbox": partial(toolbox, to_the_end=True),
    "toolbox-to-layer": partial(toolbox, to_the_end=False),
    "lucent": partial(lucent, batch=False, at_canvas=False),
    "lucent-batch": partial(lucent, batch=True, at_canvas=False),
    "lucent-canvas": partial(lucent, batch=False, at_canvas=True),
    "lucent-canvas-batch": partial(lucent, batch=True, at_canvas=True),
}


def in_its_own_process(name: str, task: Task) -> Paces | None:
    """None where the tool is not installed."""
    command = [sys.executable, __file__, "--only", name]
    for option, value in asdict(task).items():
        command += [f"--{option}", str(value)] if value is not None else []
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=task.environment
    )
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr}")
    found: Paces | None = json.loads(done.stdout.splitlines()[-1])  # after what the tool prints
    return found


def rows_of(name: str, rounds: list[dict[str, Paces | None]]) -> list[dict[str, Any]]:
    """Return a tool's rows of the table: paces of all rounds, medians of ratios within each."""
    pairs = [(ours[CNNVIS], its) for r in rounds if (its := r[name]) and (ours := r["cnnvis"])]
    if not pairs:
        return [{"tool": name, "installed": False}]
    return [
        {
            "tool": row,
            "unit_steps_per_second": [round(its[row], 2) for _, its in pairs],
            "cnnvis_is_times_as_fast": round(
                statistics.median(ours / its[row] for ours, its in pairs), 3
            ),
        }
        for row in pairs[0][1]
    ]


def line(row: dict[str, Any]) -> str:
    if "installed" in row:
        return f"  {row['tool']:44}not installed"
    paces = row["unit_steps_per_second"]
    spread = f"{min(paces):.1f} to {max(paces):.1f}"
    median, times = statistics.median(paces), row["cnnvis_is_times_as_fast"]
    return f"  {row['tool']:44}{median:10.1f}{spread:>22}{times:13.2f}"


@click.command()
@click.option("-m", "--model", required=True)
@click.option("-w", "--weights")
@click.option("-l", "--layer", "layers", multiple=True, required=True, help="Repeatable.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--units", default=32, show_default=True, help="Of cnnvis, and in a batch of Lucent.")
@click.option("--seconds", default=5.0, show_default=True, help="Of each tool, at the least.")
@click.option("--cores", type=int, help="For each tool.  [default: all]")
@click.option("--rounds", default=1, show_default=True, help="Of all tools, one after another.")
@click.option("--only", type=click.Choice(list(TOOLS)), help="This tool, in this process.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def main(
    layers: tuple[str, ...],
    cores: int | None,
    rounds: int,
    only: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure unit steps per second of cnnvis optimize, of Lucent and in the toolbox's way."""
    cores = cores or len(os.sched_getaffinity(0))
    tasks = [Task(layer=layer, cores=cores, **given) for layer in layers]
    if only:
        try:
            print(json.dumps(TOOLS[only](tasks[0])))
        except ImportError:
            print("null")
        return
    found: dict[str, list[dict[str, Paces | None]]] = {layer: [] for layer in layers}
    for _ in range(rounds):
        for task in tasks:
            found[task.layer].append({name: in_its_own_process(name, task) for name in TOOLS})
    rows = {la: [row for name in TOOLS for row in rows_of(name, found[la])] for la in layers}
    if as_json:
        about = {**given, "cores": cores, "rounds": rounds, "torch": torch.__version__}
        print(json.dumps({**about, "layers": rows}, indent=1))
        return
    print(f"{'':46}{'unit-steps/s':>10}{'least to most':>20}{'cnnvis is x':>13}")
    for layer in layers:
        print("\n".join([layer, *map(line, rows[layer])]))


if __name__ == "__main__":
    main()
