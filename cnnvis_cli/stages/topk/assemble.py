"""Joining the parts of a top-k, from one or many runs, into one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.dataset.classes import describe, tells_no_class
from cnnvis_cli.dataset.manifest import Manifest, in_words
from cnnvis_cli.errors import CnnvisError, TooManyUnreadable, UsageError
from cnnvis_cli.nouns import Layer
from cnnvis_cli.report import Report, printable
from cnnvis_cli.stages.topk.job import Partition, TopKJob, piece_name
from cnnvis_cli.store.parts import Name, Parts
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.sample_file import SampledImages, SampleFile
from cnnvis_cli.store.stats import Account
from cnnvis_cli.store.topk_file import Images, LayerResult, TopKFile

CLASS_SUMS = 1 << 28  # bytes for the sums by class while a file is assembled
MANIFEST_COLUMNS = ("paths", "sizes", "offsets", "labels")
MANIFEST = "manifest"


class Missing(CnnvisError):
    """A part of a top-k is missing or damaged."""


def is_done(path: Path, have: Record | None, identity: Record) -> bool:
    """Return whether the file has the requested content; raise `UsageError` for another one."""
    if have is None:
        return False
    own = {"layers": identity["layers"], "device": identity["device"]}  # on any device
    if have | own != identity or not set(identity["layers"]) <= set(have["layers"]):
        raise UsageError(
            f"{path} belongs to another plan: {differences(have, identity)}; choose another --run"
        )
    return True


def leave_for_merge(job: TopKJob) -> None:
    """Store with a shard's parts what `merge` needs."""
    manifest, parts = job.manifest, job.parts
    if job.sample is not None:
        job.sample.parts.describe(job.sample.identity)
    if MANIFEST in parts:
        return
    names = list(map(_text_bytes, manifest.classes))
    said = json.dumps([manifest.level, dict(manifest.passed_over), manifest.deeper])
    about = {
        "classes": names,
        "root": [_text_bytes(str(manifest.root.resolve()))],
        "about": [said.encode()],
    }
    texts = {name: np.array(values, "S") for name, values in about.items()}
    columns = {name: getattr(manifest, name) for name in MANIFEST_COLUMNS}
    record = np.array([json.dumps(job.identity, sort_keys=True).encode()])
    parts[MANIFEST] = {**columns, **texts, "plan": record}


def _text_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def finish(run: Run, job: TopKJob, sources: Sequence[Parts], report: Report) -> None:
    """Add up the parts, in their order, and publish skipped.tsv and topk.h5.

    Raise `Missing`, naming a part that none of the `sources` has intact; unless another process
    (without locks) has already published topk.h5 and removed the parts.
    """
    manifest, cut = job.manifest, job.cut
    with _unless_published(TopKFile(run.topk), job.identity):
        skipped = np.zeros(len(manifest), np.bool_)
        crcs = np.zeros(len(manifest), np.uint32)
        reasons: dict[int, str] = {}
        about = ("crc", "failures", "reasons")
        for images, part in report.each(_all_parts(cut, sources, about)):
            crcs[images.start : images.stop] = part["crc"][: len(images)]
            skipped[part["failures"]] = True
            texts = map(bytes.decode, part["reasons"].tolist())
            reasons |= dict(zip(part["failures"].tolist(), texts, strict=True))
        lines = (f"{one_line(manifest.path(i))}\t{reasons[i]}\n" for i in sorted(reasons))
        publish(run.skipped, "".join(lines).encode("utf-8", "surrogateescape"))
        listed = Images(
            manifest.paths, manifest.labels, skipped, manifest.sizes, crcs, manifest.offsets
        )
        room = CLASS_SUMS // (8 * max(1, len(manifest.classes)))
        results = _results(job.identity, cut, _layer_groups(job.layers, room), sources)
        TopKFile(run.topk).publish(job.identity, listed, report.each(results))


def finish_sample(run: Run, job: TopKJob, sources: Sequence[Parts], report: Report) -> None:
    """Put the parts of a sample together, in their order, and publish sample.h5.

    topk.h5 has been published. Raise `Missing` as `finish`, and `CnnvisError` for an image that has
    changed since; its part is then removed, to be made again.
    """
    assert job.sample is not None
    file, count = SampleFile(run.sample), job.cut.count
    images = TopKFile(run.topk).images()
    numbers = [number for number in range(count) if len(job.sampled_in(number))]
    largest = np.zeros(sum(layer.channels for layer in job.layers), np.float32)
    with _unless_published(file, job.sample.identity):
        for number in numbers:
            part = _find_part(number, count, sources, ("largest", "used", "crc"))
            mine = job.sampled_in(number)
            changed = (images.crc[mine] != part["crc"]) | (images.skipped[mine] == part["used"])
            if changed.any():
                for parts in sources:
                    parts.remove(number)
                place = job.manifest.root / job.manifest.path(int(mine[changed.argmax()]))
                raise CnnvisError(
                    f"{place}: has changed since {run.topk} was made; put it back, or run topk "
                    "--sample in another --run"
                )
            largest = np.maximum(largest, part["largest"])
        pieces = (_find_part(n, count, sources, ("value", "place")) for n in report.each(numbers))
        rows = ((piece["value"], piece["place"]) for piece in pieces)
        chosen = SampledImages.of(images, job.sample.images)
        file.publish(job.sample.identity, chosen, job.layers, largest, rows)


