"""The dataset's images once more, for those stages that look at single ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from cnnvis_cli.dataset.decode import Pixels, Unreadable, decode
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.stages.session import Session
from cnnvis_cli.store.files import TopKFile

KEPT = 1024  # decoded images; 150 kB each at 224 pixels


def image_reader(session: Session) -> Callable[[int], Pixels]:
    """A function from image index to preprocessed pixels, uint8 (height, width, 3).

    Raises `UsageError` where topk has not run; the function raises `CnnvisError` for an image
    that has gone or changed since.
    """
    file = TopKFile(session.run.topk)
    if file.identity() is None:
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    record = session.run.read().get("dataset", {})
    root = Path(session.plan.dataset or record.get("path", ""))
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
