"""How fast `cnnvis topk` is beside its peers: one folder, one network, all its layers, in one run.

    python tests/peers/topk.py DATASET --model squeezenet1_0 --weights FILE

Every tool runs in a process of its own, and may use the same cores. All are shown the pixels that
torchvision's own transforms give, through the network that cnnvis builds, channels last.

cnnvis
    its command line, with the files that it writes; by the stage's own clock, as the peers are
    measured without their imports and the loading of the network, and as a whole.
zennit-crp
    `FeatureVisualization.run` for maxima of activations, keeping k of them. As it comes, it also
    goes backward through the network for relevances, here without any of its rules, which is the
    cheapest. It has no setting for activations alone, but its hooks allow it: forward only, it is
    handed an attribution that ends with the forward pass. It decodes in threads of its own.
baukit
    `tally` into a `TopK` a layer, of the maximum of each map, taken by a `TraceDict` as the output
    passes. Its loader decodes in one process a core.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network

WHOLE = "cnnvis topk, whole command"
Best = dict[str, list[float]]  # of each module, each channel's strongest activation


@dataclass(frozen=True)
class Task:
    """What every tool is given."""

    dataset: Path
    model: str
    weights: str | None
    device: str
    k: int
    batch_size: int
    cores: int

    def network(self) -> Network:
        torch.set_num_threads(self.cores)
        flags = {"model": self.model, "weights": self.weights, "device": self.device}
        return load_network(Plan.make(None, flags))

    @property
    def options(self) -> list[str]:
        """As they are called on the command line, ours and that of cnnvis."""
        weights = ["--weights", self.weights] if self.weights else []
        numbers = ["-k", str(self.k), "--batch-size", str(self.batch_size)]
        return ["--model", self.model, *weights, "--device", self.device, *numbers]


@dataclass(frozen=True)
class Found:
    """A tool's results: seconds by the row of the table, and what it found."""

    seconds: dict[str, float]
    images: int
    best: Best


