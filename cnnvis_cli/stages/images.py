"""The dataset's images once more, for those stages that look at single ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from cnnvis_cli.dataset.decode import Pixels, Unreadable, decode, write_png
from cnnvis_cli.dataset.synthetic import CLASSES, draw
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.stages.session import Session
from cnnvis_cli.store.files import TopKFile

PER_CLASS = 25  # drawn images
FIRST_SEED = 2_000_000  # images that the network was neither trained nor tested on
KEPT = 1024  # decoded images; 150 kB each at 224 pixels


def dataset_folder(session: Session) -> Path:
    """The folder of the plan's dataset; the images of ``demo`` are drawn where they are missing
    (a folder of that name is ``./demo``).

    Raises `UsageError` where the plan names none.
    """
    dataset = session.plan.dataset
    if not dataset:
        raise UsageError("which images? name the dataset's folder: cnnvis topk FOLDER")
    if dataset != "demo":
        return Path(dataset)
    folder = session.run.path.with_name(f"{session.run.path.name}-images")
    names = [(name, number) for name in CLASSES for number in range(PER_CLASS)]
    for name, number in session.report.track(names, "drawing", len(names), "images"):
        path = folder / name / f"{number:03d}.png"
        if not path.exists():
            write_png(path, draw(name, FIRST_SEED + number))
    return folder


def image_reader(session: Session) -> Callable[[int], Pixels]:
    """A function from image index to preprocessed pixels, uint8 (height, width, 3).

    Raises `UsageError` where topk has not run; the function raises `CnnvisError` for an image
    that has gone or changed since.
    """
    file = TopKFile(session.run.topk)
    if file.identity() is None:
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    record = session.run.read().get("dataset", {})
    moved = None if session.plan.dataset == "demo" else session.plan.dataset
    root = Path(moved or record.get("path", ""))
    paths = file.images().path

    @lru_cache(maxsize=KEPT)
    def read(index: int) -> Pixels:
        try:
            return decode(root / paths[index], session.network.preprocessing)
        except Unreadable as reason:
            raise CnnvisError(
                f"{root / paths[index]}: cannot be read any more ({reason}); "
                "if the dataset has moved, give --dataset"
            ) from None

    return read
