"""`cnnvis bench activations`: frames per second of a video, and of the bare forward pass."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.bench.topk import wait_for
from cnnvis_cli.dataset.video import FRAME_RATE, Video
from cnnvis_cli.demo.synthetic import CLASSES, draw
from cnnvis_cli.figure.film import Film
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import Session, open_session
from cnnvis_cli.stages.single.recorder import Outputs, Recorder
from cnnvis_cli.stages.single.video import VideoJob

SIZE = (240, 320)  # of the video: height, width
PIXELS_PER_FRAME = 2  # pixels that the picture moves per frame


@dataclass(frozen=True)
class ActivationsBench:
    """Frames per second, round by round."""

    about: dict[str, Any]
    forward: tuple[float, ...]
    reached: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The share of the same round's forward pass that `activations` reaches: the median."""
        pairs = zip(self.reached, self.forward, strict=True)
        return statistics.median(reached / bare for reached, bare in pairs)

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            **self.about,
            "forward": [round(rate, 2) for rate in self.forward],
            "activations": [round(rate, 2) for rate in self.reached],
            "ratio": round(self.ratio, 4),
        }

    def table(self) -> str:
        """Return the table as text."""
        lines = [", ".join(f"{key} {value}" for key, value in self.about.items()), ""]
        lines.append(f"{'':14}{'frames/s':>9}")
        lines.append(f"{'forward':14}{statistics.median(self.forward):9.1f}  whole network alone")
        reached = statistics.median(self.reached)
        lines.append(f"{'activations':14}{reached:9.1f}  decoding, network, drawing and encoding")
        lines.append(f"{'ratio':14}{self.ratio:9.3f}  within a round, the median")
        return "\n".join(lines)


def measure_activations(plan: Plan, report: Report, frames: int, rounds: int) -> ActivationsBench:
    """Film the layers of a drawn video, and run the network alone on as many frames, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moving.mp4"
        draw_video(path, frames)
        with open_session(replace(plan, run=f"{folder}/run"), report) as opened:
            session = opened.here()
            outputs = Outputs(session)
            reel = VideoJob(session, outputs, Video(path), "moving")
            _forward_speed(session, reel.size, frames)  # to warm up
            rates = []
            for _ in range(rounds):
                report.check_stop()
                rates.append((_forward_speed(session, reel.size, frames), _filmed(reel, frames)))
            about = {
                "model": session.network.name,
                "layers": " ".join(output.name for output in outputs.filmed),
                "device": str(session.network.device),
                "frames": frames,
                "size": f"{SIZE[1]}x{SIZE[0]}",
                "batch": reel.size,
                "torch": torch.__version__,
            }
    forward, reached = zip(*rates, strict=True)
    return ActivationsBench(about, forward, reached)


def _forward_speed(session: Session, size: int, frames: int) -> float:
    """Return the forward pass's frames per second, with frames decoded and batched beforehand."""
    network = session.network
    pixels = [np.full((*network.size, 3), 90, np.uint8)] * size
    with Recorder(network, (), size) as eye, network.in_place():
        start = time.perf_counter()
        for _ in range(0, frames, size):
            eye.see(pixels)
        wait_for(network.device)
        return -(-frames // size) * size / (time.perf_counter() - start)


def _filmed(reel: VideoJob, frames: int) -> float:
    start = time.perf_counter()
    reel.make()
    return frames / (time.perf_counter() - start)


def draw_video(path: Path, frames: int) -> None:
    """Make an MP4 file of a moving strip of drawn pictures."""
    height, width = SIZE
    with path.open("xb+") as file, Film(file, FRAME_RATE, "") as film:
        pictures = [np.asarray(draw(name, 0)) for name in CLASSES]
        strip = _enlarged(np.concatenate(pictures, axis=1), height)
        for number in range(frames):
            left = number * PIXELS_PER_FRAME % (strip.shape[1] - width)
            shot = np.ascontiguousarray(strip[:, left : left + width])
            film.add(shot, np.zeros((height, 0), np.uint8))


def _enlarged(picture: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) that is `height` pixels high."""
    rows = np.arange(height) * len(picture) // height
    columns = np.arange(round(picture.shape[1] * height / len(picture)))
    return picture[rows][:, columns * len(picture) // height]