class Photographs(Dataset[tuple[Tensor, int]]):
    """The images of a folder, decoded: uint8 (height, width, 3), all of one class."""

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        found = folder.rglob("*")
        self.paths = sorted(path for path in found if path.suffix.lower() in IMG_EXTENSIONS)
        mode = transforms.InterpolationMode(preprocessing.interpolation)
        resize = transforms.Resize(preprocessing.resize, mode)
        self.prepare = transforms.Compose([resize, transforms.CenterCrop(preprocessing.crop)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.array(self.prepare(image.convert("RGB")))), 0


@dataclass(frozen=True)
class ForwardOnly:
    """What FeatureVisualization asks of an attribution, with no backward pass."""

    model: nn.Module
    device: torch.device
    MODEL_OUTPUT_NAME: str = "y"

    def __call__(self, data: Tensor, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            self.model(data)


def cnnvis(task: Task) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "cnnvis_cli", "topk", str(task.dataset), *task.options]
        command += ["--workers", str(task.cores), "--run", str(run), "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(task.cores)}
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        stage = json.loads((run / "run.json").read_text())["topk"]["seconds"]
        with h5py.File(run / "topk.h5") as file:
            layers = file["layers"].values()
            best = {la.attrs["module"]: la["activation"][:, 0].tolist() for la in layers}
            return Found({"cnnvis topk": stage, WHOLE: seconds}, int(file.attrs["images"]), best)


def zennit_crp(task: Task, backward: bool) -> Found:
    crp = import_module("crp.visualization")
    network = task.network()
    images = Photographs(task.dataset, network.preprocessing)
    names = [layer.module for layer in network.layers]
    attribution = (
        crp.CondAttribution(network.module)
        if backward
        else ForwardOnly(network.module, network.device)
    )
    with tempfile.TemporaryDirectory() as folder:
        visualization = crp.FeatureVisualization(
            attribution,
            images,
            dict.fromkeys(names, crp.ChannelConcept()),
            preprocess_fn=lambda batch: network.normalise(network.centre(batch)),
            max_target="max",
            abs_norm=False,
            path=folder,
        )
        for part in ("ActMax", "ActStats", "RelMax", "RelStats"):
            getattr(visualization, part).SAMPLE_SIZE = task.k
        # It stumbles over a last batch of one image: as little above the batch size as avoids it.
        sizes = range(task.batch_size, len(images) + 1)
        size = next((n for n in sizes if len(images) % n != 1), task.batch_size)
        gc.freeze()  # it collects garbage a dozen times, which would weigh in a small dataset
        start = time.perf_counter()
        visualization.run(None, 0, len(images), size)
        seconds = time.perf_counter() - start
        kept = visualization.ActMax.PATH
        best = {name: np.load(kept / f"{name}_rel.npy")[0].tolist() for name in names}
    row = "zennit-crp, as it comes" if backward else "zennit-crp, forward only"
    return Found({row: seconds}, len(images), best)


def baukit(task: Task) -> Found:
    bau = import_module("baukit")
    network = task.network()
    images = Photographs(task.dataset, network.preprocessing)
    names = [layer.module for layer in network.layers]
    stats = bau.CombinedStat(**{name: bau.TopK(task.k) for name in names})

    def see(output: Tensor, layer: str) -> Tensor:
        getattr(stats, layer).add(output.amax((2, 3)) if output.dim() == 4 else output)
        return output

    start = time.perf_counter()
    loader = bau.tally(stats, images, batch_size=task.batch_size, num_workers=task.cores)
    trace = bau.TraceDict(network.module, names, retain_output=False, edit_output=see)
    with torch.inference_mode(), trace:
        for batch, _ in loader:
            network.module(network.normalise(network.centre(batch)))
    best = {name: getattr(stats, name).topk()[0][:, 0].tolist() for name in names}
    return Found({"baukit": time.perf_counter() - start}, len(images), best)


@dataclass(frozen=True)
class Tool:
    measure: Callable[[Task], Found]
    places: bool  # whether it records where in the image the maximum is


TOOLS = {
    "cnnvis": Tool(cnnvis, True),
    "zennit-crp": Tool(partial(zennit_crp, backward=True), True),
    "zennit-crp-forward": Tool(partial(zennit_crp, backward=False), True),
    "baukit": Tool(baukit, False),
}


def in_its_own_process(name: str, task: Task) -> Found | None:
    """None where the tool is not installed."""
    command = [sys.executable, __file__, str(task.dataset), *task.options, "--only", name]
    command += ["--cores", str(task.cores)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])  # after what the tool itself prints
    return said and Found(**said)


def difference(one: Best, other: Best) -> float:
    """Return the largest difference of two strongest activations, relative to their layer's."""
    pairs = [(np.array(one[name]), np.array(other[name])) for name in one | other]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def rows_of(name: str, rounds: list[dict[str, Found | None]]) -> list[dict[str, Any]]:
    """Return a tool's rows of the table: medians of all rounds, ratios within each."""
    pairs = [(ours, its) for r in rounds if (its := r[name]) and (ours := r["cnnvis"])]
    if not pairs:
        return [{"tool": name, "installed": False}]
    rows = []
    for row in pairs[0][1].seconds:
        rates = [its.images / its.seconds[row] for _, its in pairs]
        ratios = [its.seconds[row] / ours.seconds["cnnvis topk"] for ours, its in pairs]
        found = {
            "tool": row,
            "images_per_second": [round(rate, 2) for rate in rates],
            "cnnvis_is_times_as_fast": round(statistics.median(ratios), 3),
            "records_place": TOOLS[name].places,
            "differs_by": max(difference(ours.best, its.best) for ours, its in pairs),
        }
        rows.append(found)
    return rows


def line(row: dict[str, Any]) -> str:
    if "installed" in row:
        return f"{row['tool']:28}not installed"
    speed = statistics.median(row["images_per_second"])
    times, place = row["cnnvis_is_times_as_fast"], "yes" if row["records_place"] else "no"
    return f"{row['tool']:28}{speed:9.1f}{times:13.2f}{place:>7}{row['differs_by']:12.0e}"


@click.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-m", "--model", required=True)
@click.option("-w", "--weights")
@click.option("--device", default="cpu", show_default=True)
@click.option("-k", default=9, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--cores", type=int, help="For each tool.  [default: all]")
@click.option("--rounds", default=1, show_default=True, help="Of all tools, one after another.")
@click.option("--only", type=click.Choice(list(TOOLS)), help="This tool, in this process.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def main(cores: int | None, rounds: int, only: str | None, as_json: bool, **given: Any) -> None:
    """Measure images per second of cnnvis topk, zennit-crp and baukit over the images of DATASET.

    Where all of them found the same strongest activations, they differ by 1e-3 at most.
    """
    task = Task(cores=cores or len(os.sched_getaffinity(0)), **given)
    if only:
        try:
            print(json.dumps(vars(TOOLS[only].measure(task))))
        except ImportError:
            print("null")
        return
    found = [{name: in_its_own_process(name, task) for name in TOOLS} for _ in range(rounds)]
    counts = {its.images for r in found for its in r.values() if its}
    if len(counts) > 1:
        raise click.ClickException(f"the tools saw {sorted(counts)} images; compare other images")
    rows = [row for name in TOOLS for row in rows_of(name, found)]
    if as_json:
        about = {"model": task.model, "images": counts.pop(), "k": task.k, "cores": task.cores}
        print(json.dumps({**about, "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print(f"{'':28}{'images/s':>9}{'cnnvis is x':>13}{'place':>7}{'differs by':>12}")
    print("\n".join(line(row) for row in rows))


if __name__ == "__main__":
    main()