def announce_sample(run: Run, report: Report) -> None:
    """Report a finished sample."""
    file = SampleFile(run.sample)
    images = file.images()
    report.result(
        f"{file.path}: {len(images.index)} images, {int(images.skipped.sum())} skipped, "
        f"{len(file.layers())} layers"
    )


@contextmanager
def _unless_published(file: TopKFile | SampleFile, identity: Record) -> Iterator[None]:
    """Ignore a missing part in this block if the file exists meanwhile."""
    try:
        yield
    except Missing:
        if not is_done(file.path, file.identity(), identity):
            raise


def _results(
    identity: Record, cut: Partition, groups: Iterable[list[Layer]], sources: Sequence[Parts]
) -> Iterator[LayerResult]:
    """Yield the results layer by layer; the parts are read once per group of layers."""
    first = 0
    for group in groups:
        last = first + sum(layer.channels for layer in group)
        account = Account(first, last, identity["k"], identity["min"])
        for _, part in _all_parts(cut, sources):
            account.add(part)
        for layer in group:
            yield _result(layer, account, slice(first, first + layer.channels))
            first += layer.channels


def _layer_groups(layers: Sequence[Layer], room: int) -> Iterator[list[Layer]]:
    """Yield groups of neighbouring layers with up to `room` channels, at least one layer each."""
    group: list[Layer] = []
    for layer in layers:
        if group and sum(la.channels for la in group) + layer.channels > room:
            yield group
            group = []
        group.append(layer)
    yield group


def _result(layer: Layer, account: Account, channels: slice) -> LayerResult:
    height, width = layer.map
    strongest, lowest, arrays = account.of(channels, height * width)
    negated = None if lowest is None else lowest.on_map(width).negated()
    return LayerResult(layer, strongest.on_map(width), negated, arrays)


def _all_parts(
    cut: Partition, sources: Sequence[Parts], names: Sequence[str] = ()
) -> Iterator[tuple[range, Arrays]]:
    """Yield the (named) arrays of all parts, in their order, and the images that they are of.

    As large groups as there are come in one; each is from the first source that has it intact.
    """
    number = 0
    while number < cut.count:
        group, arrays = _find_group(cut, number, sources, names)
        last = cut.images_of(group[-1])
        yield range(cut.images_of(number).start, last.stop), arrays
        number = group.stop


def _find_group(
    cut: Partition, number: int, sources: Sequence[Parts], names: Sequence[str]
) -> tuple[range, Arrays]:
    """Return the largest group that begins with a part, or that part alone, and its arrays."""
    groups = [group for group in cut.groups_of(number) if group.start == number]
    for _ in range(2):  # another process may join parts meanwhile
        for group in reversed([range(number, number + 1), *groups]):
            with suppress(Missing):
                return group, _find_part(piece_name(group), cut.count, sources, names)
    return range(number, number + 1), _find_part(number, cut.count, sources, names)


def _find_part(number: Name, count: int, sources: Iterable[Parts], names: Sequence[str]) -> Arrays:
    for parts in sources:
        try:
            return parts.read(number, names)
        except KeyError:
            continue
    where = ", ".join(str(parts.folder) for parts in sources)
    raise Missing(
        f"part {number} of 0 to {count - 1} is missing or damaged in {where}; run again the "
        "cnnvis topk, with the --shard, that it belongs to"
    )


def one_line(path: str) -> str:
    """Return a path that cannot break a line of the table."""
    return printable(path.replace("\\", "\\\\"))


def dataset_record(manifest: Manifest) -> Record:
    """Return what run.json says of the dataset."""
    return {
        "path": str(manifest.root.resolve()),
        "digest": manifest.digest,
        "class_level": manifest.level,
        "classes": list(manifest.classes),
        "passed_over": dict(manifest.passed_over),
    }


def _about_dataset(manifest: Manifest) -> str:
    """Return a result's words on the classes, and on what was passed over."""
    count = len(manifest.classes)
    empty = [manifest.classes[n] for n in np.setdiff1d(range(count), manifest.labels)]
    words = f"{count or 'no'} class{'' if count == 1 else 'es'}"
    if count:
        words += f" {describe(manifest.level)}"
    if empty:
        words += f" ({len(empty)} without an image, such as {printable(empty[0])})"
    if count and (none := int((manifest.labels < 0).sum())):
        words += f", {none} images without a class"
    passed = in_words(manifest.passed_over)
    return f"{words}; passed over: {passed}" if passed else words


def announce_result(
    file: TopKFile, run: Run, manifest: Manifest, allowed: float, report: Report
) -> None:
    """Report the result; raise `TooManyUnreadable` (exit code 3) for too many unusable images."""
    images, skipped = file.summary()
    if manifest.deeper:
        report.warn(
            f"classes are named {describe(manifest.level)}, so folders in it, such as "
            f"{printable(manifest.deeper)}, are none; --class-level says otherwise"
        )
    if len(manifest.classes) == 1 and tells_no_class(manifest.classes):
        report.warn(
            f"the folder {printable(manifest.classes[0])} counts as the only class: classes in a "
            "table beside the images are not read; put each class into a folder of its own, or "
            "give --class-level none"
        )
    report.result(
        f"{file.path}: {images} images, {skipped} skipped, {len(file.layers())} layers, "
        + _about_dataset(manifest)
    )
    if skipped > allowed * images:
        raise TooManyUnreadable(
            f"{skipped} of {images} images could not be used, more than --max-unreadable "
            f"{allowed:g}; they are listed in {run.skipped}"
        )
