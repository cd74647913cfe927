"""Broken image files without end: small whole ones of six formats, damaged by a seeded generator.

    python mutate.py write FOLDER COUNT SEED    write so many files into class folders
    python mutate.py decode FOLDER              decode them as topk does; prints figures as JSON

The second is for a process of its own, so that a crash is seen.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnvis_cli.dataset.batches import Batches
from cnnvis_cli.dataset.decode import prepare
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.nouns import Preprocessing

Rng = np.random.Generator
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
Kind = tuple[str, dict[str, Any]]  # mode of the picture, settings of the writer and its frames
PLAIN: dict[str, Kind] = {
    mode: (mode, {}) for mode in ("RGB", "L", "P", "CMYK", "I;16", "RGBA", "LA", "1", "F")
}
WHOLE: dict[str, list[Kind]] = {
    "JPEG": [
        *(PLAIN[mode] for mode in ("RGB", "L", "CMYK")),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "restart_marker_blocks": 2, "comment": b"c" * 40}),
    ],
    "PNG": [
        *(PLAIN[mode] for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")),
        ("P", {"transparency": 3}),
        ("RGB", {"save_all": True, "frames": 3}),
    ],
    "GIF": [
        *(PLAIN[mode] for mode in ("P", "L")),
        ("P", {"interlace": 0}),
        ("P", {"transparency": 5}),
        ("RGB", {"save_all": True, "frames": 4, "duration": 20, "loop": 0}),
    ],
    "BMP": [PLAIN[mode] for mode in ("RGB", "L", "P", "1", "RGBA")],
    "TIFF": [
        *(PLAIN[mode] for mode in ("RGB", "L", "P", "CMYK", "I;16", "RGBA", "F")),
        *[("RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")],
        ("1", {"compression": "group4"}),
        ("RGB", {"save_all": True, "frames": 3, "compression": "packbits"}),
    ],
    "WEBP": [
        PLAIN["RGB"],
        ("RGBA", {"lossless": True}),
        ("RGB", {"quality": 20}),
        ("RGB", {"save_all": True, "frames": 3, "duration": 20}),
    ],
}


def picture(rng: Rng, mode: str) -> Image.Image:
    """Blobs and noise, between 8 and 90 pixels a side."""
    width, height = (int(side) for side in rng.integers(8, 90, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(noisy[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(noisy).convert(mode)


def whole(rng: Rng, form: str, kind: int) -> bytes:
    """Return a valid file of a format, in one of its kinds."""
    mode, settings = WHOLE[form][kind % len(WHOLE[form])]
    first, buffer = picture(rng, mode), io.BytesIO()
    frames = [first.transpose(Image.Transpose.ROTATE_180)] * (settings.get("frames", 1) - 1)
    first.save(buffer, form, **{**settings, **({"append_images": frames} if frames else {})})
    return buffer.getvalue()


# What can be done to a file; each takes the generator, the file and another one


def _flip_bits(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    for place in rng.integers(0, len(content), rng.integers(1, 9)):
        content[place] ^= 1 << int(rng.integers(8))
    return content


def _overwrite(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 17))
    new = rng.choice([b"\x00" * length, b"\xff" * length, rng.bytes(length)])
    content[start : start + length] = bytes(new)
    return content


def _cut(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    return content[: int(rng.integers(len(content)))]


def _piece(rng: Rng, content: bytearray) -> slice:
    start = int(rng.integers(len(content)))
    return slice(start, start + int(rng.integers(1, 200)))


def _repeat(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    """Return the data with a piece repeated behind itself, up to fifty times."""
    piece = _piece(rng, content)
    content[piece.start : piece.start] = content[piece] * int(rng.integers(1, 51))
    return content


def _delete(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    del content[_piece(rng, content)]
    return content


def _splice(rng: Rng, content: bytearray, other: bytes) -> bytearray:
    """Return the beginning of one file and the end of another."""
    return content[: int(rng.integers(len(content)))] + other[int(rng.integers(len(other))) :]


def _lengths(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    """Absurd numbers among the first bytes, where sizes, lengths and offsets are."""
    for place in rng.integers(2, min(len(content), 120), rng.integers(1, 4)):
        width = int(rng.choice([2, 4]))
        number = int(rng.choice([0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 4096, 20000]))
        order = "big" if rng.integers(2) else "little"
        content[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
    return content


def _head(rng: Rng, content: bytearray, _other: bytes) -> bytearray:
    """Another byte somewhere in the header."""
    content[int(rng.integers(min(len(content), 64)))] = int(rng.integers(256))
    return content


def _with_right_sums(content: bytes) -> bytes:
    """Return a PNG whose chunks have valid CRCs: otherwise nothing behind them is read."""
    fixed, place = bytearray(content), 8
    while place + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, place)
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


Mutation = Callable[[Rng, bytearray, bytes], bytearray]
MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bits, _overwrite, _cut, _repeat, _delete, _splice, _lengths, _head),
)


def mutated(seed: int, number: int) -> tuple[str, bytes]:
    """Return the suffix and content of a file: a function of the seed and its number."""
    rng = np.random.default_rng([seed, number])
    form = list(SUFFIXES)[number % len(SUFFIXES)]
    content = bytearray(whole(rng, form, number // len(SUFFIXES)))
    other = whole(rng, str(rng.choice(list(SUFFIXES))), int(rng.integers(99)))
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        content = mutation(rng, content, other) if len(content) > 2 else content
    mended = form == "PNG" and rng.integers(4) > 0
    return SUFFIXES[form], _with_right_sums(bytes(content)) if mended else bytes(content)


def write(folder: Path, count: int, seed: int) -> None:
    """So many mutated files in a class folder for each suffix."""
    for number in range(count):
        suffix, content = mutated(seed, number)
        place = folder / suffix / f"{number:05d}.{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def memory() -> dict[str, float]:
    """Megabytes that this process has resident, and had at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def _timed(batches: Batches) -> Iterator[tuple[bool, float]]:
    """Of each image, whether it could be used and how many seconds it took."""
    before = time.perf_counter()
    for batch in batches.read(range(len(batches))):
        assert batch.used.sum() + len(batch.failures) == 1
        yield bool(batch.used[0]), time.perf_counter() - before
        before = time.perf_counter()


def decode(folder: Path) -> dict[str, Any]:
    """Decode every file as topk does, exactly and fast, once what that needs is loaded."""
    manifest = Manifest.scan(folder)
    shown = Preprocessing(resize=64, crop=(64, 64))
    prepare(Image.new("RGB", (90, 90)), shown)
    found: dict[str, Any] = {"images": len(manifest), "before": memory()}
    for fast in (False, True):
        times = list(_timed(Batches(manifest, shown, 1, fast=fast)))
        slowest = max(range(len(times)), key=lambda i: times[i][1])
        found["fast" if fast else "exact"] = {
            "decoded": sum(used for used, _ in times),
            "skipped": sum(not used for used, _ in times),
            "slowest": times[slowest][1],
            "which": manifest.path(slowest),
        }
    return {**found, "after": memory()}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(decode(Path(sys.argv[2]))))
