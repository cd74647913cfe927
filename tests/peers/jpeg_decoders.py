"""Whether simplejpeg gives the pixels that Pillow gives, and how long either takes.

    python tests/peers/jpeg_decoders.py [DATASET] --files 1200

JPEGs of every kind that is met are made from random pictures, from seeds: each sampling of colours,
progressive or not, odd sizes, grey, CMYK, RGB, restart markers, broken ends and flipped bytes. With
DATASET, its files are compared as well and timed, one after the other, in processor time. A file
that simplejpeg refuses would go to Pillow; what counts is any that it reads otherwise.
"""

from __future__ import annotations

import io
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageFile

from cnnvis_cli.arrays import Pixels

ImageFile.MAXBLOCK = 1 << 22  # a progressive file is written in one go
SAMPLINGS = ("444", "422", "420", "440", "411")
BY_PILLOW = {"444": 0, "422": 1, "420": 2}
WAYS = ("whole", "whole", "whole", "cut", "flipped")


def picture(dice: np.random.Generator) -> Pixels:
    """Return a random picture (height, width, 3): coarse colours under fine noise."""
    height, width = (int(n) for n in dice.integers(1, 200, 2))
    coarse = Image.fromarray(dice.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    noise = dice.integers(-40, 41, smooth.shape)
    pixels: Pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return pixels


def encoded(number: int, dice: np.random.Generator) -> tuple[str, bytes]:
    """Return the next kind and a file of it."""
    pixels, quality = picture(dice), int(dice.integers(20, 101))
    kind = (*SAMPLINGS, "grey", "CMYK", "RGB")[number % 8]
    if kind in ("440", "411"):
        encode = import_module("simplejpeg").encode_jpeg
        return kind, encode(pixels, quality=quality, colorsubsampling=kind)
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {"quality": quality, "progressive": bool(dice.integers(2))}
    if kind in BY_PILLOW:
        options["subsampling"] = BY_PILLOW[kind]
    elif kind == "RGB":
        options["keep_rgb"] = True
    else:
        image = image.convert("L" if kind == "grey" else "CMYK")
    if dice.integers(3) == 0:
        options["restart_marker_blocks"] = int(dice.integers(1, 20))
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    progressive = " progressive" if options["progressive"] else ""
    return kind + progressive, file.getvalue()


def made(files: int) -> Iterator[tuple[str, bytes]]:
    """Yield kinds and files; some are cut short, some have flipped bytes."""
    for number in range(files):
        dice = np.random.default_rng(number)
        kind, content = encoded(number, dice)
        way = WAYS[number // 8 % len(WAYS)]
        if way == "cut":
            content = content[: int(dice.integers(len(content) // 2, len(content)))]
        elif way == "flipped":
            flipped = bytearray(content)
            for place in dice.integers(len(content) // 2, len(content), 3):
                flipped[place] = int(dice.integers(256))
            content = bytes(flipped)
        yield f"{kind}, {way}", content


def by_pillow(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def by_simplejpeg(content: bytes) -> Image.Image:
    """Return the picture in the form that is resized next."""
    decode = import_module("simplejpeg").decode_jpeg
    return Image.fromarray(decode(content, "RGB", strict=True))


def outcome(content: bytes) -> str:
    """Return how the two decoders' answers to a file compare."""
    found: list[Any] = []
    for decode in (by_pillow, by_simplejpeg):
        try:
            found.append(np.asarray(decode(content)))
        except Exception:  # either raises many kinds
            found.append(None)
    pillow, other = found
    if other is None:
        return "refused by both" if pillow is None else "left to Pillow"
    if pillow is None:
        return "REFUSED BY PILLOW ALONE"
    if np.array_equal(pillow, other):
        return "equal"
    if pillow.shape != other.shape:
        return f"OTHER SIZE {other.shape} for {pillow.shape}"
    return f"DIFFERENT by {np.abs(pillow.astype(int) - other).max()}"


def seconds_of(decode: Callable[[bytes], Image.Image], contents: list[bytes]) -> float:
    """Return the processor time per file."""
    start = time.process_time()
    for content in contents:
        decode(content)
    return (time.process_time() - start) / len(contents)


@click.command()
@click.argument("dataset", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--files", default=1200, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(dataset: Path | None, files: int, rounds: int) -> None:
    """Compare the decoders on made files and on those of DATASET."""
    tally: dict[str, Counter[str]] = {}
    for kind, content in made(files):
        tally.setdefault(kind, Counter())[outcome(content)] += 1
    contents = []
    if dataset is not None:
        contents = [path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()]
        contents = [content for content in contents if content[:2] == b"\xff\xd8"]
        tally["files of DATASET"] = Counter(map(outcome, contents))
    for kind, found in sorted(tally.items()):
        print(f"{kind:28}", ", ".join(f"{n} {what}" for what, n in sorted(found.items())))
    plain = [content for content in contents if outcome(content) == "equal"]
    if plain:
        times: dict[str, list[float]] = {"Pillow": [], "simplejpeg": []}
        for _ in range(rounds):
            times["Pillow"].append(seconds_of(by_pillow, plain))
            times["simplejpeg"].append(seconds_of(by_simplejpeg, plain))
        for name, seconds in times.items():
            print(f"{name:28} {statistics.median(seconds) * 1000:.2f} ms per file")


if __name__ == "__main__":
    main()
