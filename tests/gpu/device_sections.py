"""What only a GPU shows about cnnvis, in sections. On a CPU each does a little of the same.

default  every command with the default device, ``cuda``, ``cuda:0``: exit code, stderr, numbers
bits     an ascent's bits depend neither on its slot nor on what shares its batch
syncs    waits by source line, and kernels, per step of an ascent
pass     the bare pass by layer, precision and layout; one real layer; AlexNet whole, extrapolated
host     what a block of fc6 costs beside its steps
topk     ``bench topk`` on JPEGs drawn here, against the slower of decoding and forward pass
faults   memory that runs out, a device-side fault, two processes on a device, memory that grows
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from cnnvis_cli.settings import Precision
    from tests.gpu.ascents import Stand
    from tests.gpu.device_check import DEVICE, GPU, ROOM, Findings
else:
    from device_check import DEVICE, GPU, ROOM, Findings

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16") if GPU else ("float32",)
SMALL = ("--model", "demo", "--batch-size", "8")
CLIMB = (*SMALL, "--units", "0-5", "--iterations", "16", "--step", "50")


class Ended(NamedTuple):
    """How a command ended, what it printed, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"exit code {self.code}: {self.err.strip()[-200:]}"


def cnnvis(*words: str, seconds: float = 60) -> Ended:
    """Run a command in the check's folder, within this time."""
    command, start = [sys.executable, "-m", "cnnvis_cli", *words], time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOM, capture_output=True, text=True, timeout=max(seconds, 1), check=False
        )
    except subprocess.TimeoutExpired:
        return Ended(124, "", f"took more than {seconds:.0f} s", seconds)
    return Ended(done.returncode, done.stdout, done.stderr, time.perf_counter() - start)


def noted(run: str, stage: str) -> dict[str, Any]:
    """Return what run.json records about a stage."""
    found: dict[str, Any] = json.loads((ROOM / run / "run.json").read_text())
    return dict(found.get(stage, {}))


def images(count: int, size: tuple[int, int] = (500, 375)) -> Path:
    """Return a folder of JPEGs about as large as ImageNet's (110 kB), in ten classes."""
    folder = ROOM / f"images-{count}"
    if not (folder / "done").exists():
        for label in range(10):
            (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        jobs = [(str(folder), number, size) for number in range(count)]
        if count < 100:
            list(map(_draw, jobs))
        else:
            with ProcessPoolExecutor() as pool:
                list(pool.map(_draw, jobs, chunksize=16))
        (folder / "done").touch()
    return folder


def _draw(job: tuple[str, int, tuple[int, int]]) -> None:
    from PIL import Image

    folder, number, size = job
    generator, picture = np.random.default_rng(number), np.zeros((size[1], size[0], 3), np.float32)
    for weight, side in ((0.55, 6), (0.25, 24), (0.14, 96), (0.06, 375)):
        blobs = Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8))
        picture += weight * np.asarray(blobs.resize(size, Image.Resampling.BICUBIC), np.float32)
    path = f"{folder}/class{number % 10}/{number:06d}.jpg"
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def wait() -> None:
    """Wait for the device."""
    import torch

    if GPU:
        torch.cuda.synchronize()


# ---- default: the commands as people type them


def default(found: Findings) -> None:
    photographs = images(24)
    picture = str(next(photographs.rglob("*.jpg")))
    shared = ("--layer", "conv2", "--precision", "float32", "--style", "1", "--style", "3")

    def chain(device: str) -> list[tuple[str, Ended]]:
        """Run commands that each need the one before, in one run directory."""
        run = ("--device", device, "--run", _run_on(device))
        words = (
            ("optimize", *CLIMB, *shared, *run),
            ("topk", str(photographs), *SMALL, "--workers", "4", *run),
            ("project", "--layer", "conv2", "--layer", "fc6", "--units", "0-3", *run),
            ("verify", _run_on(device), "--device", device),
        )
        return [(f"{each[0]} on {device}", cnnvis(*each)) for each in words]

    def alone(job: tuple[int, tuple[str, ...]]) -> list[tuple[str, Ended]]:
        number, words = job
        name = " ".join((words[0], *words[-4:])).replace(picture, "IMAGE")
        return [(name, cnnvis(*words, "--device", DEVICE, "--run", f"alone-{number}"))]

    devices = ("auto", "cuda", "cuda:0", "cpu") if GPU else ("cpu",)
    commands = _commands(picture, str(photographs)) if GPU else [("filters", "--model", "demo")]
    with ThreadPoolExecutor(6 if GPU else 1) as pool:
        if GPU:
            done = [*pool.map(chain, devices), *pool.map(alone, enumerate(commands))]
        else:
            done = list(pool.map(alone, enumerate(commands)))
    for what, ended in (each for group in done for each in group):
        found.claim(f"{what} ends well", ended.code == 0, ended)
        heard = [line for line in ended.err.splitlines() if "--device auto:" not in line]
        if ended.code == 0:
            found.claim(f"{what} says nothing on stderr", not heard, " ".join(heard))
    if GPU:
        _beside_the_cpu(found)


