"""The spectrum of the run's images, and what pictures of the style maco keep beside them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cnnvis_cli.ascent.spectrum import ImageSpectrum, measured
from cnnvis_cli.stages.optimize.spectrum import SPECTRUM_IMAGES, some_images, spectrum_plan
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.spectrum_file import SpectrumFile
from cnnvis_cli.verify.dataset import DatasetToday
from cnnvis_cli.verify.findings import Findings, Unread, blocks_of

SPECTRA = "spectrum"
ROUNDED_OTHERWISE = 1e-4  # of the largest number: other processors round otherwise


def check_spectrum(photographs: DatasetToday, findings: Findings, most: int | None) -> None:
    """Check spectrum.h5 against topk.h5, and measure it again if it took up to `most` images."""
    session, file = photographs.session, SpectrumFile(photographs.session.run.spectrum)
    if not file.path.exists() or file.path in findings.bad:
        return
    wanted = some_images(photographs.images, SPECTRUM_IMAGES)
    plan = spectrum_plan(session, photographs.file.identity() or {}, len(wanted))
    apart = differences(file.identity() or {}, plan)
    findings.stored(SPECTRA, 1, [f"{file.path}: is of other images: {apart}"] if apart else [])
    if most is not None and len(wanted) > most:
        findings.leave(SPECTRA, 1, f"takes {len(wanted)} images; --all measures it again")
        return
    try:
        again = measured(photographs.read, wanted.tolist(), session.report.check_stop)
    except Unread:
        findings.leave(SPECTRA, 1, "an image of it cannot be read now")
        return
    held = _held_spectrum(file)
    pairs = (
        ("magnitude", held.magnitude, again.magnitude),
        ("colour", held.colour, again.colour),
        ("offset", held.offset, again.offset),
    )
    wrong = [
        f"{file.path}: its {name} is another one, measured again"
        for name, one, other in pairs
        if not np.allclose(one, other, rtol=0, atol=ROUNDED_OTHERWISE * float(np.abs(other).max()))
    ]
    findings.recomputed(SPECTRA, 1, wrong)


def _held_spectrum(file: SpectrumFile) -> ImageSpectrum:
    arrays, width = file.read()
    return ImageSpectrum(**arrays, width=width)


def maco_problems(run: Run, file: OptimizedFile, group: str, made: Record) -> Iterator[str]:
    """Yield what is wrong with a style that was made by a spectrum and keeps its gradients."""
    where, spectrum = f"{file.path}: style {group}", SpectrumFile(run.spectrum)
    if spectrum.identity() is None:
        yield f"{where}: its spectrum is gone; put {run.spectrum} back"
    elif _held_spectrum(spectrum).digest != made["image"].get("spectrum"):
        yield f"{where}: was made by another spectrum than {run.spectrum}"
    units = file.units(group)
    each = 4 * int(np.prod(made["canvas"])) * int(made["runs"])
    for rows in blocks_of(len(units), each):
        sums = file.read(group, "transparency", rows).astype(np.float32)
        largest = sums.max(axis=(2, 3))
        right = np.isfinite(sums).all(axis=(2, 3)) & (sums.min(axis=(2, 3)) >= 0)
        right &= (largest == 1) | (largest == 0)
        for row, each_run in np.argwhere(~right).tolist():
            unit = int(units[rows.start + row])
            yield f"{where}, unit {unit}, run {each_run}: its transparency is not within 0..1"
