"""The host's work for fc6 beside the device's steps: ``python tests/gpu/host_work.py``.

The stage's own loop makes 128 ascents of AlexNet's fc6 per batch, but a step does nothing: what is
left is drawing starts, copying them, fetching values and images, arrays, parts and publishing. An
H200 needs 2 s for the 500 steps of such a batch in TF32.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cnnvis_cli.ascent.climb import AscentBatch
from cnnvis_cli.engine import Aside, WorkerSlot, ahead
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.optimize import worker as climbs
from cnnvis_cli.stages.optimize.job import LayerOptimization
from cnnvis_cli.stages.optimize.stage import optimize_layer
from cnnvis_cli.stages.optimize.styles import asked_styles

SIZE, STEPS, BATCHES = 128, 500, 4
SECONDS = 2.0  # of a batch's steps on an H200


def idle(size: int, **settings: Any) -> AscentBatch:
    """Return a steady batch whose steps do nothing."""
    return AscentBatch(size, steady=True, run=lambda *_: None, **settings)


@contextmanager
def no_device() -> Iterator[None]:
    """Leave out the passes, and draw starts ahead as on a GPU."""

    def batch_on(worker_slot: WorkerSlot, size: int, emit: Any, **settings: Any) -> AscentBatch:
        return idle(size, **settings)

    def drawn_ahead(items: Any, _count: int) -> Any:
        return ahead(items, SIZE)

    with (
        mock.patch.object(climbs, "batch_on", batch_on),
        mock.patch.object(climbs, "ahead", drawn_ahead),
        mock.patch.object(climbs, "check_pass"),
        mock.patch.object(climbs, "traced_evaluate"),
    ):
        yield


def main() -> None:
    units = f"0-{SIZE * BATCHES - 1}"
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(model="alexnet", weights="random", device="cpu", layer=("fc6",), units=units)
        plan = replace(plan, run=f"{folder}/run", batch_size=SIZE, workers=0)
        optimize = replace(plan.optimize, style=("3",), iterations=STEPS, step="20")
        with open_session(replace(plan, optimize=optimize), Report(quiet=True)) as session:
            torch.set_num_threads(1)
            style = asked_styles(session.plan)[0]
            climb = LayerOptimization.of(session, session.layers[0], style)
            start, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
            with no_device(), Aside() as publisher, mock.patch.object(publisher, "settle"):
                optimize_layer(session, [climb], publisher)
                made = time.perf_counter() - start
                own = time.thread_time() - own
                publisher.__class__.settle(publisher)
            whole, cpu = time.perf_counter() - start, time.process_time() - cpu
            size = Path(climb.file.path).stat().st_size >> 20
    print(f"{BATCHES} batches of {SIZE} ascents x {STEPS} steps of fc6, {size} MB published")
    print(f"the loop          {made / BATCHES:6.3f} s per batch, {made / BATCHES / SECONDS:6.1%}")
    print(f"its own thread    {own / BATCHES:6.3f} s per batch, {own / BATCHES / SECONDS:6.1%}")
    print(f"with publishing   {whole / BATCHES:6.3f} s per batch, beside the next layer's steps")
    print(f"processor time    {cpu / BATCHES:6.3f} s per batch")


if __name__ == "__main__":
    main()
