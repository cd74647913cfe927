"""``python -m cnnvis_cli`` is the same as ``cnnvis``.

A signal to stop may come at any time, so that its handler stands before anything else is imported.
"""

import os
import signal
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def main() -> None:
    """Run a command; one that is stopped while it is loaded has nothing to save."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)

    # Threads that wait for work must not spin: on a machine that others use as well, they would
    # take several times the work's own processor time. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from cnnvis_cli.cli import main as run

    run()


def _stop(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"cnnvis: stopped by {name} before it began\n".encode())
    os._exit(75)


if __name__ == "__main__":
    main()
