"""Falsifications of a finished run without end: one at a time, all seals and digests made again.

Who falsifies a file can seal it again, note its digest where it is noted, and its size and time in
the receipts. So none of these gives anything away here; what does is named in the falsification.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cnnvis_cli import histogram
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.figure.png import SIGNATURE
from cnnvis_cli.store.publish import publish, publishing_hdf5

Rng = np.random.Generator


@dataclass
class Falsification:
    """What was done, and in which rows of verify's table it may be named as unproven."""

    what: str
    rows: tuple[str, ...] = ()
    all_finds: bool = False  # whether --all must find what a sample leaves unproven


@dataclass
class Content:
    """An HDF5 file in memory: arrays by name, attributes by the name of what has them."""

    arrays: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Content:
        found = cls()
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
            for name in ["/", *names]:
                found.attributes[name] = dict(file[name].attrs)
                if isinstance(file[name], h5py.Dataset):
                    found.arrays[name] = file[name][()]
                elif name != "/":
                    found.groups.append(name)
        return found

    def same(self, other: Content) -> bool:
        """Return whether two files hold the same."""
        both = [(values, other.arrays.get(name)) for name, values in self.arrays.items()]
        alike = all(b is not None and a.tobytes() == b.tobytes() for a, b in both)
        told = [repr(each.attributes) for each in (self, other)]
        return alike and len(self.arrays) == len(other.arrays) and told[0] == told[1]

    def write(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with publishing_hdf5(path) as file:
            for name in self.groups:
                file.create_group(name)
            for name, values in self.arrays.items():
                file.create_dataset(name, data=values)
            for name, own in self.attributes.items():
                if name in file:
                    file[name].attrs.update(own)


@dataclass
class Forger:
    """Falsifies a run directory in place."""

    run: Path
    rng: Rng

    def pick(self, things: Any) -> Any:
        things = list(things)
        return things[int(self.rng.integers(len(things)))]

    # the top-k

    def topk(self) -> Falsification:
        path = self.run / "topk.h5"
        content = Content.of(path)
        layers = sorted({name.split("/")[1] for name in content.arrays if name[:6] == "layers"})
        layer = self.pick(layers)
        own = {
            name.removeprefix(f"layers/{layer}/"): values
            for name, values in content.arrays.items()
            if name.startswith(f"layers/{layer}/")
        }
        change = self.pick(TOPK)
        done: Falsification = change(self, content, layer, own)
        if content.same(Content.of(path)):
            return Falsification("nothing")
        content.write(path)
        source = file_digest(path)
        for other in sorted((self.run / "projected").glob("*.h5")):
            projected = Content.of(other)
            for group in projected.groups:
                plan = json.loads(projected.attributes[group]["plan"])
                projected.attributes[group]["plan"] = json.dumps(
                    plan | {"topk": source}, sort_keys=True
                )
            projected.write(other)
        done.what = f"topk.h5 {layer}: {done.what}"
        return done

    def _slot(self, own: Any) -> tuple[int, int]:
        held = np.argwhere(own["image"] >= 0)
        channel, rank = self.pick(held.tolist())
        return int(channel), int(rank)

    def activation(self, content: Any, layer: str, own: Any) -> Falsification:
        at = self._slot(own)
        largest = float(np.nanmax(np.abs(own["activation"])))
        share = float(self.pick([-1, 1]) * 10 ** self.rng.uniform(-2.3, 0.5))
        own["activation"][at] += np.float32(share * largest)
        if at[1] == 0:
            own["stats/max"][at[0]] = own["activation"][at]
            self._quantiles(own, at[0])
        return Falsification(f"activation {at} by {share:.3g} of the largest", PLACES, True)

    def _quantiles(self, own: Any, channel: int) -> None:
        rows = slice(channel, channel + 1)
        found = histogram.quantiles(own["histogram"][rows], own["stats/max"][rows])
        own["stats/quantiles"][rows] = found

    def between(self, content: Any, layer: str, own: Any) -> Falsification:
        """A value between its neighbours': the order stays."""
        channel, rank = self._slot(own)
        values = own["activation"][channel]
        below = values[rank + 1] if rank + 1 < len(values) else values[rank] - abs(values[rank])
        room = float(values[rank] - below)
        values[rank] = below + np.float32(room * self.rng.uniform(0.05, 0.6))
        if rank == 0:
            own["stats/max"][channel] = values[0]
            self._quantiles(own, channel)
        scale = float(np.nanmax(np.abs(own["activation"])))
        seen = room * 0.4 > 0.002 * scale
        return Falsification(f"{channel}, {rank} moved within its order", PLACES, seen or True)

    def swapped_ranks(self, content: Any, layer: str, own: Any) -> Falsification:
        channel, rank = self._slot(own)
        other = (rank + 1) % own["image"].shape[1]
        for name in ("activation", "image", "position", "box"):
            own[name][channel, [rank, other]] = own[name][channel, [other, rank]]
        return Falsification(f"{channel}: ranks {rank} and {other} swapped", ("places",))

    def dropped_first(self, content: Any, layer: str, own: Any) -> Falsification:
        """The strongest place is left out; the last one is made up, or its slot is empty."""
        every = bool(self.rng.integers(2))
        rows = range(len(own["image"])) if every else [self._slot(own)[0]]
        how = self.pick(["empty", "twice", "made up"])
        for channel in rows:
            for name in ("activation", "image", "position", "box"):
                own[name][channel, :-1] = own[name][channel, 1:]
            if how == "empty":
                own["activation"][channel, -1], own["image"][channel, -1] = np.nan, -1
                own["position"][channel, -1] = own["box"][channel, -1] = 0
            if how == "made up":
                used = np.flatnonzero(~content.arrays["images/skipped"])
                free = np.setdiff1d(used, own["image"][channel])
                own["image"][channel, -1] = self.pick(free.tolist())
                value = own["activation"][channel, -2]
                own["activation"][channel, -1] = np.nextafter(value, np.float32(-np.inf))
            own["stats/max"][channel] = own["activation"][channel, 0]
            self._quantiles(own, channel)
        count = "every unit" if every else f"unit {rows[0]}"
        return Falsification(f"{count}: the strongest dropped, the last {how}", PLACES, True)

    def another_image(self, content: Any, layer: str, own: Any) -> Falsification:
        at = self._slot(own)
        own["image"][at] = int(self.rng.integers(len(content.arrays["images/path"])))
        return Falsification(f"{at}: of another image", PLACES, True)

    def position(self, content: Any, layer: str, own: Any) -> Falsification:
        at = self._slot(own)
        attributes = content.attributes[f"layers/{layer}"]
        height, width = attributes["map"]
        stride = attributes["stride"]
        before = own["position"][at].copy()
        moved = np.array([self.rng.integers(height), self.rng.integers(width)])
        own["position"][at] = moved
        if self.rng.integers(2):  # with its window
            own["box"][at] += np.tile((moved - before) * np.array(stride), 2).astype(np.int32)
        return Falsification(f"{at}: at another position", PLACES, True)

    def box(self, content: Any, layer: str, own: Any) -> Falsification:
        at = self._slot(own)
        own["box"][at][int(self.rng.integers(4))] += self.pick([-1, 1, 7])
        return Falsification(f"{at}: another window", ("places",))

    def statistic(self, content: Any, layer: str, own: Any) -> Falsification:
        names = [name for name in own if name.startswith("stats/")]
        name, channel = self.pick(names), self._slot(own)[0]
        values = own[name]
        if values.dtype == np.bool_:
            values[channel] = ~values[channel]
        elif values.dtype.kind == "i":
            values[channel] = self.rng.integers(-1, 3)
        else:
            flat = values.reshape(len(values), -1)
            factor = 1 + float(self.pick([-1, 1]) * 10 ** self.rng.uniform(-5, 0))
            flat[channel, int(self.rng.integers(flat.shape[1]))] *= factor
        return Falsification(f"{name} of {channel}", ("statistics",), True)

    def swapped_statistics(self, content: Any, layer: str, own: Any) -> Falsification:
        name = self.pick([name for name in own if name.startswith("stats/")])
        one, other = self.rng.choice(len(own[name]), 2, replace=False)
        own[name][[one, other]] = own[name][[other, one]]
        return Falsification(f"{name} of {one} and {other} swapped", ("statistics",), True)

    def counts(self, content: Any, layer: str, own: Any) -> Falsification:
        channel, _ = self._slot(own)
        row = own["histogram"][channel]
        one = self.pick(np.flatnonzero(row).tolist())
        other = (one + int(self.pick([-3, -1, 1, 5]))) % len(row)
        row[one] -= 1
        row[other] += 1
        self._quantiles(own, channel)
        return Falsification(f"a count of {channel}'s histogram moved", ("statistics",), True)

    def swapped_units(self, content: Any, layer: str, own: Any) -> Falsification:
        one, other = self.rng.choice(len(own["image"]), 2, replace=False)
        for name in own:
            own[name][[one, other]] = own[name][[other, one]]
        return Falsification(f"units {one} and {other} swapped", PLACES, True)

    def label(self, content: Any, layer: str, own: Any) -> Falsification:
        labels = content.arrays["images/label"]
        at = int(self.rng.integers(len(labels)))
        labels[at] = int(self.pick({-1, 0, 1, 2, 7} - {int(labels[at])}))
        return Falsification(f"label of image {at}", ("images in the list",))

    def column(self, content: Any, layer: str, own: Any) -> Falsification:
        name = self.pick(["size", "crc", "offset"])
        values = content.arrays[f"images/{name}"]
        at = int(self.rng.integers(len(values)))
        values[at] += 1
        return Falsification(f"{name} of image {at}", ("images read",), name == "crc")

    def path(self, content: Any, layer: str, own: Any) -> Falsification:
        paths = content.arrays["images/path"]
        one, other = self.rng.choice(len(paths), 2, replace=False)
        paths[one] = self.pick([paths[other], paths[one][:-5] + b"x.png"])
        return Falsification(f"path of image {one}", ("images in the list",))

    def left_out(self, content: Any, layer: str, own: Any) -> Falsification:
        """An image is marked as skipped, or a skipped one is not, everywhere."""
        marks, paths = content.arrays["images/skipped"], content.arrays["images/path"]
        at = int(self.rng.integers(len(marks)))
        marks[at] = ~marks[at]
        if self.rng.integers(2):
            content.attributes["/"]["skipped"] = int(marks.sum())
            lines = [f"{paths[i].decode()}\tis broken\n" for i in np.flatnonzero(marks)]
            publish(self.run / "skipped.tsv", "".join(lines).encode())
        return Falsification(f"skipped mark of image {at}", ("skipped images",))

    def stated(self, content: Any, layer: str, own: Any) -> Falsification:
        where = self.pick(["/", f"layers/{layer}"])
        names = [n for n in content.attributes[where] if n not in ("plan", "format")]
        name = self.pick(names)
        value = content.attributes[where][name]
        content.attributes[where][name] = f"{value}x" if isinstance(value, str) else value + 1
        return Falsification(f"states another {name}", ())

    def plan(self, content: Any, layer: str, own: Any) -> Falsification:
        plan = json.loads(content.attributes["/"]["plan"])
        name = self.pick(["k", "dataset", "layers", "precision", "decode", "min", "weights_sha256"])
        value = plan[name]
        plan[name] = (
            f"{value}0" if isinstance(value, str) else [] if isinstance(value, list) else 1 + value
        )
        content.attributes["/"]["plan"] = json.dumps(plan, sort_keys=True)
        return Falsification(f"its plan has another {name}", ())

    def bins(self, content: Any, layer: str, own: Any) -> Falsification:
        name = self.pick(["bins/edges", "bins/levels"])
        values = content.arrays[name]
        values[int(self.rng.integers(len(values)))] *= 1.001
        values[0] -= 1
        return Falsification(f"{name} changed", ())

    def strange(self, content: Any, layer: str, own: Any) -> Falsification:
        if self.rng.integers(2):
            content.arrays[f"layers/{layer}/notes"] = np.arange(3)
            return Falsification("holds an array more", ())
        name = f"layers/{layer}/{self.pick(list(own))}"
        del content.arrays[name]
        content.attributes.pop(name)
        return Falsification(f"lacks {name}", ())

    # optimized images

    def optimized(self) -> Falsification:
        path = self.pick(sorted((self.run / "optimized").glob("*.h5")))
        content = Content.of(path)
        group = self.pick(content.groups)
        own = {
            name.removeprefix(f"{group}/"): values
            for name, values in content.arrays.items()
            if name.startswith(f"{group}/")
        }
        done: Falsification = self.pick(OPTIMIZED)(self, content, group, own)
        if content.same(Content.of(path)):
            return Falsification("nothing")
        content.write(path)
        done.what = f"optimized/{path.name} {group}: {done.what}"
        return done

    def _ascent(self, own: Any) -> tuple[int, int]:
        rows, runs = own["activation"].shape
        return int(self.rng.integers(rows)), int(self.rng.integers(runs))

    def image(self, content: Any, group: str, own: Any) -> Falsification:
        at, images = self._ascent(own), own["image"]
        how = self.pick(["scaled", "noise", "another", "one value", "NaN", "bright"])
        if how == "scaled":
            images[at] *= np.float16(self.pick([0.3, 0.9, 1.2, -1]))
        if how == "noise":
            images[at] = self.rng.normal(0, 40, images[at].shape)
        if how == "another":
            images[at] = images[tuple(np.array(at) - 1)]
        if how in ("one value", "NaN", "bright"):
            values = {"one value": 3.0, "NaN": np.nan, "bright": 999.0}
            images[at].reshape(-1)[int(self.rng.integers(images[at].size))] = values[how]
        return Falsification(f"image {at} {how}", ("optimized images",))

    def value(self, content: Any, group: str, own: Any) -> Falsification:
        name = self.pick(["activation", "start", "best_step", "outcome"])
        at, values = self._ascent(own), own[name]
        if values.dtype.kind == "i":
            values[at] = self.pick(set(range(-1, 9)) - {int(values[at])})
        else:
            values[at] += np.float32(self.pick([-1, 1]) * 10 ** self.rng.uniform(-3, 2))
        return Falsification(f"{name} {at}", ("optimized images",))

    def both(self, content: Any, group: str, own: Any) -> Falsification:
        """A value and the history that agrees with it."""
        at = self._ascent(own)
        name, step = self.pick([("start", 0), ("activation", int(own["best_step"][at]))])
        own[name][at] += np.float32(self.pick([-1, 1]) * 10 ** self.rng.uniform(-3, 2))
        every = json.loads(content.attributes[group]["parameters"])["history"]
        if step % every == 0:
            own["history"][at][step // every] = own[name][at]
        return Falsification(f"{name} {at} with its history", ("optimized images",))

    def history(self, content: Any, group: str, own: Any) -> Falsification:
        at = self._ascent(own)
        step = int(self.rng.integers(own["history"].shape[2]))
        change = self.pick([np.nan, -1e-3, 1e-3, -1, 5])
        own["history"][at][step] += np.float32(change)
        again = group == "3"  # whose ascents --all makes again
        return Falsification(f"history {at} at {step} by {change}", ("histories",), again)

    def units(self, content: Any, group: str, own: Any) -> Falsification:
        unit = own["unit"]
        how = self.pick(["another", "swapped", "rows"])
        if how == "another":
            unit[-1] = self.pick([unit[-1] + 1, 5000, -1, unit[0]])
        else:
            for name in [n for n in own if n != "unit" or how == "rows"]:
                own[name][[0, 1]] = own[name][[1, 0]]
        return Falsification(f"units {how}", ("optimized images",))

    def parameters(self, content: Any, group: str, own: Any) -> Falsification:
        made = json.loads(content.attributes[group]["parameters"])
        name = self.pick([n for n in made if n not in ("image", "device")])
        value = made[name]
        if isinstance(value, bool):
            made[name] = not value
        elif isinstance(value, (int, float)):
            made[name] = value + 1
        elif isinstance(value, str):
            made[name] = f"{value}x"
        elif isinstance(value, dict):
            made[name] = {**value, "rate": 17.0}
        else:
            made[name] = [*value[:-1]]
        content.attributes[group]["parameters"] = json.dumps(made, sort_keys=True)
        return Falsification(f"parameter {name}", ("histories", "optimized images"))

    def stranger(self, content: Any, group: str, own: Any) -> Falsification:
        name = self.pick(["model", "weights_sha256", "layer", "module"])
        content.attributes["/"][name] = f"{content.attributes['/'][name]}0"
        return Falsification(f"states another {name}", ())

    def mean_colour(self, content: Any, group: str, own: Any) -> Falsification:
        content.attributes["/"]["mean"] = content.attributes["/"]["mean"] + 3.0
        return Falsification("states another mean", ())

    # projections

    def projected(self) -> Falsification:
        path = self.pick(sorted((self.run / "projected").glob("*.h5")))
        content = Content.of(path)
        group = self.pick(content.groups)
        values, scale = content.arrays[f"{group}/projection"], content.arrays[f"{group}/scale"]
        done, rows = content.arrays[f"{group}/done"], ("projections",)
        channel = self.pick(np.flatnonzero(done).tolist())
        rank = int(self.rng.integers(values.shape[1]))
        how = self.pick(
            ["sign", "scale", "half", "swapped", "one value", "not done", "plan", "zero"]
        )
        if how == "sign":
            values[channel, rank] *= -1
        if how == "scale":
            scale[channel, rank] *= self.pick([0.0, -1, 0.5, 1.1, np.inf, np.nan])
        if how == "half":
            values[channel, rank] *= np.float16(0.5)
        if how == "swapped":
            other = (rank + 1) % values.shape[1]
            values[channel, [rank, other]] = values[channel, [other, rank]]
            scale[channel, [rank, other]] = scale[channel, [other, rank]]
        if how == "one value":
            flat = values[channel, rank].reshape(-1)
            flat[int(self.rng.integers(len(flat)))] = self.pick([0.7, 3.0, np.nan])
        if how == "zero":
            values[channel, rank], scale[channel, rank] = 0, 0
        if how == "not done":
            done[channel] = False
        if how == "plan":
            plan = json.loads(content.attributes[group]["plan"])
            name = self.pick(["method", "start", "lrn", "topk"])
            content.attributes[group]["plan"] = json.dumps(plan | {name: f"{plan[name]}x"})
        if content.same(Content.of(path)):
            return Falsification("nothing")
        content.write(path)
        return Falsification(f"projected/{path.name} {channel}, {rank}: {how}", rows)

    # figures and pages

    def figure(self) -> Falsification:
        path = self.pick(sorted((self.run / "figures").rglob("*.png")))
        chunks = _chunks(path.read_bytes())
        how = self.pick(["pixels", "record", "key", "cut", "swapped", "bare"])
        if how == "pixels":
            data = bytearray(zlib.decompress(b"".join(c for k, c in chunks if k == b"IDAT")))
            data[int(self.rng.integers(len(data)))] ^= 16
            chunks = [(k, c) for k, c in chunks if k not in (b"IDAT", b"IEND")]
            chunks += [(b"IDAT", zlib.compress(bytes(data))), (b"IEND", b"")]
        if how in ("record", "key"):
            chunks = [(k, self._text(c, how)) for k, c in chunks]
        if how == "bare":
            chunks = [(k, c) for k, c in chunks if not c.startswith(b"cnnvis")]
        content = _png(chunks)
        if how == "cut":
            content = content[: int(self.rng.integers(len(content)))]
        if how == "swapped":
            kind = path.parent
            content = self.pick(p for p in (self.run / "figures").rglob("*.png") if p != path)
            content = content.read_bytes()
            assert kind.exists()
        publish(path, content)
        return Falsification(f"{path.relative_to(self.run)}: {how}", ("figures",))

    def _text(self, chunk: bytes, how: str) -> bytes:
        """Return a text chunk's content with another record, with its key or without."""
        if chunk.startswith(b"cnnvis\0"):
            head, text = chunk[:11], json.loads(chunk[11:])
            self._key = digest(text | {"scale": 99})
            return head + json.dumps(text | {"scale": 99}).encode()
        if chunk.startswith(b"cnnvis-key\0") and how == "key":
            return chunk[:15] + self._key.encode()
        return chunk

    def page(self) -> Falsification:
        path = self.pick(sorted(p for p in (self.run / "gallery").rglob("*") if p.is_file()))
        content = path.read_bytes()
        name, rows = str(path.relative_to(self.run)), ("pages",)
        if path.suffix in (".png", ".jpg"):
            others = sorted(path.parent.glob(f"*{path.suffix}"))
            how, rows = self.pick(["cut", "swapped", "gone"]), ("pictures of pages",)
            if how == "swapped":
                content = self.pick(others).read_bytes()
        else:
            how = self.pick(["cut", "gone", "number", "key"])
            if how == "number":
                places = [m.start() for m in re.finditer(rb"[1-8]", content[20:])]
                at = 20 + self.pick(places)
                content = content[:at] + bytes([content[at] + 1]) + content[at + 1 :]
            if how == "key":
                content = re.sub(rb"^// [0-9a-f]{4}", b"// 0123", content)
                rows = ("pages",)
        if how == "cut":
            content = content[: int(self.rng.integers(max(1, len(content) - 4)))]
        if how == "gone":
            path.unlink()
        elif content == path.read_bytes():
            return Falsification("nothing")
        else:
            publish(path, content)
        return Falsification(f"{name}: {how}", rows)

    # files

    def record(self) -> Falsification:
        path = self.run / "run.json"
        record = json.loads(path.read_text())
        how = self.pick(sorted(RECORDS))
        rows: tuple[str, ...] = RECORDS[how](self, record)
        publish(path, (json.dumps(record, indent=1) + "\n").encode())
        return Falsification(f"run.json: {how}", rows)

    def table(self) -> Falsification:
        path = self.run / "skipped.tsv"
        lines = path.read_text().splitlines()
        how = self.pick(["gone", "more", "empty", "reason", "path"])
        if how == "gone":
            path.unlink()
            return Falsification("skipped.tsv: gone")
        new = {
            "more": [*lines, "class0/000.png\tis broken"],
            "empty": [],
            "reason": [lines[0] + " and more"],
            "path": ["x" + lines[0]],
        }
        publish(path, "".join(f"{line}\n" for line in new[how]).encode())
        return Falsification(f"skipped.tsv: {how}", ("skipped images",) if how == "reason" else ())

    def removed(self) -> Falsification:
        path = self.pick(self._files())
        told = self.rng.integers(2)
        path.unlink()
        if told:
            self._forget(path)
        name = path.relative_to(self.run)
        what = f"{name}: deleted, {'with what the receipts say of it' if told else 'alone'}"
        return Falsification(what, ("deleted files",) if told else ())

    def _files(self) -> list[Path]:
        folders = ("optimized", "projected", "figures", "gallery")
        found = [p for f in folders for p in sorted((self.run / f).rglob("*")) if p.is_file()]
        return [*found, *[self.run / "topk.h5"] * 4]

    def _forget(self, path: Path) -> None:
        for receipt in (self.run / "receipts").glob("*.json"):
            record = json.loads(receipt.read_text())
            record["outputs"].pop(str(path.relative_to(self.run)), None)
            publish(receipt, json.dumps(record, indent=1, sort_keys=True).encode())

    def swapped_files(self) -> Falsification:
        folder = self.pick(["optimized", "projected"])
        paths = sorted((self.run / folder).glob("*.h5"))
        one, other = self.rng.choice(len(paths), 2, replace=False)
        first, second = paths[one].read_bytes(), paths[other].read_bytes()
        publish(paths[one], second)
        publish(paths[other], first)
        return Falsification(f"{folder}: {paths[one].name} and {paths[other].name} swapped")

    def linked(self) -> Falsification:
        path = self.pick([*self._files(), self.run / "gallery", self.run / "run.json"])
        away = self.run.parent / "away"
        if away.is_dir():
            shutil.rmtree(away)
        away.unlink(missing_ok=True)  # a link of the same file, which a rename would leave alone
        path.rename(away)
        how = self.pick(["link", "pipe"])
        if how == "link":
            path.symlink_to(away)
        else:
            os.mkfifo(path)
        return Falsification(f"{path.relative_to(self.run)}: a {how}")

    def receipts(self) -> Falsification:
        paths = sorted((self.run / "receipts").glob("*.json"))
        how = self.pick(["gone", "broken"])
        for path in paths:
            path.unlink()
            if how == "broken":
                publish(path, b"{")
        return Falsification(f"receipts {how}", ("receipts",))

    def falsify(self) -> Falsification:
        """Falsify one thing, and note sizes and times of what was changed in the receipts."""
        before = stamps(self.run)
        done: Falsification = self.pick(KINDS)(self)
        after = stamps(self.run)
        changed = {name: after[name] for name in after if after[name] != before.get(name)}
        for receipt in (self.run / "receipts").glob("*.json"):
            try:
                record = json.loads(receipt.read_text())
            except ValueError:
                continue
            known = {name: s for name, s in changed.items() if name in record["outputs"]}
            if known:
                record["outputs"] |= known
                publish(receipt, json.dumps(record, indent=1, sort_keys=True).encode())
        return done


def stamps(run: Path) -> dict[str, list[int]]:
    """Return size and time of each file, as receipts have them."""
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    found = {str(path.relative_to(run)): path.stat() for path in files}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in found.items()}


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], len(SIGNATURE)
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [SIGNATURE]
    for kind, content in chunks:
        check = zlib.crc32(content, zlib.crc32(kind))
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check))
    return b"".join(parts)


