"""Devices, and the processes that do the work: this one, others here, or a cluster's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cnnvis_cli.engine.dask import Cluster, connect, share_tasks_on
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
    share_tasks,
)
from cnnvis_cli.engine.slots import (
    Emit,
    Notice,
    Task,
    TaskDone,
    WorkerSlot,
    available_memory,
    cores,
    shared_memory,
    worker_slots,
)
from cnnvis_cli.engine.threads import (
    Aside,
    ahead,
    in_order,
    in_threads,
    one_thread,
    steady,
    threads_of_torch,
)

__all__ = [
    "ATTEMPTS",
    "PATIENCE",
    "Aside",
    "Cluster",
    "Emit",
    "Graphs",
    "Notice",
    "Pool",
    "Task",
    "TaskDone",
    "WorkerSlot",
    "ahead",
    "arithmetic",
    "available_memory",
    "check_precision",
    "choose_device",
    "choose_devices",
    "connect",
    "cores",
    "describe_device",
    "for_gradients",
    "in_order",
    "in_threads",
    "keep_memory",
    "limit_to_memory",
    "memory_explained",
    "one_thread",
    "release_idle",
    "remark_on_auto",
    "resolve_precision",
    "run_tasks",
    "shared_memory",
    "steady",
    "tensor_cores",
    "threads_of_torch",
    "worker_slots",
]

Pool = Sequence[WorkerSlot] | Cluster


def run_tasks(
    work: Task,
    pool: Pool,
    numbers: Sequence[int],
    emit: Emit,
    describe: Callable[[int], str] = "part {}".format,
) -> None:
    """Do tasks in a pool, handed out one at a time; `emit` is called with each worker's messages.

    Each worker calls ``work(worker_slot, numbers, emit)`` in a process of its own and emits
    `TaskDone` for each number; on a cluster each task is one call. A single worker on a CPU is this
    process. On a GPU it never is: after a fault of the device only another process can go on.
    When a worker dies, another does the tasks that it held. When all others are done, raise
    `TasksFailed` for tasks that ended `ATTEMPTS` processes, with their names from `describe`. Also
    raise whatever `work` or `emit` raises.
    """
    if isinstance(pool, Cluster):
        share_tasks_on(pool, work, numbers, emit, describe)
    elif pool[0].device.type == "cpu" and (len(pool) == 1 or len(numbers) < 2):
        work(pool[0]._replace(threads=torch.get_num_threads()), iter(numbers), emit)
    else:
        share_tasks(work, pool, numbers, emit, describe)
