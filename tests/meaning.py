"""Does an optimized image of a class show the class? How often a network says so, as a table.

    python tests/meaning.py outputs/run                            the network itself
    python tests/meaning.py outputs/run --by second.safetensors    another of the same shape
    python tests/meaning.py outputs/run --by-model mobilenetv2:network --trust-code \\
        --by mobilenetv2_imagenet.safetensors --by-config judge.toml --offset 1

The run's last layer has the network's classes. They are matched with those of the network that is
asked by name, or with --offset by number: its class c + OFFSET is the run's class c. --by-config is
a plan with what else it needs, such as its [preprocessing].

Each of the layer's styles has two lines: for the picture as the network sees it ("true"), and for
the one that figures show, x / max(2 max, -2 min) + 0.5 ("stretched"). The columns are the share of
images whose class is the first, or among the first five, of the network's; then the same after a
shift of 4 pixels and a blur of 1 pixel together ("moved"); and the share of classes with any image
right. `make meaning` trains a second demo network from another seed and asks it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cnnvis_cli.ascent.scores import blur, shift
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.store.optimized import OptimizedFile

SHIFT = 4  # pixels, down and right
BATCH = 20
FIRST = 5
ABSENT = -1  # of a class that the network that is asked does not have
FAILED = 12  # classes that are named

HEAD = f"{'style':16}{'picture':11}{'top-1':>8}{'top-5':>8}{'moved':>8}{'top-5':>8}{'any':>8}"


class Classes(NamedTuple):
    """A network's classes."""

    name: str
    number: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: Network) -> Classes:
        return cls(network.name, network.layers[-1].channels, network.classes)


def matched(own: Classes, judge: Classes, offset: int | None = None) -> list[int]:
    """Return each class of a network as the number of the same class of the one that is asked.

    `ABSENT` where that one has no such name, or several. Raise `UsageError` where neither names nor
    an offset say which belong together.
    """
    if offset is not None:
        if not 0 <= offset <= judge.number - own.number:
            raise UsageError(
                f"--offset {offset}: {own.name} has {own.number} classes, "
                f"{judge.name} {judge.number}"
            )
        return list(range(offset, offset + own.number))
    if own.names == judge.names and own.number == judge.number:
        return list(range(own.number))
    if own.names and judge.names:
        names = [first_name(name) for name in judge.names]
        place, often = {name: c for c, name in enumerate(names)}, Counter(names)
        wanted = [first_name(name) for name in own.names]
        twice = Counter(wanted)
        found = [place[name] if often[name] == twice[name] == 1 else ABSENT for name in wanted]
        if set(found) == {ABSENT}:
            raise UsageError(f"{own.name} and {judge.name} have no name in common; give --offset")
        return found
    if own.number == judge.number:
        return list(range(own.number))
    raise UsageError(
        f"{own.name} has {own.number} classes and {judge.name} {judge.number}, and not both have "
        "names; say with --offset which belong together"
    )


def first_name(name: str) -> str:
    """Return the first of a class's names, in lower case and without marks."""
    return re.sub(r"[\W_]+", " ", name.split(",", maxsplit=1)[0]).strip().casefold()


def class_images(file: OptimizedFile, group: str, network: Network) -> tuple[Tensor, Tensor]:
    """Return images on their canvas, (N, 3, h, w) mean-subtracted, and their classes (N,)."""
    images = torch.from_numpy(file.read(group, "image").astype(np.float32))
    runs = images.shape[1]
    classes = torch.from_numpy(file.units(group).astype(np.int64)).repeat_interleave(runs)
    return images.flatten(0, 1).permute(0, 3, 1, 2), classes


def stretched(images: Tensor, mean: Tensor) -> Tensor:
    """Return images as figures show them, again mean-subtracted: (N, 3, h, w)."""
    top = torch.maximum(images.amax((1, 2, 3)), -images.amin((1, 2, 3)))[:, None, None, None]
    shown = images / torch.where(top > 0, 2 * top, 1) + 0.5
    return shown * 255 - mean


def whole(images: Tensor, network: Network) -> Tensor:
    """Return images in the middle of the network's input, the rest of it the mean colour."""
    down, right = (full - own for full, own in zip(network.size, images.shape[2:], strict=True))
    top, left = down // 2, right // 2
    return functional.pad(images, (left, right - left, top, down - top))