def _dataset(name: str, value: Any) -> Callable[[Forger, Any], tuple[str, ...]]:
    def change(_: Forger, record: Any) -> tuple[str, ...]:
        record["dataset"][name] = value
        return ("run.json",) if name in ("passed_over", "class_level") else ()  # gives the same

    return change


def _seconds(_: Forger, record: Any) -> tuple[str, ...]:
    record["topk"]["seconds"] += 1000
    return ("run.json",)


def _versions(_: Forger, record: Any) -> tuple[str, ...]:
    record["topk"]["versions"]["torch"] = "0.1"
    return ("run.json",)


def _of_network(forger: Forger, record: Any) -> tuple[str, ...]:
    layer = forger.pick(record["network"]["layers"])
    name = forger.pick(["alias", "module", "kind", "channels"])
    layer[name] = f"{layer[name]}0" if isinstance(layer[name], str) else layer[name] + 1
    return ()


def _class_names(_: Forger, record: Any) -> tuple[str, ...]:
    record["network"]["classes"].reverse()
    return ()


def _asked(forger: Forger, record: Any) -> tuple[str, ...]:
    jobs = record["asked"][forger.pick(["optimize", "project"])]
    jobs[forger.pick(sorted(jobs))]["total"] += 5
    return ()


def _weights(_: Forger, record: Any) -> tuple[str, ...]:
    record["weights_sha256"] = record["weights_sha256"][::-1]
    return ()


