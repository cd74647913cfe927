"""A real Dask cluster on this machine: the bytes of one process, whatever is killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cnnvis_cli.engine import dask as engine
from cnnvis_cli.errors import UsageError

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'cnnvis[cluster]'")

Call = Callable[..., Any]
CPU = torch.device("cpu")

# What a worker loads first. Each notes its process, and each part that it is about to publish;
# the nap makes the work long enough for many kills, on any machine.
PRELOAD = """
import os, time
from pathlib import Path
from cnnvis_cli.store.parts import Parts

here = Path(os.environ["NOTES"])  # Dask copies this file
publish = Parts.__setitem__

def noted(self, name, arrays):
    with (here / "published").open("a") as file:
        file.write(f"{self.folder}/{name}\\n")
    time.sleep(float((here / "nap").read_text()))
    publish(self, name, arrays)

def dask_setup(worker):
    (here / "pids" / str(os.getpid())).touch()
    Parts.__setitem__ = noted
"""


class Stock(NamedTuple):
    """A scheduler and its workers, as a user starts them."""

    address: str
    folder: Path

    def workers(self) -> list[int]:
        """Return the processes of the workers that are alive now."""
        pids = sorted(int(path.name) for path in (self.folder / "pids").iterdir())
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    def published(self) -> list[str]:
        """Return the parts that workers were about to publish, as often as they were."""
        path = self.folder / "published"
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def napping(self, seconds: float) -> Iterator[None]:
        """A block in which a worker rests before it publishes."""
        (self.folder / "nap").write_text(str(seconds))
        yield
        (self.folder / "nap").write_text("0")


def dask(notes: Path, *words: str) -> subprocess.Popen[bytes]:
    """``dask WORDS``, of this environment."""
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NOTES": str(notes)}
    environment = {**os.environ, **own}
    command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [*command, *words[1:]],
        stdout=quiet,
        stderr=quiet,
        env=environment,
        start_new_session=True,
    )


@contextmanager
def stock_cluster(folder: Path, count: int) -> Iterator[Stock]:
    """`dask scheduler` and `dask worker`, each worker with the nanny that starts it again."""
    (folder / "pids").mkdir()
    (folder / "preload.py").write_text(PRELOAD)
    (folder / "nap").write_text("0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stock = Stock(f"tcp://127.0.0.1:{port}", folder)
    options = ["--nworkers", str(count), "--nthreads", "1", "--host", "127.0.0.1"]
    options += ["--preload", str(folder / "preload.py"), "--local-directory", str(folder)]
    with ExitStack() as ending:
        for words in (
            ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            ["worker", stock.address, "--no-dashboard", *options],
        ):
            ending.callback(end, dask(folder, *words))
        until = time.monotonic() + 120
        while len(stock.workers()) < count:
            assert time.monotonic() < until, "the workers do not start"
            time.sleep(0.1)
        yield stock
        engine._client(stock.address).close()
        engine._client.cache_clear()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """Two workers, for all short tests here."""
    with stock_cluster(tmp_path_factory.mktemp("cluster"), 2) as found:
        yield found


@contextmanager
def killing(stock: Stock, run: Path, pauses: Sequence[float]) -> Iterator[list[int]]:
    """A block during which workers of a cluster are killed, from a run's first part on."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02) and not any(run.rglob("parts/**/*.h5")):
            pass
        for pause in pauses:
            if over.wait(pause):
                return
            while not (alive := stock.workers()) and not over.wait(0.05):
                pass
            with suppress(ProcessLookupError, IndexError):
                os.kill(pid := random.choice(alive), signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


# -- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "localhost:8786", "http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="write it as tcp://host:port or tls://host:port"):
        engine.connect(address, CPU, trusted=True)


@pytest.mark.parametrize(
    ("address", "trusted", "fine"),
    [
        ("tcp://127.0.0.1:1", False, True),
        ("tcp://127.9.9.9:1", False, True),
        ("tcp://localhost:1", False, True),
        ("tcp://[::1]:1", False, True),
        ("tcp://10.0.0.1:1", False, False),
        ("tcp://node1:1", False, False),
        ("tcp://localhost.evil.example:1", False, False),
        ("tcp://0.0.0.0:1", False, False),
        ("tcp://node1:1", True, True),
        ("tls://node1:1", False, True),
    ],
)
def test_traffic_that_others_can_read_needs_trust(
    address: str, trusted: bool, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(engine, "_client", asked.append)
    if fine:
        assert engine.connect(address, CPU, trusted).address == address
    else:
        with pytest.raises(UsageError, match=r"use TLS .* or --trust-network"):
            engine.connect(address, CPU, trusted)
    assert asked == ([address] if fine else [])


@pytest.mark.parametrize("port", ["99999", "x", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(UsageError, match="write it as"):
        engine.connect(f"tcp://127.0.0.1:{port}", CPU, trusted=False)


@pytest.mark.filterwarnings("ignore")  # of the client that gives up
def test_where_nobody_answers(plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT", 1)
    start = time.monotonic()
    told = cnnvis("topk images -c demo.toml --run run --scheduler tcp://127.0.0.1:1", code=2)
    assert "does not answer within 1 s" in told.err
    assert "start it with: dask scheduler" in told.err
    assert time.monotonic() - start < 20


def test_a_worker_without_the_device_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(Exception, match="sees no CUDA device"):
        engine._lane("cuda")


# -- the cluster --------------------------------------------------------------------------------

LINES = ("topk", "optimize --layer conv2", "project --method deconv")


def whole(cnnvis: Call) -> Path:
    """Return the run of one process."""
    for line in LINES:
        cnnvis(f"{line} -c demo.toml --run whole")
    return Path("whole")


def test_a_cluster_gives_the_bytes_of_one_process(
    plans: None, cnnvis: Call, results: Call, stock: Stock
) -> None:
    for line in LINES:
        cnnvis(f"{line} -c demo.toml --run run --scheduler {stock.address}")
    assert results(Path("run")) == results(whole(cnnvis))
    assert len(stock.published()) >= 3  # the workers did it
    assert not Path("run/parts").exists()
    told = cnnvis(f"{LINES[0]} -c demo.toml --run run --scheduler {stock.address}")
    assert "20 images" in told.out


def test_a_worker_that_is_killed_changes_no_byte(
    plans: None, cnnvis: Call, results: Call, stock: Stock
) -> None:
    wanted = results(whole(cnnvis))
    with stock.napping(0.2), killing(stock, Path("run"), [0.1]) as killed:
        for line in LINES:
            cnnvis(f"{line} -c demo.toml --run run --scheduler {stock.address}")
    assert len(killed) == 1
    assert results(Path("run")) == wanted


KILLS = 20


@pytest.mark.long
def test_twenty_killed_workers_change_no_byte_and_cost_a_piece_each(
    photographs: Call, cnnvis: Call, results: Call, tmp_path: Path
) -> None:
    """Workers write down each part that they are about to publish, before they do.

    So every piece of work that came as far as its result is counted, also one whose worker was
    killed before the result was safe. A part that is written down more than once was computed more
    than once. What was killed before it had a result is not counted; but each worker does one
    piece at a time, so a kill costs one piece, or one that was done and not yet told of.
    """
    photographs(Path("images"), 600, classes=2, size=(112, 112))
    common = "--model demo --device cpu --workers 0"
    lines = (
        f"topk images {common} --batch-size 4",
        f"optimize {common} --batch-size 4 --iterations 20 --units 0-15",
    )
    for line in lines:
        cnnvis(f"{line} --run whole")
    folder = tmp_path / "cluster"
    folder.mkdir()
    pauses = [random.uniform(0.5, 3) for _ in range(KILLS)]
    with (
        stock_cluster(folder, 3) as stock,
        stock.napping(2),
        killing(stock, Path("run"), pauses) as killed,
    ):
        for line in lines:
            start = time.monotonic()
            cnnvis(f"{line} --run run --scheduler {stock.address}")
            print(f"{line}: {time.monotonic() - start:.0f} s, {len(killed)} kills so far")
        times = Counter(stock.published())
    again = sum(times.values()) - len(times)
    print(f"{len(killed)} kills, {len(times)} pieces, {again} of them computed again")
    assert results(Path("run")) == results(Path("whole"))
    assert len(killed) == KILLS
    assert again <= KILLS
