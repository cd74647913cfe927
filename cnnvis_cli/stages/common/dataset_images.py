"""Reading the dataset's images again, for stages that need single ones."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from itertools import product
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.decode import Unreadable, decode, write_png
from cnnvis_cli.dataset.decode_on_gpu import decode_on_gpu
from cnnvis_cli.dataset.manifest import Manifest, root_of
from cnnvis_cli.demo.synthetic import CLASSES, draw
from cnnvis_cli.engine import in_threads
from cnnvis_cli.errors import CnnvisError, StorageError, UsageError
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.report import Report
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.scratch import scratch
from cnnvis_cli.store.topk_file import TopKFile

PER_CLASS = 25  # drawn images
FIRST_SEED = 2_000_000  # images that the network was neither trained nor tested on
CACHED_IMAGES = 1024  # decoded images; 150 kB each at 224 pixels
ReadImage = Callable[[int], Pixels]  # from an image's index to its preprocessed pixels


def dataset_path(session: Session) -> Path:
    """Return the plan's dataset: a folder, a list or a container.

    Missing images of ``demo`` are drawn (a folder of that name is ``./demo``).

    Raise `UsageError` if the plan names none.
    """
    dataset = session.plan.dataset
    if not dataset:
        raise UsageError("which images? name the dataset: cnnvis topk FOLDER (or a list, tar, zip)")
    if dataset != "demo":
        return Path(dataset)
    folder = session.run.path.with_name(f"{session.run.path.name}-images")
    draw_images(folder, session.report)
    return folder


def draw_images(folder: Path, report: Report) -> None:
    """Draw the missing images of ``demo`` in a folder."""
    names = list(product(CLASSES, range(PER_CLASS)))
    for name, number in report.track(names, "drawing", len(names), "images"):
        path = folder / name / f"{number:03d}.png"
        if not path.exists():
            write_png(path, draw(name, FIRST_SEED + number))


def image_reader(session: Session, other: Preprocessing | None = None) -> ReadImage:
    """Return a function from image index to preprocessed pixels, uint8 (height, width, 3).

    As the network takes them, or as an `other` one does. Raise `UsageError` before topk; the
    function raises `CnnvisError` for an image that has changed since, `Gone` for one that is not
    there, `StorageError` for one that cannot be read now.
    """
    return lru_cache(maxsize=CACHED_IMAGES)(_reader(session, other))


def gather(session: Session, wanted: NDArray[np.int64]) -> ReadImage:
    """Decode the wanted images (sorted indices) once each; return a function like `image_reader`.

    Decoded images are stored on disk. Raise like `image_reader` and its function, and
    `StorageError` if the disk has no room.
    """
    decode_one = _reader(session)
    kept = scratch(session.run.parts(), (len(wanted), *session.network.size, 3))

    def keep(row: int) -> None:
        kept[row] = decode_one(int(wanted[row]))

    with closing(in_threads(keep, range(len(wanted)))) as rows:
        for _ in session.report.track(rows, "decoding", len(wanted), "images"):
            pass
    return lambda index: kept[np.searchsorted(wanted, index)]


def _reader(session: Session, other: Preprocessing | None = None) -> ReadImage:
    file = TopKFile(session.run.topk)
    plan = file.identity()
    if plan is None:
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    images = file.images()
    manifest = Manifest(
        _images_root(session), images.path, images.size, images.offset, images.label, ()
    )
    decoded = decoder_of(str(plan["decode"]), session, other)

    def read(index: int) -> Pixels:
        place = manifest.root / manifest.path(index)
        try:
            content = manifest.read(index)
            if zlib.crc32(content) != images.crc[index]:
                raise CnnvisError(
                    f"{place}: has changed since topk ({len(content)} bytes of another CRC); "
                    "run topk again in another --run, or give --dataset with the old images"
                )
            return decoded(content)
        except (Unreadable, StorageError) as reason:
            why = str(reason).removeprefix(f"{place}: cannot be read (").partition(");")[0]
            kind = type(reason) if isinstance(reason, StorageError) else CnnvisError
            raise kind(
                f"{place}: can no longer be read ({why}); if the dataset has moved, give --dataset"
            ) from None

    return read


def decoder_of(
    kind: str, session: Session, other: Preprocessing | None = None
) -> Callable[[bytes], Pixels]:
    """Return the decoder that topk used, by its name there; for an `other` network's images too."""
    preprocessing, device = other or session.network.preprocessing, session.network.device
    if kind != "gpu":
        return lambda content: decode(content, preprocessing, kind == "fast")

    one_at_a_time = Lock()

    def on_gpu(content: bytes) -> Pixels:
        with one_at_a_time:
            (found,) = decode_on_gpu([content], preprocessing, device)
        if isinstance(found, Unreadable):
            raise found
        return np.asarray(found.cpu().numpy())

    return on_gpu


def _images_root(session: Session) -> Path:
    """Return the folder of the stored paths: the plan's, or that of topk."""
    dataset = session.plan.dataset
    if dataset and dataset != "demo":
        return root_of(Path(dataset))
    return Path(session.run.read().get("dataset", {}).get("path", ""))
