"""Threads of this process that work beside its main one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from cnnvis_cli.engine.slots import cores

T = TypeVar("T")
R = TypeVar("R")


class Aside:
    """Does one action at a time in a thread of its own, while the caller goes on."""

    def __enter__(self) -> Aside:
        self._pool = ThreadPoolExecutor(1)
        self._going: Future[Any] | None = None
        return self

    def begin(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Begin an action, once the last one is done."""
        self.settle()
        self._going = self._pool.submit(action, *arguments)

    def settle(self) -> None:
        """Wait for the action that was begun, and raise what it raised."""
        if self._going is not None:
            going, self._going = self._going, None
            going.result()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def in_threads(action: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """Yield the action's result for each item, in their order, on as many threads as cores.

    For actions that release Python's lock, such as decoding. Close it to begin no more of them.
    """
    pool = ThreadPoolExecutor(cores())
    try:
        yield from pool.map(action, items)
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(items: Iterable[T], count: int = 1) -> Generator[T, None, None]:
    """Yield the items, up to `count` of them made ahead in a thread of their own."""
    if not count:
        yield from items
        return
    source, pool = iter(items), ThreadPoolExecutor(1)
    try:
        going = deque(pool.submit(next, source, _OVER) for _ in range(count))
        while (item := going.popleft().result()) is not _OVER:
            going.append(pool.submit(next, source, _OVER))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(action: Callable[[T], R], items: Iterable[T], count: int) -> Generator[R, None, None]:
    """Yield the action's result for each item, in their order, on `count` threads.

    At most `count` + 1 items are held. With several threads each computes with one of torch's: that
    is faster than one item after the other on all of them.
    """
    going, pool = deque[Future[R]](), ThreadPoolExecutor(count)
    with one_thread() if count > 1 else nullcontext():
        try:
            for item in items:
                going.append(pool.submit(action, item))
                if len(going) > count:
                    yield going.popleft().result()
            while going:
                yield going.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Let torch compute with one thread in this block; processes can be forked after it."""
    return threads_of_torch(1)


STEADY = 16  # images; measured with oneDNN of torch 2.14 on up to 64 threads


def steady(images: int = 1) -> AbstractContextManager[None]:
    """Let torch compute in this block so that bits do not depend on the number of threads.

    With few images in a pass, oneDNN shares out the sums of 1x1 convolutions among threads, and
    their order decides the last bits: then one thread does all.
    """
    return one_thread() if images < STEADY else nullcontext()


_OVER = object()  # marks the end of the items
