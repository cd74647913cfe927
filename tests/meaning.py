"""Does an optimized image of a class show the class? How often networks say so.

    python tests/meaning.py outputs/run                      the network itself
    python tests/meaning.py outputs/run --by second.safetensors    another of the same shape

For each layer's group in the run directory whose units are the network's classes: the share of
images that are classified as their class, and that still are after a shift of 4 pixels and a blur
of 1 pixel together. `make meaning` trains a second demo network from another seed and uses it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.ascent.scores import blur, shift
from cnnvis_cli.network.network import Network
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.store.optimized import OptimizedFile

SHIFT = 4  # pixels, down and right
BATCH = 20


def class_images(file: OptimizedFile, group: str, network: Network) -> tuple[Tensor, Tensor]:
    """Images in the whole input, (N, 3, H, W) mean-subtracted, and their classes (N,)."""
    images = torch.from_numpy(file.read(group, "image").astype(np.float32))
    units, runs = images.shape[:2]
    classes = torch.from_numpy(file.units(group).astype(np.int64)).repeat_interleave(runs)
    pixels = images.flatten(0, 1).permute(0, 3, 1, 2)
    whole = torch.zeros(units * runs, 3, *network.size)
    top, left = (
        (full - own) // 2 for full, own in zip(network.size, pixels.shape[2:], strict=True)
    )
    whole[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels
    return whole, classes


def right(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """Return which images are classified as their class: (N,) bool."""
    with torch.inference_mode():
        found = [
            network.module(network.normalise(part.to(network.device))).argmax(dim=1).cpu()
            for part in torch.split(images, BATCH)
        ]
    return torch.cat(found) == classes


def disturbed(images: Tensor) -> Tensor:
    return blur(shift(images, SHIFT, SHIFT))


def report(network: Network, images: Tensor, classes: Tensor, names: tuple[str, ...]) -> str:
    """Both rates, the share of classes of which any image is right, and the classes that fail."""
    plain, moved = right(network, images, classes), right(network, disturbed(images), classes)
    failed = [
        f"{names[c] if names else c} {int((~moved & (classes == c)).sum())}"
        for c in sorted(set(classes.tolist()))
        if bool((~moved & (classes == c)).any())
    ]
    any_of = np.mean([bool(plain[classes == c].any()) for c in sorted(set(classes.tolist()))])
    return (
        f"{plain.float().mean():.1%} right, {moved.float().mean():.1%} after shift and blur, "
        f"{any_of:.0%} of classes with any image right; fail after shift and blur: "
        f"{', '.join(failed) or 'none'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--by", help="weights of the network that is asked")
    asked = parser.parse_args()
    with open_session(Plan(run=asked.run), Report(quiet=True), new=False) as session:
        judge = session.network
        if asked.by:
            judge = load_network(Plan(model=session.network.name, weights=asked.by))
        last = session.network.layers[-1]
        file = OptimizedFile(Path(asked.run) / "optimized" / f"{last.alias}.h5")
        for group in file.styles():
            images, classes = class_images(file, group, session.network)
            print(f"{last.alias} {group}: {report(judge, images, classes, judge.classes)}")


if __name__ == "__main__":
    main()