def _run_on(device: str) -> str:
    return f"default-{device.replace(':', '')}"


def _commands(picture: str, photographs: str) -> list[tuple[str, ...]]:
    methods = ("gradient", "guided", "deconv", "gradcam", "smoothgrad", "integrated")
    return [
        ("occlude", picture, "--model", "demo"),
        ("saliency", picture, "--model", "demo", *(f"--method={name}" for name in methods)),
        ("activations", picture, "--model", "demo"),
        ("filters", "--model", "demo"),
        ("search", *SMALL, "--layer", "conv2", "--units", "0-1", "--trials", "3"),
        ("optimize", *CLIMB, "--layer", "conv3", "--style", "fourier"),
        ("optimize", *CLIMB, "--layer", "conv4", "--style", "fourier", "--precision", "bf16"),
        ("optimize", *CLIMB, "--layer", "fc8", "--style", "3", "--runs", "2", "--diversity", "0.1"),
        ("optimize", *CLIMB, "--layer", "conv3"),
        ("optimize", *SMALL, "--layer", "conv2", "--units", "0-3", "--style", "3"),
        ("topk", photographs, *SMALL, "--precision", "bf16"),
        ("bench", "optimize", *SMALL, "--layer", "conv2", "--rounds", "1", "--seconds", "0.3"),
    ]


def _beside_the_cpu(found: Findings) -> None:
    import h5py

    places = (
        ("optimized/conv2.h5", "3/activation"),
        ("optimized/conv2.h5", "1/activation"),
        ("topk.h5", "layers/conv5/activation"),
    )
    for file, name in places:
        with found.attempt(f"cuda beside cpu, {file} {name}"):
            runs = (ROOM / _run_on(device) / file for device in ("cuda:0", "cpu"))
            here, there = (h5py.File(path)[name][()] for path in runs)
            apart = float(np.nanmax(np.abs(here - there)) / np.nanmax(np.abs(there)))
            found.claim(f"cuda beside cpu, {file} {name}", apart < 2e-2, f"{apart:.1e} apart")


# ---- the pieces of an ascent


def stand(
    alias: str, size: int | None, precision: Precision = "float32", typical: bool = False
) -> Stand:
    """Return the pass of a layer: AlexNet's on a GPU, the bundled network's in a dry run."""
    stand_on = import_module("ascents").stand_on  # not at the top: it loads torch
    made: Stand = stand_on(DEVICE, "alexnet" if GPU else "demo", alias, size, precision, typical)
    return made


def climbing(name: str, steps: int) -> Any:
    return import_module("ascents").style_of(name, steps)


def bits(found: Findings) -> None:
    """Claim that ascents in other slots and beside others are equal to the bit."""
    layers = ("conv1", "fc7", "conv3", "conv5", "fc6", "fc8", "conv2") if GPU else ("conv1",)
    for alias in layers:
        for precision in PRECISIONS:
            if not found.has_time(6, f"bits of {alias} {precision}"):
                continue
            with found.attempt(f"bits of {alias} {precision}"):
                place = stand(alias, 64 if GPU else 4, precision)
                _bits_of_the_pass(found, place, f"{alias} {precision}")
                for name in ("1", "3", "4"):
                    _bits_of_ascents(found, place, name, f"{alias} {precision} style {name}")


