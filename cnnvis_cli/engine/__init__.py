"""The devices and the processes that the work runs on: this one, others here, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cnnvis_cli.engine.dask import Cluster, reach, share_out_on
from cnnvis_cli.engine.devices import (
    Graphs,
    arithmetic,
    check_precision,
    choose_device,
    choose_devices,
    describe_device,
    keep_memory,
    limit_to_memory,
    memory_explained,
    remark_on_auto,
    resolve_precision,
    tensor_cores,
)
from cnnvis_cli.engine.pool import (
    ATTEMPTS,
    PATIENCE,
    for_gradients,
    release_idle,
    share_out,
)
from cnnvis_cli.engine.slots import (
    Finished,
    Lane,
    Notice,
    Tell,
    Work,
    available_memory,
    cores,
    lanes,
    shared_memory,
)
from cnnvis_cli.engine.threads import Aside, ahead, in_order, in_threads

__all__ = [
    "ATTEMPTS",
    "PATIENCE",
    "Aside",
    "Cluster",
    "Crew",
    "Finished",
    "Graphs",
    "Lane",
    "Notice",
    "Tell",
    "Work",
    "ahead",
    "arithmetic",
    "available_memory",
    "check_precision",
    "choose_device",
    "choose_devices",
    "cores",
    "describe_device",
    "for_gradients",
    "in_order",
    "in_threads",
    "keep_memory",
    "lanes",
    "limit_to_memory",
    "memory_explained",
    "reach",
    "release_idle",
    "remark_on_auto",
    "resolve_precision",
    "shared_memory",
    "spread",
    "tensor_cores",
]

Crew = Sequence[Lane] | Cluster


def spread(
    work: Work,
    crew: Crew,
    numbers: Sequence[int],
    tell: Tell,
    called: Callable[[int], str] = "part {}".format,
) -> None:
    """Have a crew do pieces of work, given out one at a time; `tell` hears what is told.

    Each lane calls ``work(lane, numbers, tell)`` in a process of its own and tells `Finished`
    for each number; on a cluster each piece is a call. A single lane of the CPU works in this
    process. A GPU's never does: after a fault of the device only another process can go on.
    A process that dies costs what it had in hand, which another does. Raises `SetAside`, when all
    else is done, for pieces that ended `ATTEMPTS` processes, by the names that they are `called`;
    and whatever `work` or `tell` raises.
    """
    if isinstance(crew, Cluster):
        share_out_on(crew, work, numbers, tell, called)
    elif crew[0].device.type == "cpu" and (len(crew) == 1 or len(numbers) < 2):
        work(crew[0], iter(numbers), tell)
    else:
        share_out(work, crew, numbers, tell, called)