def _preprocessing(_: Forger, record: Any) -> tuple[str, ...]:
    record["preprocessing"]["mean"] = [1.0, 2.0, 3.0]
    return ()


RECORDS = {
    "another digest": _dataset("digest", "0" * 64),
    "other classes": _dataset("classes", ["class1", "class0", "class2"]),
    "another level": _dataset("class_level", "own"),
    "passed over": _dataset("passed_over", {"hidden": 7}),
    "no such place": _dataset("path", "/nowhere"),
    "seconds": _seconds,
    "versions": _versions,
    "network": _of_network,
    "class names": _class_names,
    "asked": _asked,
    "weights": _weights,
    "preprocessing": _preprocessing,
}
PLACES = ("places", "images not listed")
F = Forger
TOPK = [
    *(F.activation, F.activation, F.between, F.between, F.swapped_ranks, F.dropped_first),
    *(F.dropped_first, F.another_image, F.position, F.box, F.statistic, F.statistic),
    *(F.swapped_statistics, F.counts, F.swapped_units, F.label, F.column, F.path, F.left_out),
    *(F.stated, F.plan, F.bins, F.strange),
]
OPTIMIZED = [
    *(F.image, F.image, F.value, F.value, F.both, F.history, F.units, F.parameters),
    *(F.stranger, F.mean_colour),
]
KINDS = [
    *[F.topk] * 10,
    *[F.optimized] * 6,
    *[F.projected] * 3,
    *[F.figure, F.page] * 2,
    *(F.record, F.table, F.removed, F.removed, F.swapped_files, F.linked, F.receipts),
]