def _bits_of_the_pass(found: Findings, place: Stand, what: str) -> None:
    """Compare the bits of passes, without the ascent's own arithmetic."""
    import torch

    size = place.setup.size
    tasks = place.tasks(climbing("3", 1))
    x = torch.stack([task.start for task in tasks]).to(DEVICE)
    x = x.contiguous(memory_format=torch.channels_last)
    targets = torch.tensor([task.target for task in tasks], device=DEVICE)
    moved = [(slot + 3) % size for slot in range(size)]
    value, _, gradient = (part.clone() for part in place.bare(x, targets))
    other = x[moved].contiguous(memory_format=torch.channels_last)
    value_there, _, gradient_there = (part.clone() for part in place.bare(other, targets[moved]))
    wrong = (value[moved] != value_there) | (gradient[moved] != gradient_there).flatten(1).any(1)
    apart = float((gradient[moved] - gradient_there).abs().max() / gradient.abs().max())
    detail = f"{int(wrong.sum())} of {size} slots differ, gradients by {apart:.0e} of the largest"
    what = f"bits of the pass, {what}, in other slots"
    if "tf32" in what:  # as cuDNN does; the reason why an ascent has a slot of its own
        found.note(what, detail)
    else:
        found.claim(what, not wrong.any(), detail)


