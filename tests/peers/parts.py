"""How much room the parts of a top-k take, and how long joining and finishing them lasts.

    python tests/peers/parts.py --channels 76700 --parts 64 --images 98

Made-up parts of as many channels as a network has (ResNet-152: 76,700 in its 156 layers), each of
some images of three classes. Times are of processor time, in one process.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.histogram import BINS
from cnnvis_cli.nouns import Axis, Layer, ReceptiveField
from cnnvis_cli.stages.topk.assemble import _layer_groups, _results
from cnnvis_cli.stages.topk.job import Partition, TopKJob
from cnnvis_cli.store.parts import Parts

K, SAMPLED = 9, 8  # places of an image's map in the histogram


@dataclass(frozen=True)
class Cut(Partition):
    """As many parts as are asked for, of one batch each."""

    @property
    def length(self) -> int:
        return 1


def part(number: int, channels: int, images: int) -> Arrays:
    """Return what a part of `images` images may hold."""
    rng = np.random.default_rng(number)
    activation = -np.sort(-rng.normal(2, 1, (channels, K)).astype(np.float32), axis=1)
    steps = rng.normal(BINS * 0.7, 14, (channels, images * SAMPLED)).astype(np.int64)
    steps = np.clip(steps, 0, BINS - 1) + BINS * np.arange(channels)[:, None]
    bins, counts = np.unique(steps, return_counts=True)
    return {
        "activation": activation,
        "image": rng.integers(0, images, (channels, K)) + number * images,
        "place": rng.integers(0, 3136, (channels, K)).astype(np.int32),
        **{n: rng.normal(size=channels) for n in ("total", "squares", "positive")},
        "active": rng.integers(0, 9999, channels).astype(np.float64),
        "images": np.array([images]),
        "bin": bins.astype(np.int32),
        "count": counts.astype(np.int32),
        "class": np.arange(3, dtype=np.int32) + 2 * number,
        "class_images": np.full(3, images // 3),
        "class_positive": rng.random((3, channels), np.float32),
        "crc": np.zeros(images, np.uint32),
        "failures": np.zeros(0, np.int64),
        "reasons": np.zeros(0, "S"),
    }


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.h5"))


@click.command()
@click.option("--channels", default=76_700)
@click.option("--parts", default=64)
@click.option("--images", default=98, help="Per part.")
def main(channels: int, parts: int, images: int) -> None:
    axis = ReceptiveField(Axis(3, 1, 0), Axis(3, 1, 0))
    each = channels // 150
    names = [Layer(f"conv{n}", f"{n}", "conv", each, (56, 56), axis) for n in range(150)]
    folder = Path(tempfile.mkdtemp())
    job = TopKJob({"batch_size": images}, [], tuple(names), Parts(folder, "x"), None, None)  # type: ignore[arg-type]
    cut = Cut(parts * images, images)
    TopKJob.cut = cut  # type: ignore[assignment,method-assign]
    most = plain = keeping = 0.0
    for number in range(parts):
        arrays = part(number, each * 150, images)
        start = time.process_time()
        job.keep(number, arrays, {})
        keeping += time.process_time() - start
        plain += sum(values.nbytes for values in arrays.values())
        most = max(most, size(folder))
    print(f"{parts} parts of {channels} channels: {plain / 1e9:.2f} GB apart")
    print(f"joined: {most / 1e9:.2f} GB at most, {size(folder) / 1e9:.2f} GB at the end")
    print(f"keeping and joining: {keeping / parts:.2f} s per part")
    start = time.process_time()
    groups = _layer_groups(job.layers, 10**9)
    count = sum(1 for _ in _results({"k": K, "min": False}, cut, groups, [job.parts]))
    print(f"adding up {count} layers: {time.process_time() - start:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 1e6:.2f} GB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