def ranks(judge: Network, images: Tensor, mean: Tensor, wanted: Tensor) -> Tensor:
    """Return the place of each image's class among all classes, 0 the first: (N,).

    Images are (N, 3, H, W), less `mean`, of another network's input; those of another size are
    scaled to the judge's. An `ABSENT` class has the last place.
    """
    found = []
    for part in torch.split(images + mean, BATCH):
        seen = part
        if part.shape[2:] != judge.size:
            seen = functional.interpolate(part, judge.size, mode="bilinear", antialias=True)
        with torch.inference_mode():
            values = judge.module(judge.normalise(seen.to(judge.device) - judge.mean)).cpu()
        found.append(values.flatten(1))
    scores = torch.cat(found)
    own = scores.gather(1, wanted.clamp(min=0)[:, None])
    place = (~(scores <= own)).sum(dim=1)  # the last one for what is no number
    return torch.where(wanted == ABSENT, scores.shape[1], place)


def disturbed(images: Tensor) -> Tensor:
    return blur(shift(images, SHIFT, SHIFT))


def line(style: str, picture: str, plain: Tensor, moved: Tensor, classes: Tensor) -> str:
    """Return a line of the table: shares of images, and of classes with any image right."""
    chosen = sorted(set(classes.tolist()))
    shares = [float((place < n).float().mean()) for place in (plain, moved) for n in (1, FIRST)]
    shares.append(float(np.mean([bool((plain[classes == c] == 0).any()) for c in chosen])))
    return f"{style:16}{picture:11}" + "".join(f"{share:>8.1%}" for share in shares)


def failures(moved: Tensor, classes: Tensor, names: Sequence[str]) -> str:
    """Return the classes of which images fail after shift and blur, and how many of each."""
    counts = Counter(classes[moved > 0].tolist())
    named = [f"{names[c] if names else c} {count}" for c, count in sorted(counts.items())]
    more = f" and {len(named) - FAILED} more" if len(named) > FAILED else ""
    return f"    moved and wrong: {', '.join(named[:FAILED]) or 'none'}{more}"


def judged(network: Network, judge: Network, file: OptimizedFile, places: Sequence[int]) -> None:
    """Print the table of a file of class images."""
    print(f"{file.path}: judged by {judge.name}, {judge.layers[-1].channels} classes\n\n{HEAD}")
    for group, made in file.styles().items():
        if made.get("targets") or made.get("minimise"):
            continue  # no image of a class
        images, classes = class_images(file, group, network)
        wanted = torch.tensor(places)[classes]
        known = wanted != ABSENT
        pictures = {"true": images, "stretched": stretched(images, network.mean)}
        for picture, shown in pictures.items():
            inputs = whole(shown, network)[known]
            plain, moved = (
                ranks(judge, each, network.mean, wanted[known])
                for each in (inputs, disturbed(inputs))
            )
            print(line(group, picture, plain, moved, classes[known]))
        print(failures(moved, classes[known], network.classes))
        if not known.all():
            print(f"    left out, since their class has no match: {int((~known).sum())} images")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--by", help="weights of the network that is asked")
    parser.add_argument(
        "--by-model", help="that network, if it is another: NAME or module:function"
    )
    parser.add_argument("--by-config", type=Path, help="a plan with its preprocessing")
    parser.add_argument("--offset", type=int, help="its class c + OFFSET is the run's class c")
    parser.add_argument("--trust-code", action="store_true", help="run the networks' own code")
    return parser.parse_args()


def main() -> None:
    asked = parsed()
    plan = Plan(run=asked.run, trust_code=asked.trust_code)
    with open_session(plan, Report(quiet=True), new=False) as session:
        network = judge = session.network
        if asked.by or asked.by_model or asked.by_config:
            model = asked.by_model or (None if asked.by_config else network.name)
            flags = {"model": model, "weights": asked.by, "trust_code": asked.trust_code or None}
            judge = load_network(Plan.make(asked.by_config, flags))
        places = matched(Classes.of(network), Classes.of(judge), asked.offset)
        alias = network.layers[-1].alias
        judged(network, judge, OptimizedFile(session.run.optimized(alias)), places)


if __name__ == "__main__":
    try:
        main()
    except CnnvisError as error:
        sys.exit(f"meaning: {error}")