def _bits_of_ascents(found: Findings, place: Stand, name: str, what: str) -> None:
    import torch

    size, style = place.setup.size, climbing(name, 12 if GPU else 4)
    tasks = place.tasks(style)
    others = [place.task(1000 + number, style) for number in range(size)]
    first = {ascent.key: ascent for ascent in place.ascend(tasks)}
    ways = {
        "again": tasks,
        "in other slots": [*tasks[-3:], *tasks[:-3]],  # by 3: odd rows begin at other addresses
        "beside others": [*others[: size // 2], *tasks[: size // 2]],
    }
    for word, order in ways.items():
        known = [ascent for ascent in place.ascend(order) if ascent.key in first]
        differ = [a for a in known if not torch.equal(a.image, first[a.key].image)]
        apart = max((float((a.image - first[a.key].image).abs().max()) for a in differ), default=0)
        detail = f"{len(differ)} of {len(known)} differ, by {apart:.1e} grey levels at most"
        found.claim(f"bits of {what} {word}", known and not differ, detail)


# ---- syncs: where the host waits


@contextmanager
def waits_heard() -> Iterator[Counter[str]]:
    """Count waits by line, as torch's own detector finds them."""
    import torch

    lines: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if GPU:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            if GPU:
                torch.cuda.set_sync_debug_mode("default")
    lines.update(f"{Path(each.filename).name}:{each.lineno}" for each in heard)


def syncs(found: Findings) -> None:
    short, long = (64, 256) if GPU else (4, 8)
    for name in ("1", "3", "4", "fourier", "natural", "typical", "maco", "accent"):
        with found.attempt(f"waits of style {name}"):
            place = stand("conv2", 64 if GPU else 4, typical=name == "typical")
            list(place.ascend(place.tasks(climbing(name, short))))
            counts, walls = [], []
            for steps in (short, long):
                wait()
                start = time.perf_counter()
                with waits_heard() as lines:
                    list(place.ascend(place.tasks(climbing(name, steps))))
                    wait()
                counts.append(lines)
                walls.append(time.perf_counter() - start)
            more = counts[1] - counts[0]
            step = (walls[1] - walls[0]) / (long - short)
            what = f"style {name} waits at most once in 32 steps"
            found.claim(what, more.total() <= (long - short) / 32, dict(more.most_common(4)))
            found.note(
                f"a step of conv2, style {name}, {place.setup.size} slots", f"{1e6 * step:.0f} us"
            )
            if GPU:
                _kernels(found, place, name)


def _kernels(found: Findings, place: Stand, name: str) -> None:
    """Note how long the device works per step, and in how many kernels."""
    from torch.profiler import ProfilerActivity, profile

    steps = 40
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as told:
        list(place.ascend(place.tasks(climbing(name, steps))))
        wait()
    events = [event for event in told.key_averages() if event.self_device_time_total > 0]
    busy = sum(event.self_device_time_total for event in events) / steps
    kernels = sum(event.count for event in events) / steps
    launches = {
        event.key: event.count for event in told.key_averages() if event.key.startswith("cudaGraph")
    }
    found.note(f"device's part, style {name}", f"{busy:.0f} us, {kernels:.0f} kernels; {launches}")


# ---- pass: the limits, and a real layer

UNITS = {  # of AlexNet
    **{"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256},
    **{"fc6": 4096, "fc7": 4096, "fc8": 1000},
}
ALIKE = {"conv4": "conv3", "fc7": "fc6"}  # measured by another layer's pass
RUNS, STEPS = 9, 500
MINUTES = 30  # AlexNet whole, on one GPU


def passes(found: Findings) -> None:
    real = _real_layer(found)
    milliseconds: dict[tuple[str, str], float] = {}  # an ascent's step, by layer and precision
    for precision in ("tf32", "bf16", "float32") if GPU else PRECISIONS:
        for alias in ("conv1", "conv2", "conv3", "conv5", "fc6", "fc8") if GPU else ("conv1",):
            if precision == "float32" and alias not in ("conv1", "conv3", "fc6"):
                continue
            if found.has_time(5, f"pass of {alias} {precision}"):
                with found.attempt(f"pass of {alias} {precision}"):
                    milliseconds[alias, precision] = _pace(found, alias, precision)
    for precision in ("tf32", "bf16"):
        _extrapolate(found, milliseconds, precision, real if precision == "tf32" else None)
    for alias in ("conv3", "fc6") if GPU else ():
        if found.has_time(8, f"layouts of {alias}"):
            with found.attempt(f"layouts of {alias}"):
                _layouts(found, alias)


def _pace(found: Findings, alias: str, precision: Precision) -> float:
    """Note the bare pass and an ascent's whole step; return the latter in ms per ascent."""
    import torch

    place = stand(alias, None if GPU else 4, precision)
    size = place.setup.size
    x = torch.stack([task.start for task in place.tasks(climbing("3", 1))]).to(DEVICE)
    x = x.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(size, dtype=torch.long, device=DEVICE)
    for _ in range(2):
        place.bare(x, targets)
    bare = _seconds(lambda: place.bare(x, targets), 0.4)
    few, many = (8, 32) if bare < 0.1 else (3, 9)
    walls = []
    for steps in (few, many) if GPU else (1, 2):
        start = time.perf_counter()
        list(place.ascend(place.tasks(climbing("3", steps))))
        wait()
        walls.append(time.perf_counter() - start)
    step = (walls[1] - walls[0]) / (many - few) if GPU else bare
    found.note(
        f"{alias} {precision}, batch {size}",
        f"pass {1000 * bare:.2f} ms, step of style 3 {1000 * step:.2f} ms",
    )
    return 1000 * max(step, bare) / size


def _seconds(action: Callable[[], Any], at_least: float) -> float:
    """Return how long an action takes, repeated for this time."""
    wait()
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < at_least or not made:
        action()
        made += 1
        if made % 8 == 0 or not GPU:
            wait()
    wait()
    return (time.perf_counter() - start) / made


class Real(NamedTuple):
    """A layer's times by the whole command: seconds per step of an ascent, and for the rest."""

    alias: str
    step: float
    rest: float


def _real_layer(found: Findings) -> Real | None:
    """Time some hundred ascents by the command, for few and for many steps, by its own clock."""
    model = ("--model", "alexnet", "--weights", "random") if GPU else ("--model", "demo")
    alias, count, steps = ("conv5", 256, (100, 1600)) if GPU else ("conv1", 4, (2, 4))
    precision = ("--precision", "tf32") if GPU else ("--batch-size", "4")
    seconds = []
    for number in steps:
        words = ("--layer", alias, "--units", f"0-{count - 1}", "--iterations", str(number))
        run = f"real-{number}"
        place = ("--style", "3", "--step", "20", *precision, "--device", DEVICE, "--run", run)
        ended = cnnvis("optimize", *model, *words, *place, seconds=found.left / 2)
        found.claim(f"{count} ascents of {alias}, {number} steps", ended.code == 0, ended)
        if ended.code:
            return None
        seconds.append(noted(run, "optimize")["seconds"])  # starts differ by seconds
    step = (seconds[1] - seconds[0]) / (steps[1] - steps[0]) / count
    real = Real(alias, max(step, 0.0), seconds[0] - steps[0] * step * count)
    found.note(
        f"{alias} by the command, {count} ascents",
        f"{1000 * real.step:.3f} ms an ascent's step, {real.rest:.1f} s beside the steps",
    )
    return real


def _extrapolate(
    found: Findings, known: dict[tuple[str, str], float], precision: str, real: Real | None
) -> None:
    """Extrapolate nine runs of all AlexNet's units from measured steps and one layer's rest."""
    steps = {alias: known.get((ALIKE.get(alias, alias), precision)) for alias in UNITS}
    if None in steps.values():
        if GPU:
            found.claim(f"AlexNet whole, {precision}, extrapolated", False, "a layer is missing")
        return
    total = sum((steps[a] or 0) / 1000 * UNITS[a] * RUNS * STEPS for a in UNITS)
    detail = f"{total / 60:.1f} min of steps"
    if real is not None:
        own = known[real.alias, precision] / 1000
        factor, rest = max(1.0, real.step / own), real.rest * len(UNITS)
        total = total * factor + rest
        detail += (
            f", {factor:.2f} times that by {real.alias}, {rest:.0f} s beside: {total / 60:.1f}"
        )
    what = f"AlexNet whole, {RUNS} runs of {STEPS} steps, {precision}, extrapolated"
    found.note(what, detail)
    if precision == "tf32":
        found.claim(f"{what}, is under {MINUTES} min", total < 60 * MINUTES, detail)


def _layouts(found: Findings, alias: str) -> None:
    """Note the speed of torch's own pass, channels last and channels first."""
    import torch
    from torchvision.models import alexnet

    place = stand(alias, None)
    size = (place.setup.size, 3, *place.setup.box.size)
    for name, layout in (("nhwc", torch.channels_last), ("nchw", torch.contiguous_format)):
        network = alexnet(weights=None).eval().requires_grad_(False)
        network = network.to(DEVICE).to(memory_format=layout)
        part = network if alias.startswith("fc") else network.features
        x = torch.randn(size, device=DEVICE).contiguous(memory_format=layout).requires_grad_()
        times = []
        for _ in range(5):
            wait()
            start = time.perf_counter()
            torch.autograd.grad(part(x).sum(), x)
            wait()
            times.append(time.perf_counter() - start)
        found.note(
            f"plain pass {alias} {name} float32", f"{1000 * statistics.median(times):.2f} ms"
        )


# ---- host: what a block of fc6 costs beside its steps


def host(found: Findings) -> None:
    model = ("--model", "alexnet", "--weights", "random") if GPU else ("--model", "demo")
    precision = ("--precision", "tf32") if GPU else ("--batch-size", "2")
    alias, counts, steps = ("fc6", (128, 256), 60) if GPU else ("conv1", (2, 4), 2)
    seconds = []
    for count in counts:
        words = ("--layer", alias, "--units", f"0-{count - 1}")
        pace = ("--iterations", str(steps), "--style", "3", "--step", "20", *precision)
        run = f"host-{count}"
        ended = cnnvis("optimize", *model, *words, *pace, "--device", DEVICE, "--run", run)
        found.claim(f"{alias}, {count} ascents, {steps} steps", ended.code == 0, ended)
        if ended.code == 0:
            known = noted(run, "optimize")["seconds"]
            found.note(
                f"{alias}, {count} ascents, the stage", f"{known} s of {ended.seconds:.1f} s"
            )
            seconds.append(known)
    if len(seconds) == 2:
        found.note(
            f"{alias}, {counts[1] - counts[0]} more ascents", f"{seconds[1] - seconds[0]:.1f} s"
        )


# ---- topk: its speed against the slower of decoding and the forward pass


def topk(found: Findings) -> None:
    """Measure with ``bench topk``'s functions, so that worker processes start only once."""
    from cnnvis_cli.bench.topk import measure_topk
    from cnnvis_cli.report import Report
    from cnnvis_cli.settings import Plan

    folder = images(4096 if GPU else 24)
    for model in ("alexnet", "resnet50", "squeezenet1_0") if GPU else ("demo",):
        if not found.has_time(15, f"topk of {model}"):
            continue
        with found.attempt(f"topk of {model}"):
            own: Any = {"batch_size": 8} if model == "demo" else {"weights": "random"}
            plan = Plan(model=model, dataset=str(folder), device=DEVICE, **own)
            told = measure_topk(plan, Report(quiet=True), 0.7 if GPU else 0.1, rounds=1)
            _reached(found, model, told.record())
        if model == "alexnet":
            _decoded_on_the_gpu(found, folder)


def _decoded_on_the_gpu(found: Findings, folder: Path) -> None:
    """Note topk's speed with both decoders, with few processes and with many."""
    for workers in ("2", "16"):
        for how in ("exact", "gpu"):
            words = ("--model", "alexnet", "--weights", "random", "--decode", how)
            place = ("--workers", workers, "--device", DEVICE, "--run", f"decode-{how}-{workers}")
            ended = cnnvis("topk", str(folder), *words, *place, seconds=30)
            place_noted = noted(f"decode-{how}-{workers}", "topk") if not ended.code else {}
            said = ended.err.strip()[-200:] if ended.code else place_noted.get("images_a_second")
            what = f"topk --decode {how}, --workers {workers}, of alexnet, images per second"
            found.note(what, f"{said}, all of it {ended.seconds:.1f} s")


def _reached(found: Findings, model: str, told: dict[str, Any]) -> None:
    """Note the rates, and claim that topk reaches 0.9 of the slower one."""
    rates = {row["what"]: row["images_per_second"][0] for row in told["rows"]}  # the last of a name
    shown = {name: round(rates[name]) for name in ("decode", "forward", "topk")}
    found.note(f"{model}, images per second", shown)
    if GPU:
        slower = min(rates["decode"], rates["forward"])
        share = rates["topk"] / slower
        found.claim(f"topk of {model} reaches 0.9 of the slower", share >= 0.9, f"{share:.2f}")


# ---- faults

LOSING = '''
"""A network that loses its device the first time: an index lies outside its tensor."""

from pathlib import Path

import torch
from torch import nn

MARK = Path(__file__).with_name("lost-before")


class Losing(nn.Identity):
    def forward(self, x):
        if x.is_cuda and not MARK.exists():
            MARK.touch()
            far = torch.full((1,), 10**9, device=x.device)
            x = x + torch.zeros(1, device=x.device).index_select(0, far)
        return x


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), Losing(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 12 * 12, 10),
    )
'''
SETTINGS = "preprocessing = {resize = 32, crop = 32, mean = [120, 110, 100], std = [1, 1, 1]}\n"


def faults(found: Findings) -> None:
    with found.attempt("a lost device"):
        _lose_a_device(found)
    if not GPU:
        return
    with found.attempt("memory that runs out"):
        words = ("--model", "vgg16", "--weights", "random", "--layer", "conv13", "--units", "0-3")
        pace = ("--iterations", "2", "--batch-size", "8192")
        ended = cnnvis("optimize", *words, *pace, "--device", DEVICE, "--run", "large", seconds=40)
        explained = ended.code == 1 and "--batch-size" in ended.err
        found.claim("memory that runs out is exit code 1 with a remedy", explained, ended)
    with found.attempt("two processes on a device"):
        place = ("--layer", "conv2", "--device", "cuda:0,cuda:0", "--run", "two")
        units = ("--model", "demo", "--batch-size", "8", "--units", "0-47")
        ended = cnnvis("optimize", *units, "--iterations", "16", *place)
        found.claim("two processes on one device", ended.code == 0, ended)
    with found.attempt("memory does not grow from layer to layer"):
        _memory(found)


def _lose_a_device(found: Findings) -> None:
    """Claim that another process goes on after a kernel's fault, whose reason is printed."""
    (ROOM / "losing.py").write_text(LOSING)
    (ROOM / "losing.toml").write_text(SETTINGS)
    mark = ROOM / "lost-before"
    mark.unlink(missing_ok=True)
    own = ("--model", "losing:network", "--trust-code", "--config", "losing.toml")
    pace = ("--layer", "conv2", "--units", "0-5", "--iterations", "8")
    place = ("--batch-size", "4", "--device", DEVICE, "--run", "lost")
    ended = cnnvis("optimize", *own, *pace, *place)
    found.claim("a command survives a device-side fault", ended.code == 0, ended)
    if GPU:
        found.claim("the fault was there", mark.exists())
        found.claim("its reason is on stderr", "device-side assert" in ended.err, ended.err)


def _memory(found: Findings) -> None:
    import torch

    held = []
    for alias in ("conv1", "conv2", "conv3", "conv5", "fc8", "conv2", "conv5", "fc8", "conv3"):
        place = stand(alias, 64)
        list(place.ascend(place.tasks(climbing("3", 4), 1)))
        del place
        held.append(torch.cuda.memory_reserved() >> 20)
    found.note("memory reserved, MiB, layer after layer", held)
    what = "memory does not grow from layer to layer"
    found.claim(what, held[-1] <= 1.2 * max(held[:5]), held)


SECTIONS: dict[str, Callable[[Findings], None]] = {
    "default": default,
    "bits": bits,
    "syncs": syncs,
    "pass": passes,
    "host": host,
    "topk": topk,
    "faults": faults,
}
