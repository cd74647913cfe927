"""A photograph in which what a unit answers to is accentuated: Hamblin et al. 2024.

"Feature Accentuation: Revealing 'What' Features Respond to in Natural Images", arXiv:2402.10039;
the authors' code is chrishamblin7/faccent, render.py and param.py. The ascent begins at the
photograph, written as a Fourier picture, and is held near it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from cnnvis_cli.ascent.fourier import (
    FourierParameterization,
    FourierUpdater,
    PictureModel,
    PictureStatistics,
)

if TYPE_CHECKING:
    from cnnvis_cli.ascent.styles import Style, Updater

DARKEST = 0.5  # grey levels from black and white: a sigmoid reaches neither


@dataclass(frozen=True)
class AccentParameterization(FourierParameterization):
    """A Fourier picture that begins as a photograph and stays near it.

    Where a step leaves the picture more than `apart` grey levels from the photograph (root mean
    square over the pixels), its spectrum goes back along the straight line to the photograph's, by
    the factor apart / distance. Moves and grain are those of the style natural. The authors bound
    the change of an earlier layer's activations instead, and choose layer and weight by eye.
    """

    rate: float = 0.02
    jitter: float = 0.1
    scale: float = 0.25
    rotate: float = 15.0
    noise: float = 20.0  # grey levels of the grain
    apart: float = 12.0  # grey levels

    @property
    def grain(self) -> float:
        return self.noise

    def begin(
        self, style: Style, start: Tensor, mean: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Updater]:
        """Return the photographs `start`, (N, 3, h, w) mean-subtracted, and their updater."""
        canvas = (start.shape[2], start.shape[3])
        statistics = self.statistics(canvas)
        drawn = [self._drawn(seed, style.iterations, canvas)[1:] for seed in seeds]
        moves, grain = (torch.stack(part).to(mean) for part in zip(*drawn, strict=True))
        photographs = start.double().cpu() + mean.double().cpu()
        spectra = torch.stack([spectrum_of(each, statistics) for each in photographs]).to(mean)
        model = PictureModel(canvas, statistics, mean)
        updater = AccentUpdater.begun(style, self, model, moves, grain, spectra)
        updater.apart = self.apart
        updater.origin, updater.photograph = spectra.clone(), updater.picture.clone()
        return updater.shown(0), updater


def spectrum_of(photograph: Tensor, statistics: PictureStatistics) -> Tensor:
    """Return the spectrum whose picture is a photograph, (3, h, w) in 0..255.

    Shape (3, h, w // 2 + 1, 2). It is found in double precision and for each photograph alone, so
    that it does not depend on the batch.
    """
    value = photograph.numpy().clip(DARKEST, 255 - DARKEST) / 255
    logit = np.log(value / (1 - value)) - statistics.offset[:, None, None]
    plain = np.einsum("ij,jhw->ihw", np.linalg.inv(statistics.colour), logit)
    spectrum = scipy.fft.rfft2(plain) / statistics.scale
    return torch.view_as_real(torch.from_numpy(spectrum))


@dataclass
class AccentUpdater(FourierUpdater):
    """Adam on the spectra of N ascents from photographs."""

    apart: float = 1.0  # see `AccentParameterization`
    origin: Tensor = field(default_factory=lambda: torch.empty(0))  # the photographs' spectra
    photograph: Tensor = field(default_factory=lambda: torch.empty(0))  # (N, 3, h, w)

    @property
    def state(self) -> Sequence[Tensor]:
        return *super().state, self.origin, self.photograph

    def _adam(self, uphill: Tensor) -> None:
        super()._adam(uphill)
        distance = (self.model(self.spectra) - self.photograph).double().square()
        distance = distance.mean(dim=(1, 2, 3)).sqrt()
        share = (self.apart / distance.clamp(min=self.apart)).to(self.spectra)
        share = share[:, None, None, None, None]
        self.spectra.copy_(self.origin + (self.spectra - self.origin) * share)

    def keep(self, which: Sequence[int]) -> Updater:
        rows = torch.tensor(which, device=self.spectra.device)
        kept = super().keep(which)
        assert isinstance(kept, AccentUpdater)
        return replace(kept, origin=self.origin[rows], photograph=self.photograph[rows])
