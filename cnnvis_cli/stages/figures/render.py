"""Figures as files: each is drawn once, and records what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cnnvis_cli.digests import digest
from cnnvis_cli.engine import Emit, TaskDone, WorkerSlot, available_memory, cores, run_tasks
from cnnvis_cli.figure.canvas import PRINT_DPI, Canvas, read_record
from cnnvis_cli.figure.latex import latex, read_latex_key
from cnnvis_cli.figure.sheets import room_of
from cnnvis_cli.figure.tone import TONE_RULES
from cnnvis_cli.nouns import Size
from cnnvis_cli.settings import FigurePlan
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record

PAGE_MEMORY = 1 << 29  # bytes for drawing one page, or a few units of a gallery


LEAST_SIDE = 64  # pixels of a picture's longer side, to which smaller ones are enlarged


def tile_scale(plan: FigurePlan, size: Size) -> float:
    """Return the plan's scale for pictures of a size: by default whole, and 1 for large ones."""
    return plan.scale or max(1, -(-LEAST_SIDE // max(*size, 1)))


@dataclass(frozen=True)
class Figure:
    """A future picture: its place under ``figures/``, what it shows, and how it is drawn."""

    kind: str
    name: str  # of the file, without its suffix
    title: str
    record: Record  # what decides its content, besides the plan's figure settings
    draw: Callable[[], Canvas]
    formats: tuple[str, ...] = ("png",)


def draw_figure(session: Session, figure: Figure) -> list[Path]:
    """Draw a figure's missing files, the PNG first."""
    record = _figure_record(session, figure)
    key = digest(record)
    paths = figure_files(session, figure)
    missing = [path for path in paths if figure_key(path) != key]
    if missing:
        canvas = figure.draw()
        if "png" in figure.formats:  # others are for a program
            canvas = _in_column(session, canvas)
        text = {"Title": figure.title, "Software": "cnnvis", "cnnvis": json.dumps(record)}
        for path in missing:
            content = _encoded_figure(canvas, path, text | {"cnnvis-key": key}, session)
            publish(path, content)
    for suffix in ("txt", "tex", "pdf"):  # of an earlier figure of this name
        stale = paths[0].with_suffix(f".{suffix}")
        if stale not in paths and stale.is_file() and figure_key(stale) not in (None, key):
            stale.unlink()
    return paths


def draw_figures(session: Session, figures: Sequence[Figure], tell: Callable[[Path], None]) -> None:
    """Draw the missing figures, several at a time; tell all files in order, each once it is there.

    Those behind a figure that takes long are told after it.
    """
    waiting = {number for number, f in enumerate(figures) if not is_there(session, f)}
    todo = sorted(waiting)
    meter = session.report.meter("drawing", len(todo), "figures")
    untold = 0

    def tell_drawn() -> None:
        nonlocal untold
        while untold < len(figures) and untold not in waiting:
            for path in figure_files(session, figures[untold]):
                tell(path)
            untold += 1

    def work(_: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
        for number in numbers:
            draw_figure(session, figures[todo[number]])
            emit(TaskDone(number))

    def on_event(message: object) -> None:
        session.report.check_stop()
        if isinstance(message, TaskDone):
            waiting.discard(todo[message.number])
            meter.add(1)
            tell_drawn()

    tell_drawn()
    if todo:
        run_tasks(work, drawing_slots(session, len(todo)), range(len(todo)), on_event)
        meter.end()


def figure_files(session: Session, figure: Figure) -> list[Path]:
    """Return the files of a figure: the PNG, on request the PDF, and for a paper the captions."""
    plan, also = session.plan.figure, tuple[str, ...]()
    if "png" in figure.formats:
        also = ("pdf", "txt", "tex") if plan.column else ("pdf",) if plan.pdf else ()
    name = session.run.figure(figure.kind, figure.name)
    return [name.with_name(f"{name.name}.{suffix}") for suffix in (*figure.formats, *also)]


def drawing_slots(session: Session, count: int) -> list[WorkerSlot]:
    """Return slots for drawing `count` figures, limited by cores, memory and workers."""
    workers = session.plan.workers
    most = min(cores() if workers is None else max(workers, 1), count)
    room = max(1, available_memory() // PAGE_MEMORY)
    return [WorkerSlot(torch.device("cpu"), 1, 0)] * min(most, room)


def is_there(session: Session, figure: Figure) -> bool:
    key = digest(_figure_record(session, figure))
    return all(figure_key(path) == key for path in figure_files(session, figure))


def _figure_record(session: Session, figure: Figure) -> Record:
    plan = session.plan.figure
    return {
        "kind": figure.kind,
        "model": session.network.name,
        "tone": TONE_RULES[plan.tone],
        "scale": plan.scale,
        "dpi": plan.dpi,
        **figure.record,
        **({"paper": asdict(plan.column)} if plan.column else {}),
    }


def _in_column(session: Session, canvas: Canvas) -> Canvas:
    """Return a figure in its column of a paper, if it is drawn for one."""
    column = session.plan.figure.column
    if column is None:
        return canvas
    room = room_of(column)
    return canvas.printed(room, column.width / room)


def _encoded_figure(canvas: Canvas, path: Path, text: dict[str, str], session: Session) -> bytes:
    suffix, name = path.suffix, path.name.removesuffix(path.suffix)
    dpi = session.plan.figure.dpi
    if session.plan.figure.column:
        dpi = dpi or PRINT_DPI
        if suffix == ".txt":
            return f"{canvas.caption}\n".encode()
        if suffix == ".tex":
            return latex(canvas.caption, name, canvas.size_in_print[0], text["cnnvis-key"]).encode()
    if suffix == ".pdf":
        from cnnvis_cli.figure.pdf import pdf

        return pdf(canvas, text, dpi)
    return canvas.jpeg(text) if suffix == ".jpg" else canvas.png(text, dpi)


def figure_key(path: Path) -> str | None:
    """Return the key in a figure's file; None if it is absent or damaged."""
    if path.suffix == ".pdf":
        from cnnvis_cli.figure.pdf import read_key

        return read_key(path)
    if path.suffix == ".txt":  # has nothing but the caption; the other says of what it is
        return figure_key(path.with_name(f"{path.stem}.tex")) if path.is_file() else None
    if path.suffix == ".tex":
        return read_latex_key(path)
    return read_record(path).get("cnnvis-key")
