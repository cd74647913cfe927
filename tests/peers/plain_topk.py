"""What a whole `cnnvis topk` costs beside a script that does no more than find the maxima.

    python tests/peers/plain_topk.py DATASET --model squeezenet1_0 --weights FILE.safetensors

The script (`--alone`) is what one writes for the purpose: hooks with amax, channels last, the
allocator keeps its memory, rectifiers in place, a loader process per core, threads that sleep while
they wait. It keeps the k largest values and their images, no places and no statistics. Each is
a process of its own; counted is the processor time of the whole process and its children. With
zennit-crp in the environment, `tests/peers/topk.py --only zennit-crp` is measured in the same way.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

OURS, PLAIN, CRP = "cnnvis topk", "a tuned script", "zennit-crp"


def alone(dataset: Path, model: str, weights: str, k: int, cores: int) -> None:
    """Find the maxima."""
    import numpy as np
    import torch
    import torchvision
    from PIL import Image
    from safetensors.torch import load_file
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    mallopt = ctypes.CDLL(None).mallopt
    for name, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
        mallopt(name, value)
    torch.set_num_threads(cores)
    transforms = torchvision.transforms
    shape = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])

    class Photographs(Dataset[Any]):
        paths = sorted(path for path in dataset.rglob("*") if path.is_file())

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(self.paths[index]) as image:
                return torch.from_numpy(np.array(shape(image.convert("RGB"))))

    network = torchvision.models.get_model(model, weights=None)
    network.load_state_dict(load_file(weights))
    network = network.eval().to(memory_format=torch.channels_last)
    best: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    first = 0

    def see(name: str, output: torch.Tensor) -> None:
        values = (output.amax((2, 3)) if output.dim() == 4 else output).T
        images = torch.arange(first, first + values.shape[1]).expand_as(values)
        if name in best:
            values = torch.cat((best[name][0], values), dim=1)
            images = torch.cat((best[name][1], images), dim=1)
        values, order = values.topk(min(k, values.shape[1]), dim=1)
        best[name] = values, images.gather(1, order)

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _m, _i, out, name=name: see(name, out))
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    with torch.inference_mode():
        for batch in DataLoader(Photographs(), batch_size=32, num_workers=cores):
            pixels = (batch.permute(0, 3, 1, 2).float() - mean) / std
            network(pixels.contiguous(memory_format=torch.channels_last))
            first += len(batch)
    with tempfile.TemporaryFile() as file:
        torch.save(best, file)


def seconds_of(command: list[str]) -> float | None:
    """Return the processor time of a command and its children; None if it fails."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has been compiled
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = code
    return None if code or b"null" in said else used.ru_utime + used.ru_stime


@click.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-m", "--model", required=True)
@click.option("-w", "--weights", required=True)
@click.option("-k", default=9, show_default=True)
@click.option("--cores", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--alone", "is_alone", is_flag=True, help="Only the script, in this process.")
def main(
    dataset: Path, model: str, weights: str, k: int, cores: int, rounds: int, is_alone: bool
) -> None:
    """Measure the processor time of whole processes, medians of rounds that measure everything."""
    if is_alone:
        alone(dataset, model, weights, k, cores)
        return
    given = [str(dataset), "--model", model, "--weights", weights, "-k", str(k)]
    peer = Path(__file__).with_name("topk.py")
    commands = {
        OURS: [sys.executable, "-m", "cnnvis_cli", "topk", *given, "--workers", str(cores), "-q"],
        PLAIN: [sys.executable, __file__, *given, "--cores", str(cores), "--alone"],
        CRP: [sys.executable, str(peer), *given, "--cores", str(cores), "--only", "zennit-crp"],
    }
    ratios: dict[str, list[float]] = {name: [] for name in commands}
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        found: dict[str, float | None] = {}
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                run = ["--run", f"{folder}/run"] if name == OURS else []
                found[name] = seconds_of([*command, *run])
        for name, seconds in found.items():
            ours = found[OURS]
            if seconds is not None and ours is not None:
                spent[name].append(seconds)
                ratios[name].append(seconds / ours)
    for name in commands:
        if spent[name]:
            middle = statistics.median(spent[name])
            print(f"{name:18}{middle:8.1f} s{statistics.median(ratios[name]):8.2f} times cnnvis")
        else:
            print(f"{name:18}not installed")


if __name__ == "__main__":
    main()
