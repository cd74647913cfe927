"""`cnnvis topk`: a dataset flows through the network; each channel keeps its strongest places."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnvis_cli.dataset.classes import describe
from cnnvis_cli.dataset.decode_on_gpu import check_decoder
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.engine import Cluster, check_precision, choose_devices, run_tasks
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.tally import load_loops
from cnnvis_cli.stages.common.dataset_images import dataset_path
from cnnvis_cli.stages.common.disk import check_disk
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.topk.assemble import (
    announce_result,
    announce_sample,
    dataset_record,
    finish,
    finish_sample,
    is_done,
    leave_for_merge,
)
from cnnvis_cli.stages.topk.job import TopKJob
from cnnvis_cli.stages.topk.worker import Step, scan
from cnnvis_cli.store.room import topk_room
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.sample_file import SampleFile
from cnnvis_cli.store.topk_file import TopKFile

BATCH_SIZES = {"cpu": 32, "cuda": 128}  # images; the defaults


def topk(session: Session) -> None:
    """Stream the dataset through the network and keep each channel's k strongest places.

    Of a shard only its parts are made, for `merge`. Raises `TooManyUnreadable` (exit 3) after
    finishing, when too many images could not be used.
    """
    session.say_what_is_left_out()
    devices = choose_devices(session.plan.device)
    check_precision(session.plan.topk.precision, devices[0])
    if session.plan.topk.decode == "gpu":
        check_decoder(devices[0], session.network.preprocessing)
    dataset = dataset_path(session)
    manifest = Manifest.scan(dataset, session.plan.topk.class_level)
    file = TopKFile(session.run.topk)
    have = file.identity()
    if have is not None and have["dataset"] != manifest.digest:
        _refuse_other_images(session, dataset, manifest, have["dataset"])
    identity = _topk_identity(session, manifest, devices[0].type, have or {})
    job = TopKJob.of(session.run, identity, manifest, session.portable_plan, session.network)
    job = _asked(session, job, is_done(file.path, have, identity))
    if not (job.is_placed and job.sample is None):
        _scan(session, job)
        if session.plan.shard is not None:
            leave_for_merge(job)
            mine = session.plan.share(job.cut.count)
            what = f"parts {mine.start} to {mine.stop - 1}" if mine else "no part"
            session.shard_is_done(f", {what} of 0 to {job.cut.count - 1}")
            return
        _publish(session, job)
    job.clear()
    session.run.note("dataset", dataset_record(manifest))
    if session.plan.topk.sample is not None:
        announce_sample(session.run, session.report)
    allowed = session.plan.topk.max_unreadable
    announce_result(file, session.run, manifest, allowed, session.report)


def _publish(session: Session, job: TopKJob) -> None:
    """Join the parts; the dataset is noted first, since a topk.h5 of another one is refused."""
    session.run.note("dataset", dataset_record(job.manifest))
    with session.timed("topk"):
        if not job.is_placed:
            finish(session.run, job, [job.parts], session.report)
        if job.sample is not None:
            finish_sample(session.run, job, [job.sample.parts], session.report)


def _asked(session: Session, job: TopKJob, is_placed: bool) -> TopKJob:
    """Return the job with the sample that is asked for and not done, and say if it comes late."""
    job = replace(job.sampled(session.run, session.plan.topk.sample), is_placed=is_placed)
    file = SampleFile(session.run.sample)
    if job.sample is None:
        return job
    if is_done(file.path, file.identity(), job.sample.identity):
        job.sample.parts.clear()
        return replace(job, sample=None)
    if is_placed:
        session.report.once(
            f"{session.run.topk} is complete: {file.path} takes a second pass over the images"
        )
    return job


def _refuse_other_images(session: Session, dataset: Path, manifest: Manifest, known: str) -> None:
    """Raise `UsageError` that says how the file's images, whose digest is `known`, are others.

    They may differ in the level of their classes alone.
    """
    about = session.run.read().get("dataset", {})
    noted = about.get("class_level")
    for level in filter(None, (noted, "first", "own")):
        if Manifest.scan(dataset, level).digest == known:
            raise UsageError(
                f"{session.run.topk}: its classes are made {describe(level)}; go on with "
                f"--class-level {level}, or choose another --run"
            )
    count, _ = TopKFile(session.run.topk).summary()
    there, here = about.get("path", "another place"), manifest.root.resolve()
    raise UsageError(
        f"{session.run.topk} belongs to another plan: it is of {count} images of {there}, and "
        f"there are {len(manifest)} in {here} now, with other names, sizes or classes; choose "
        "another --run"
    )


def _topk_identity(session: Session, manifest: Manifest, kind: str, have: Record) -> Record:
    """Return all that decides what topk.h5 holds; batch size and device decide the last bits.

    A batch size that nobody asks for is that of the file that there may be.
    """
    settings = session.plan.topk
    size = session.plan.batch_size or have.get("batch_size") or BATCH_SIZES[kind]
    return {
        **session.identity,
        "dataset": manifest.digest,
        "k": settings.k,
        "batch_size": size,
        "device": kind,
        "layers": [layer.alias for layer in session.layers],
        "precision": settings.precision,
        "decode": settings.decode,
        "min": settings.min,
    }


def topk_memory(session: Session, size: int) -> int:
    """Return a process's approximate memory on a CPU: the largest maps, thrice, and itself."""
    largest = max(la.channels * la.map[0] * la.map[1] for la in session.network.layers)
    return 4 * size * 3 * largest + (300 << 20)


