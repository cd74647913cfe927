"""Libraries that would fetch what they lack are used without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def no_network() -> Iterator[None]:
    """Refuse every connection while the block works, before anything is looked up or sent.

    What asks for one gets an `OSError`.
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("it would ask the network, which cnnvis does not allow here")

    look_up = socket.getaddrinfo
    socket.getaddrinfo = refuse
    socket.socket.connect = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo = look_up
        del socket.socket.connect
