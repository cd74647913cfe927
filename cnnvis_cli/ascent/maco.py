"""Pictures of which only the phase is free: MACO, Fel et al. 2023.

"Unlocking Feature Visualization for Deep Networks with MAgnitude Constrained Optimization",
arXiv:2306.06805, section 4; the authors' code is serre-lab/Horama, maco_fv.py. Magnitudes, colours
and mean are those of the user's own images: see `ImageSpectrum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.ascent.fourier import (
    FourierUpdater,
    Moves,
    PictureModel,
    PictureStatistics,
    middle_distances,
)
from cnnvis_cli.ascent.natural import SMALL
from cnnvis_cli.ascent.spectrum import ImageSpectrum

if TYPE_CHECKING:
    from cnnvis_cli.ascent.styles import Style, Updater

SCATTER = 0.15  # deviation of a crop's middle, in sides: optimization_step of Horama


@dataclass(frozen=True)
class MacoParameterization:
    """The image is the sigmoid of a spectrum of fixed magnitudes, whose phases Adam optimizes.

    Picture = 255 sigmoid(offset + colour @ irfft2(magnitude exp(i phase))) - mean. Each step shows
    the network a crop, enlarged to the canvas, under noise; at every `every`-th step and at the
    last one it is shown the picture itself. Side and middle of the crop are drawn for each step
    and ascent. Picture and crops are periodic. The noise is uniform: one image per ascent that each
    step rolls elsewhere, of an amplitude drawn uniformly from 0 to `noise` grey levels.

    The gradient goes back as in `FourierParameterization`, to the phases at last. The absolute
    gradients by the picture are added up over the steps: where little comes together, the unit did
    not look.
    """

    spectrum: ImageSpectrum | None = field(default=None)
    rate: float = 0.1  # Adam's, in radians
    least: float = 0.5  # side of the smallest crop, in sides of the canvas
    most: float = 1.0
    noise: float = 20.0  # grey levels
    every: int = 16

    @property
    def scaled(self) -> bool:
        return False

    @property
    def record(self) -> dict[str, Any]:
        """Return the parameters as plain values, the spectrum by its digest."""
        spectrum = None if self.spectrum is None else self.spectrum.digest
        return {**asdict(replace(self, spectrum=None)), "spectrum": spectrum}

    def begin(
        self, style: Style, start: Tensor, mean: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Updater]:
        """Return the seeds' first pictures and their updater; of `start` only the size matters."""
        if self.spectrum is None:
            raise ValueError("maco has no spectrum")
        canvas = (start.shape[2], start.shape[3])
        drawn = [self._drawn_crops(seed, style.iterations, canvas) for seed in seeds]
        phases, moves, grain = (torch.stack(part).to(mean) for part in zip(*drawn, strict=True))
        statistics = PictureStatistics(
            self.spectrum.on(canvas),
            self.spectrum.colour.astype(np.float64),
            self.spectrum.offset.astype(np.float64),
        )
        model = PhaseModel(canvas, statistics, mean)
        updater = MacoUpdater.begun(style, self, model, moves, grain, phases)
        return updater.shown(0), updater

    def _drawn_crops(
        self, seed: int, steps: int, canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return an ascent's first phases (3, h, w // 2 + 1), its crops, and its noise.

        The crops are (steps, 8): the middle down and right of the canvas's, and the side, all in
        sides; two zeros; then how far the noise is rolled down and right, and its amplitude.
        """
        generator = torch.Generator().manual_seed(seed)
        h, w = canvas
        size = (3, h, w // 2 + 1)
        phases = (torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi
        middle = torch.randn(steps, 2, generator=generator, dtype=torch.float64) * SCATTER
        u = torch.rand(steps, 4, generator=generator, dtype=torch.float64)
        share = min(1.0, max(canvas) / SMALL)  # small canvases are cropped less
        side = 1 - share * (1 - self.least - (self.most - self.least) * u[:, 0])
        rolls = (u[:, 1] * h).floor(), (u[:, 2] * w).floor(), u[:, 3] * self.noise
        empty = torch.zeros(steps, 2, dtype=torch.float64)
        crops = torch.cat([middle * share, side[:, None], empty, torch.stack(rolls, dim=1)], dim=1)
        noise = torch.rand(3, h, w, generator=generator, dtype=torch.float64) * 2 - 1
        return odd(phases, w), crops, noise


def odd(phases: Tensor, width: int) -> Tensor:
    """Return phases (..., h, w // 2 + 1) with opposite ones at opposite frequencies.

    So it must be for the spectrum of a real picture with these magnitudes. Only the first column,
    and the last one of an even width, hold both of two opposite frequencies.
    """
    found = phases.clone()
    for column in (0, width // 2)[: 2 - width % 2]:
        line = phases[..., column]
        opposite = line.flip(-1).roll(1, -1)
        found[..., column] = (line - opposite) / 2
    return found


def circle(phases: Tensor) -> Tensor:
    """Return cos and sin of phases, (..., 2).

    On a CPU by numpy: the last bits of torch's depend on where an element lies in its tensor.
    """
    if phases.device.type != "cpu":
        return torch.stack([phases.cos(), phases.sin()], dim=-1)
    angles = phases.contiguous().numpy()
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=-1))


class PhaseModel(PictureModel):
    """Map phases (N, 3, h, w // 2 + 1) to pictures, by the magnitudes of the model."""

    def __call__(self, spectra: Tensor) -> Tensor:
        return super().__call__(circle(spectra))

    def uphill(self, phases: Tensor, picture: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the phases, given that to their picture."""
        real, imaginary = self.back(picture, gradient).unbind(-1)
        cos, sin = circle(phases).unbind(-1)
        return odd(imaginary * cos - real * sin, self.canvas[1])


@dataclass
class MacoUpdater(FourierUpdater):
    """Adam on the phases of N ascents, which `spectra` and its moments hold."""

    opacity: Tensor = field(default_factory=lambda: torch.empty(0))  # (N, h, w)

    def __post_init__(self) -> None:
        if not self.opacity.numel():
            self.opacity = torch.zeros_like(self.picture[:, 0])

    @property
    def state(self) -> Sequence[Tensor]:
        return *super().state, self.opacity

    @property
    def progress(self) -> Sequence[Tensor]:
        return *super().progress, self.opacity

    @property
    def transparency(self) -> Tensor | None:
        return self.opacity

    def motion(self) -> Moves:
        return Crop.of(self.present()[:, :3], self.model.canvas)

    def to_picture(self, gradient: Tensor, age: int) -> Tensor:
        found = super().to_picture(gradient, age)
        red, green, blue = found.abs().unbind(1)
        self.opacity.add_(red + green + blue)
        return found

    def uphill(self, pull: Tensor) -> Tensor:
        assert isinstance(self.model, PhaseModel)
        return self.model.uphill(self.spectra, self.picture, pull)

    def keep(self, which: Sequence[int]) -> Updater:
        rows = torch.tensor(which, device=self.spectra.device)
        kept = super().keep(which)
        assert isinstance(kept, MacoUpdater)
        return replace(kept, opacity=self.opacity[rows])


@dataclass(frozen=True)
class Crop:
    """Which crops one step shows of the pictures of N ascents: a linear map, and its transpose.

    All interpolation is periodic and linear.
    """

    rows: Tensor  # (N, 1, h, h)
    columns: Tensor  # (N, 1, w, w)

    @classmethod
    def of(cls, crops: Tensor, canvas: tuple[int, int]) -> Crop:
        """Make it from the middle down and right of the canvas's and the side, in sides: (N, 3)."""
        down, right, side = (column[:, None] for column in crops.unbind(1))
        h, w = canvas
        rows, columns = crop_matrices(down, side, h), crop_matrices(right, side, w)
        return cls(rows[:, None], columns[:, None])

    def forth(self, picture: Tensor) -> Tensor:
        """Return the crops of pictures (N, 3, h, w), as large as these."""
        return self.rows @ picture @ self.columns.mT

    def back(self, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the pictures, given that to the crops."""
        return self.rows.mT @ gradient @ self.columns


def crop_matrices(middle: Tensor, side: Tensor, size: int) -> Tensor:
    """Return the periodic linear interpolation of crops along a side: (N, 1) each -> (N, n, n)."""
    place = middle_distances(size, middle)
    apart = (middle * size + side * place)[:, :, None] - place  # (N, to, from)
    apart = apart - size * (apart / size).round()  # the short way round
    return (1 - apart.abs()).clamp(min=0)