@dataclass
class Pace:
    """How fast some processes work; their first batches, which take longer, are left out."""

    processes: int
    images: int = 0
    seconds: float = 0.0  # of all processes together
    waited: float = 0.0

    def add(self, step: Step) -> None:
        if not step.first:
            self.images += step.images
            self.seconds += step.seconds
            self.waited += step.waited

    @property
    def share_waited(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0

    def record(self) -> Record:
        """Return what run.json says of it; nothing where nothing was to do."""
        if not self.seconds:
            return {}
        speed = self.images / self.seconds * self.processes
        return {
            "images_a_second": round(speed, 2),
            "share_waited": round(self.share_waited, 4),
            "processes": self.processes,
        }


def _check_room(session: Session, job: TopKJob, processes: int, images: int) -> None:
    """Say what parts and results will take; raise `CnnvisError` for more than is free."""
    settings = session.plan.topk
    channels = sum(layer.channels for layer in job.layers)
    places = settings.k * (2 if settings.min else 1)
    room = topk_room(channels, len(job.layers), places, job.cut.count, processes)
    known = session.run.noted().get("topk", {}).get("images_a_second")
    seconds = images / known if known else 0
    check_disk(session, "topk", room, "ask for fewer --layer or a smaller --k", seconds)


def _scan(session: Session, job: TopKJob) -> None:
    """Compute and keep every part of this shard that is not there yet."""
    pending = [n for n in session.plan.share(job.cut.count) if not job.is_done(n)]
    if not pending:
        return
    batches = sum(len(job.batches_of(number)) for number in pending)
    pool = session.pool(topk_memory(session, job.cut.size))
    if not job.is_placed:
        _check_room(session, job, len(pool), batches * job.cut.size)
    meter = session.report.meter("topk", batches * job.cut.size, "images")
    pace = Pace(min(len(pool), len(pending)))

    def on_event(message: Any) -> None:
        session.on_event(message)
        if isinstance(message, Step):
            pace.add(message)
            meter.add(message.images, f"{pace.share_waited:.0%} of the time waiting for images")

    slots = () if isinstance(pool, Cluster) else pool
    if any(slot.device.type == "cpu" and not slot.fresh for slot in slots):
        # what this process has, the forked ones have as well; others load it alone
        load_loops(session.plan.topk.precision == "bf16")
    about = {"total": job.cut.images, "size": job.cut.length * job.cut.size}
    if job.is_placed and job.sample is not None:
        session.announce("topk", {"sample": {**about, "parts": job.sample.parts.folder.name}})
    else:
        session.announce("topk", {"images": {**about, "parts": job.parts.folder.name}})
    with session.timed("topk") as facts:
        run_tasks(functools.partial(scan, job), pool, pending, on_event, job.describe)
        facts.update(pace.record())
    meter.end()
