"""The spectrum of the run's own images, for the styles that need it: measured at the first use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.ascent.maco import MacoParameterization
from cnnvis_cli.ascent.spectrum import ImageSpectrum, measured
from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.stages.common.dataset_images import gather
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.run import Record, differences
from cnnvis_cli.store.spectrum_file import SpectrumFile
from cnnvis_cli.store.topk_file import Images, TopKFile
from cnnvis_cli.store.typical_file import TypicalFile

SPECTRUM_IMAGES = 2000


def with_spectrum(session: Session, style: Style) -> Style:
    """Return the style with the spectrum of the run's images, if it needs one.

    Raise `UsageError` if the run has no top-k to take images from.
    """
    if not isinstance(style.image, MacoParameterization):
        return style
    return replace(style, image=replace(style.image, spectrum=run_spectrum(session)))


def run_spectrum(session: Session) -> ImageSpectrum:
    """Return the spectrum of the run's images; measure and publish it if it is not there yet."""
    file = SpectrumFile(session.run.spectrum)
    identity = topk_identity(session, "style maco takes its spectrum from")
    wanted = some_images(TopKFile(session.run.topk).images(), SPECTRUM_IMAGES)
    plan = spectrum_plan(session, identity, len(wanted))
    if not is_measured(session, file, plan, "style maco"):
        spectrum = measure(session, wanted)
        names = ("magnitude", "colour", "offset")
        file.publish(plan, {name: getattr(spectrum, name) for name in names}, spectrum.width)
    arrays, width = file.read()
    return ImageSpectrum(**arrays, width=width)


def topk_identity(session: Session, uses: str) -> Record:
    """Return the plan of the run's top-k; raise `UsageError`, naming who `uses` it, without one."""
    identity = TopKFile(session.run.topk).identity()
    if identity is None:
        raise UsageError(
            f"{uses} the run's images, and {session.run.path} has no topk.h5 yet; run cnnvis topk "
            "DATASET with this --run first, or choose --style natural"
        )
    return identity


def is_measured(
    session: Session, file: SpectrumFile | TypicalFile, plan: Record, style: str
) -> bool:
    """Return whether a file holds what `plan` measures.

    Raise `UsageError` if it was measured by another plan, or if there is no image to measure.
    """
    held = file.identity()
    if held is None and not plan["images"]:
        raise UsageError(f"{session.run.topk}: holds no image that could be used, for {style}")
    if held is not None and held != plan:
        raise UsageError(
            f"{file.path} was measured from other images: {differences(held, plan)}; move it away"
        )
    return held is not None


def spectrum_plan(session: Session, topk: Record, count: int) -> Record:
    """Return what decides a spectrum: the network's input, the dataset and the sample."""
    of_topk = {name: topk[name] for name in ("dataset", "decode")}
    return {**session.identity, **of_topk, "images": count}


def some_images(images: Images, most: int) -> NDArray[np.int64]:
    """Return the images to measure, ascending: those usable ones whose paths have least hashes."""
    usable = np.flatnonzero(~images.skipped)
    numbers = images.size[usable], images.offset[usable], images.label[usable]
    some = Manifest(Path(), images.path[usable], *numbers, ())
    return usable[some.sample(most)]


def measure(session: Session, wanted: NDArray[np.int64]) -> ImageSpectrum:
    """Return the spectrum of images of the run's top-k, by their indices."""
    read = gather(session, wanted)
    meter = session.report.meter("spectrum", 2 * len(wanted), "images")

    def step() -> None:
        session.report.check_stop()
        meter.add(1)

    found = measured(read, wanted.tolist(), step)
    meter.end()
    return found
