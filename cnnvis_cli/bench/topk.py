"""`cnnvis bench topk`: this machine's limits, and the share of them that `topk` reaches."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.engine import (
    Emit,
    TaskDone,
    WorkerSlot,
    arithmetic,
    choose_devices,
    cores,
    keep_memory,
    run_tasks,
    worker_slots,
)
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.tally import load_loops
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import draw_images
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.topk.job import TopKJob
from cnnvis_cli.stages.topk.stage import BATCH_SIZES, topk
from cnnvis_cli.stages.topk.worker import reader_of
from cnnvis_cli.store.parts import Parts


class Rate(NamedTuple):
    """Images per second of the whole machine, and seconds of processor time per image."""

    speed: float
    cost: float


@dataclass(frozen=True)
class RateRow:
    """A line of the table: what was measured, how, and the rates of its rounds."""

    what: str
    how: str
    rates: tuple[Rate, ...]

    @property
    def speed(self) -> float:
        return statistics.median(rate.speed for rate in self.rates)

    @property
    def cost(self) -> float:
        return statistics.median(rate.cost for rate in self.rates)


@dataclass(frozen=True)
class TopKBench:
    """The limits of one machine, and the rates that `topk` reaches, round by round."""

    about: dict[str, Any]
    rows: tuple[RateRow, ...]
    limits: tuple[float, ...]  # images per second, of each round

    @property
    def limit(self) -> float:
        return statistics.median(self.limits)

    @property
    def ratio(self) -> float:
        """The share of the limit of the same round that `topk` reaches: the median."""
        reached = (rate.speed for rate in self.rows[-2].rates)
        return statistics.median(r / li for r, li in zip(reached, self.limits, strict=True))

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        rows = [
            {
                "what": row.what,
                "how": row.how,
                "images_per_second": [round(rate.speed, 2) for rate in row.rates],
                "cpu_milliseconds_per_image": [round(1000 * rate.cost, 3) for rate in row.rates],
            }
            for row in self.rows
        ]
        limits = [round(limit, 2) for limit in self.limits]
        return {**self.about, "rows": rows, "limit": limits, "ratio": round(self.ratio, 4)}

    def table(self) -> str:
        """Return the table as text."""
        lines = [", ".join(f"{key} {value}" for key, value in self.about.items()), ""]
        lines += [f"{'':18}{'images/s':>9}{'CPU ms':>9}  "]
        for row in self.rows:
            lines.append(f"{row.what:18}{row.speed:9.1f}{1000 * row.cost:9.2f}  {row.how}")
        lines.append(f"{'combined limit':18}{self.limit:9.1f}")
        lines.append(f"{'topk / limit':18}{self.ratio:9.3f}")
        return "\n".join(lines)


def measure_topk(plan: Plan, report: Report, seconds: float, rounds: int) -> TopKBench:
    """Measure decoding alone, the forward pass alone, and `topk` over the plan's dataset.

    On a CPU the limit is cores / (decoding + forward pass), in processor time per image, as if all
    cores did only these two, all the time. On a GPU it is the slower of both. The forward pass is
    the best of several arrangements, chosen first. Every round measures all three, because
    machines are shared.
    """
    keep_memory()
    if not plan.dataset:
        raise UsageError("which images? name the dataset: cnnvis bench topk DATASET")
    devices = choose_devices(plan.device)
    with report.stoppable(), tempfile.TemporaryDirectory() as folder:
        if plan.dataset == "demo":
            draw_images(Path(folder) / "images", report)
            plan = replace(plan, dataset=f"{folder}/images")
        work = _topk_job(plan, Path(folder), BATCH_SIZES[devices[0].type])
        best, tried = _best_forward(work, devices, report, seconds)
        measured = [_round(work, best, devices, seconds, report) for _ in range(rounds)]
    decoded, forward, halved, reached, whole = (tuple(c) for c in zip(*measured, strict=True))
    rows = (
        RateRow("decode", f"{cores()} processes, decoding only", decoded),
        *tried,
        RateRow("forward, bf16", "as the best of these, with --precision bf16", halved),
        RateRow("forward", f"the best of these: {best}", forward),
        RateRow("topk", "images in a row, with warm processes", reached),
        RateRow("topk, all of it", "from the list of images to the file", whole),
    )
    limits = tuple(_limit(a, b, devices[0].type) for a, b in zip(decoded, forward, strict=True))
    about = {
        "model": work.plan.model,
        "images": len(work.manifest),
        "layers": len(work.layers),
        "device": str(plan.device),
        "cores": cores(),
        "batch": work.cut.size,
        "precision": work.plan.topk.precision,
        "torch": torch.__version__,
    }
    return TopKBench(about, rows, limits)


def _limit(decoded: Rate, forward: Rate, kind: str) -> float:
    if kind == "cuda":
        return min(decoded.speed, forward.speed)
    return cores() / (decoded.cost + forward.cost)


def _topk_job(plan: Plan, folder: Path, size: int) -> TopKJob:
    """Return the job that `topk` does, without its output."""
    manifest = Manifest.scan(Path(plan.dataset or ""))
    network = load_network(plan)
    identity = {"batch_size": plan.batch_size or size}
    nowhere = Parts(folder / "none", "")
    return TopKJob(identity, manifest, network.choose(plan.layer), nowhere, plan, network)


class ForwardPass(NamedTuple):
    """A way to run the forward pass."""

    worker_slots: tuple[WorkerSlot, ...]
    size: int
    channels_last: bool

    def __str__(self) -> str:
        worker_slot = self.worker_slots[0]
        layout = "channels last" if self.channels_last else "channels first"
        return (
            f"{len(self.worker_slots)} x {worker_slot.threads} threads, batch {self.size}, {layout}"
        )


def _arrangements(work: TopKJob, devices: Sequence[torch.device]) -> Iterator[ForwardPass]:
    crews = [tuple(worker_slots(devices, None, 1))]
    if devices[0].type == "cpu":
        crews.append(tuple(worker_slots(devices, 1, 1)))
    for pool in dict.fromkeys(crews):
        for size in dict.fromkeys((work.cut.size, 16, 64)):
            yield ForwardPass(pool, size, True)
        yield ForwardPass(pool, work.cut.size, False)


def _best_forward(
    work: TopKJob, devices: Sequence[torch.device], report: Report, seconds: float
) -> tuple[ForwardPass, list[RateRow]]:
    """Try every arrangement briefly, in both orders; return the fastest, and all of them."""
    options = list(_arrangements(work, devices))
    found: dict[ForwardPass, list[Rate]] = {option: [] for option in options}
    order = [*options, *reversed(options)]
    for option in report.track(order, "forward pass", len(order), "arrangements"):
        measure = partial(_measure_forward, work, option, seconds)
        found[option].append(_measure_together(measure, option.worker_slots))
    rows = [RateRow("forward", str(option), tuple(rates)) for option, rates in found.items()]
    best = max(zip(options, rows, strict=True), key=lambda pair: pair[1].speed)
    return best[0], rows


def _round(
    work: TopKJob,
    best: ForwardPass,
    devices: Sequence[torch.device],
    seconds: float,
    report: Report,
) -> tuple[Rate, ...]:
    report.check_stop()
    pool = [WorkerSlot(torch.device("cpu"), 1, 0)] * cores()
    if work.plan.topk.decode == "gpu":
        pool = worker_slots(devices, work.plan.workers, 1)
    decoded = _measure_together(partial(_decode, work, seconds), pool)
    settings = replace(work.plan.topk, precision="bf16")
    in_bf16 = replace(work, plan=replace(work.plan, topk=settings))
    forward, halved = (
        _measure_together(partial(_measure_forward, each, best, seconds), best.worker_slots)
        for each in (work, in_bf16)
    )
    return decoded, forward, halved, *_topk(work, report)


Measure = Callable[[WorkerSlot, int, Emit], None]
"""What each worker does, with its slot, its number, and a function for its results."""


def _measure_together(measure: Measure, pool: Sequence[WorkerSlot]) -> Rate:
    """Measure in all workers at once."""
    found: list[Rate] = []

    def on_event(message: Any) -> None:
        if isinstance(message, Rate):
            found.append(message)

    run_tasks(partial(each_worker, measure), pool, range(len(pool)), on_event)
    return Rate(sum(rate.speed for rate in found), statistics.mean(rate.cost for rate in found))


def each_worker(
    measure: Measure, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    for number in numbers:
        measure(worker_slot, number, emit)
        emit(TaskDone(number))


class _Watch:
    """Counts images until the time is over."""

    def __init__(self, seconds: float) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._until = self._wall + seconds
        self.images = 0

    def running(self) -> bool:
        return time.perf_counter() < self._until or not self.images

    def rate(self) -> Rate:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Rate(self.images / wall, cpu / self.images)


def _decode(
    work: TopKJob, seconds: float, worker_slot: WorkerSlot, number: int, emit: Emit
) -> None:
    reader = reader_of(work, work.network or work.on(worker_slot.device), worker_slot, emit)
    first = number * work.cut.batches // cores()
    batches = cycle((*range(first, work.cut.batches), *range(first)))
    watch = _Watch(seconds)
    for count, batch in enumerate(reader.read(batches)):
        watch.images += int(batch.used.sum())
        if not watch.images and count >= work.cut.batches:
            raise CnnvisError(f"{work.manifest.root}: none of its images can be read")
        if not watch.running():
            break
    emit(watch.rate())


def _measure_forward(
    work: TopKJob,
    how: ForwardPass,
    seconds: float,
    worker_slot: WorkerSlot,
    _number: int,
    emit: Emit,
) -> None:
    network = work.on(worker_slot.device)
    pixels = torch.randint(0, 256, (how.size, *network.size, 3), dtype=torch.uint8)
    pixels = pixels.to(worker_slot.device)
    with (
        torch.inference_mode(),
        arithmetic(work.plan.topk.precision, worker_slot.device),
        network.in_place(),
        network.tap(work.layers[-1:], lambda *_: None) as run,
    ):
        run(_shaped(network, pixels, how))
        wait_for(worker_slot.device)
        watch = _Watch(seconds)
        while watch.running():
            run(_shaped(network, pixels, how))
            watch.images += how.size
        wait_for(worker_slot.device)
    emit(watch.rate())


def _shaped(network: Network, pixels: torch.Tensor, how: ForwardPass) -> torch.Tensor:
    normalised = network.normalise(network.centre(pixels))
    return normalised if how.channels_last else normalised.contiguous()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _topk(work: TopKJob, report: Report) -> tuple[Rate, Rate]:
    """Run the stage in a temporary run; return its speed, without and with start and end."""
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(work.plan, run=folder + "/run", batch_size=work.cut.size)
        with open_session(plan, report) as session:
            load_loops(work.plan.topk.precision == "bf16")
            start = time.perf_counter()
            topk(replace(session, report=_Silent(report)))
            seconds = time.perf_counter() - start
            known = session.run.read()["topk"]
    whole = len(work.manifest) / seconds
    speeds = (float(known.get("images_a_second", whole)), whole)  # few images: no process is warm
    return Rate(speeds[0], cores() / speeds[0]), Rate(speeds[1], cores() / speeds[1])


class _Silent(Report):
    """A silent report for the temporary run, which stops when the other one does."""

    def __init__(self, heard: Report) -> None:
        super().__init__(quiet=True)
        self._heard = heard

    def result(self, text: str) -> None:
        pass

    def check_stop(self) -> None:
        self._heard.check_stop()
