"""The image as a colour-decorrelated Fourier spectrum, as in Lucid and Olah et al. 2017.

"Feature Visualization", https://distill.pub/2017/feature-visualization, sections "Preconditioning
and Parameterization" and "Transformation Robustness"; tensorflow/lucid, optvis/param and
optvis/transform.py. All random numbers are drawn beforehand, from each ascent's own seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.ascent.regularizers import phase_of

if TYPE_CHECKING:
    from cnnvis_cli.ascent.styles import Style, Updater

COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of ImageNet's colour covariance: lucid/optvis/param/color.py."""

QUARTER = 0.25  # lucid/optvis/param/spatial.py, fft_image: "TODO: is that a magic constant?"
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as in TensorFlow and in Kingma & Ba 2015


@dataclass(frozen=True)
class FourierParameterization:
    """The image is the sigmoid of a spectrum, which Adam optimizes while the picture is jittered.

    Picture = 255 sigmoid(colour @ irfft2(spectrum * scale)) - mean, with the scale falling as
    1 / frequency^decay. The network is shown the picture rolled, zoomed and rotated by amounts
    drawn uniformly for each step and ascent; at every `every`-th step and at the last one it is
    shown the picture itself. The picture and the transforms are periodic: what leaves the canvas on
    one side comes in on the other.

    In each step the gradient is taken back through the transform to the picture and divided by its
    root mean square over the image (a zero gradient stays zero). To it is added r(x) - x for each
    of the style's regularizers r, where x is the picture in grey levels; r gets the gradient before
    the division. The sum goes back through the sigmoid, the colours and the irfft2 to the spectrum,
    where Adam makes a step along it. The style's step policy is not used.

    With `grain`, each moved picture is shown under normal noise: one image per ascent that each
    step rolls elsewhere, of a deviation drawn uniformly from 0 to `grain` grey levels. An ascent
    without a gradient then follows its grain, rolled anew every `every` steps, until it finds one.
    """

    rate: float = 0.05  # Adam's: lucid/optvis/render.py
    spread: float = 0.01  # deviation of the first spectrum: lucid's sd
    decay: float = 1.0  # lucid's decay_power
    jitter: float = 0.05  # largest share of the side; jitter(8), jitter(4) in lucid: 6 of 128
    scale: float = 0.1  # 0.9 to 1.1, as lucid's random_scale
    rotate: float = 10.0  # degrees either way, as lucid's random_rotate
    every: int = 16  # not in lucid, which shows the picture itself only at the end

    @property
    def grain(self) -> float:
        """Return the largest deviation of the grain, in grey levels."""
        return 0.0

    @property
    def scaled(self) -> bool:
        return False

    def statistics(self, canvas: tuple[int, int]) -> PictureStatistics:
        """Return what colours and spectrum the pictures begin with: lucid's."""
        colour = np.array(COLOUR)
        colour /= np.linalg.norm(colour, axis=0).max()  # as lucid's max_norm_svd_sqrt
        scale = frequency_scale(canvas, self.decay)[None]
        return PictureStatistics(scale, colour, np.zeros(3))

    def begin(
        self, style: Style, start: Tensor, mean: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Updater]:
        """Return the seeds' first pictures and their updater; of `start` only the size matters."""
        canvas = (start.shape[2], start.shape[3])
        drawn = [self._drawn(seed, style.iterations, canvas) for seed in seeds]
        spectra, moves, grain = (torch.stack(part).to(mean) for part in zip(*drawn, strict=True))
        model = PictureModel(canvas, self.statistics(canvas), mean)
        updater = FourierUpdater.begun(style, self, model, moves, grain, spectra)
        return updater.shown(0), updater

    def _drawn(
        self, seed: int, steps: int, canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return an ascent's first spectrum (3, h, w // 2 + 1, 2), all its moves, and its grain.

        The moves are (steps, 5), see `Motion.of`, or with grain (steps, 8): then they end with how
        far it is rolled down and right, and its deviation. Without grain it is (0,).
        """
        generator = torch.Generator().manual_seed(seed)
        h, w = canvas
        size = (3, h, w // 2 + 1, 2)
        spectrum = torch.randn(size, generator=generator, dtype=torch.float64) * self.spread
        u = torch.rand(steps, 4, generator=generator, dtype=torch.float64) * 2 - 1
        angle = torch.deg2rad(u[:, 3] * self.rotate)
        moves = (
            (u[:, 0] * self.jitter * h).round(),
            (u[:, 1] * self.jitter * w).round(),
            1 + u[:, 2] * self.scale,
            torch.tan(angle / 2),
            torch.sin(angle),
        )
        if not self.grain:
            return spectrum, torch.stack(moves, dim=1), torch.empty(0)
        grain = torch.randn(3, h, w, generator=generator, dtype=torch.float64)
        v = torch.rand(steps, 3, generator=generator, dtype=torch.float64)
        rolls = ((v[:, 0] * h).floor(), (v[:, 1] * w).floor(), v[:, 2] * self.grain)
        return spectrum, torch.stack(moves + rolls, dim=1), grain


class AdamSchedule(Protocol):
    """What steps of Adam take from a parameterization."""

    @property
    def rate(self) -> float: ...

    @property
    def every(self) -> int:
        """The steps from one that shows the picture itself to the next."""

    @property
    def scaled(self) -> bool:
        """Return whether the evaluation scales gradients, so that steps do not."""


class PictureStatistics(NamedTuple):
    """Colours and spectrum of the first pictures.

    scale : (1 or 3, h, w // 2 + 1) the height of each frequency, of all or each of the three
        uncorrelated colour components.
    colour : (3, 3) the map from these components (columns) to red, green and blue (rows).
    offset : (3,) added before the sigmoid, for red, green and blue.
    """

    scale: NDArray[np.float64]
    colour: NDArray[np.float64]
    offset: NDArray[np.float64]


class PictureModel:
    """Map spectra to pictures: scale each frequency, correlate the colours, apply the sigmoid."""

    def __init__(
        self, canvas: tuple[int, int], statistics: PictureStatistics, mean: Tensor
    ) -> None:
        self.canvas, self.mean = canvas, mean
        scale, colour, offset = (torch.from_numpy(part).to(mean) for part in statistics)
        self.scale, self.colour = scale[..., None], colour
        self.offset = offset[:, None, None] if bool(offset.any()) else None

    def __call__(self, spectra: Tensor) -> Tensor:
        """(N, 3, h, w // 2 + 1, real and imaginary) -> (N, 3, h, w) mean-subtracted grey levels."""
        scaled = torch.view_as_complex(spectra * self.scale)
        plain = irfft2(scaled, self.canvas)
        columns = self.colour.T[:, :, None, None]  # elementwise: matmul may use TF32
        first, second, third = (plain[:, k : k + 1] * columns[k] for k in range(3))
        mixed = first.add_(second).add_(third)
        return grey(mixed if self.offset is None else mixed.add_(self.offset), self.mean)

    def back(self, picture: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the spectra, given that to their picture.

        Written out, since a forked process must not use autograd. The adjoint of irfft2 is rfft2,
        in which each column stands for two frequencies, except the first and, if the width is even,
        the last.
        """
        bent = ((picture + self.mean - 127.5) / 127.5).square_()  # tanh squared; see `grey`
        slope = gradient * (1 - bent).mul_(63.75)
        h, w = self.canvas
        columns = self.colour.T[:, :, None, None]
        plain = torch.stack([(slope * column).sum(dim=1) for column in columns], dim=1)
        found = torch.view_as_real(rfft2(plain)) / (h * w)
        found[..., 1 : (w + 1) // 2, :] *= 2
        return found * self.scale


def irfft2(spectra: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return images (..., h, w) of spectra (..., h, w // 2 + 1).

    On a CPU by scipy: the last bits of torch's (MKL's) depend on the number of threads, those of
    scipy's only on the spectrum.
    """
    images: Tensor
    if spectra.device.type == "cpu":
        images = torch.from_numpy(scipy.fft.irfft2(spectra.numpy(), s=canvas))
    else:
        images = torch.fft.irfft2(spectra, s=canvas)
    return images


def rfft2(images: Tensor) -> Tensor:
    """Return spectra (..., h, w // 2 + 1) of images (..., h, w), computed as in `irfft2`."""
    spectra: Tensor
    if images.device.type == "cpu":
        spectra = torch.from_numpy(scipy.fft.rfft2(images.numpy()))
    else:
        spectra = torch.fft.rfft2(images)
    return spectra


def grey(x: Tensor, mean: Tensor) -> Tensor:
    """Return 255 sigmoid(x) - mean, with the same bits wherever an element lies.

    On a CPU torch.sigmoid computes the last few elements of a tensor in another way, so an image
    would depend on what shares its batch. torch.tanh does not: 1 + tanh(x / 2) is 2 sigmoid(x).
    """
    return torch.tanh(x / 2) * 127.5 + (127.5 - mean)


def frequency_scale(canvas: tuple[int, int], decay: float) -> NDArray[np.float64]:
    """Return the factor of each frequency, (h, w // 2 + 1): lucid's fft_image.

    For an odd width lucid takes one frequency too many and then crops; here it is exact.
    """
    h, w = canvas
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))  # cycles per pixel
    scale = np.maximum(frequency, 1 / max(h, w)) ** -decay
    found: NDArray[np.float64] = scale * np.sqrt(h * w) * QUARTER
    return found


@dataclass
class FourierUpdater:
    """Adam on the spectra of N ascents."""

    style: Style
    image: AdamSchedule
    model: PictureModel
    moves: Tensor  # (N, steps, 5 or 8): see `FourierParameterization`
    grain: Tensor  # (N, 3, h, w), or (N, 0) without it
    spectra: Tensor  # (N, 3, h, w // 2 + 1, 2)
    first: Tensor  # Adam's moments, of the same shape
    second: Tensor
    picture: Tensor  # (N, 3, h, w)
    step: Tensor  # (1,) the number of the present step
    rates: Tensor  # (steps, 2) Adam's: see `adam_rates`

    @classmethod
    def begun(
        cls,
        style: Style,
        image: AdamSchedule,
        model: PictureModel,
        moves: Tensor,
        grain: Tensor,
        spectra: Tensor,
    ) -> Self:
        """Return the updater of ascents that begin."""
        first, second = torch.zeros_like(spectra), torch.zeros_like(spectra)
        step = torch.zeros(1, dtype=torch.long, device=spectra.device)
        rates = adam_rates(image.rate, style.iterations).to(spectra)
        picture = model(spectra)
        moments = first, second
        return cls(style, image, model, moves, grain, spectra, *moments, picture, step, rates)

    @property
    def state(self) -> Sequence[Tensor]:
        moments = self.first, self.second
        return self.moves, self.grain, self.spectra, *moments, self.picture, self.step

    @property
    def wanders(self) -> bool:
        return self.grain.dim() == 4

    def phase(self, age: int) -> Hashable:
        return self.plain(age), self.plain(age + 1), phase_of(self.style.regularizers, age)

    def shown(self, age: int) -> Tensor:
        """Return the pictures as this step shows them."""
        shown = self.picture
        if not self.plain(age):
            shown = self.motion().forth(shown)
            if self.wanders:
                deviation = self.present()[:, 7]
                grain = self.rolled_grain(self.step)
                shown = shown.addcmul_(grain, deviation[:, None, None, None])
        return shown.contiguous(memory_format=torch.channels_last)

    @property
    def transparency(self) -> Tensor | None:
        return None

    def motion(self) -> Moves:
        """Return how this step moves the pictures."""
        return Motion.of(self.present()[:, :5], self.model.canvas)

    def present(self) -> Tensor:
        """Return the numbers of this step's moves: (N, 5 or 8)."""
        return self._moves(self.step)

    def rolled_grain(self, step: Tensor) -> Tensor:
        """Return the grain as a step (1,) has it, (N, 3, h, w), of deviation 1."""
        down, right = (column[:, None, None, None] for column in self._moves(step)[:, 5:7].T)
        return rolled(rolled(self.grain, down, 2), right, 3)

    def _moves(self, step: Tensor) -> Tensor:
        return self.moves.index_select(1, step)[:, 0]

    def plain(self, age: int) -> bool:
        return age % self.image.every == 0 or age == self.style.iterations - 1

    def advance(self, x: Tensor, value: Tensor, gradient: Tensor, age: int) -> Tensor:
        pull = self._pull(gradient.contiguous(), age)
        self._adam(self.uphill(pull))
        self.step += 1
        self.picture.copy_(self.model(self.spectra))
        return self.shown(age + 1)

    def _pull(self, gradient: Tensor, age: int) -> Tensor:
        """Return the direction for the picture's pixels: see `FourierParameterization`."""
        gradient = self.to_picture(gradient, age)
        pull = gradient if self.image.scaled else unit_rms(gradient)
        if self.wanders:
            lost = torch.linalg.vector_norm(gradient, float("inf"), dim=(1, 2, 3)) == 0
            began = self.step - self.step % self.image.every
            pull = torch.where(lost[:, None, None, None], self.rolled_grain(began), pull)
        for regularizer in self.style.regularizers:
            pull = pull + (regularizer(self.picture, gradient, age) - self.picture)
        return pull

    def to_picture(self, gradient: Tensor, age: int) -> Tensor:
        """Return the gradient with respect to the pictures, given that to what is shown."""
        return gradient if self.plain(age) else self.motion().back(gradient)

    def uphill(self, pull: Tensor) -> Tensor:
        """Return the gradient with respect to what Adam moves, given the pictures'."""
        return self.model.back(self.picture, pull)

    def _adam(self, uphill: Tensor) -> None:
        """Make a step upwards by algorithm 1 of Kingma & Ba 2015."""
        one, two = BETAS
        rate, scale = self.rates.index_select(0, self.step)[0].unbind()
        self.first.mul_(one).add_(uphill, alpha=1 - one)
        self.second.mul_(two).addcmul_(uphill, uphill, value=1 - two)
        spread = (self.second / scale).sqrt_().add_(EPSILON)
        self.spectra.add_((self.first / spread).mul_(rate))

    def keep(self, which: Sequence[int]) -> Updater:
        rows = torch.tensor(which, device=self.spectra.device)
        parts = ("moves", "grain", "spectra", "first", "second", "picture")
        kept = {name: getattr(self, name)[rows] for name in parts}
        return replace(self, **kept, step=self.step.clone())

    @property
    def progress(self) -> Sequence[Tensor]:
        return self.spectra, self.first, self.second, self.picture

    def resume(self, age: int) -> None:
        self.step.fill_(age)


def adam_rates(rate: float, steps: int) -> Tensor:
    """Return, for each step, Adam's rate and the divisor of its second moment: (steps, 2).

    Both correct for moments that begin with zeros (algorithm 1 of Kingma & Ba 2015).
    """
    counts = range(1, steps + 1)
    rows = [(rate / (1 - BETAS[0] ** count), 1 - BETAS[1] ** count) for count in counts]
    return torch.tensor(rows, dtype=torch.float64)


def unit_rms(gradient: Tensor) -> Tensor:
    """Return each image's gradient divided by its root mean square; a zero gradient stays zero.

    Summed in double precision, where small squares do not vanish and the order does not matter.
    """
    rms = gradient.double().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return gradient / torch.where(rms > 0, rms, 1).to(gradient)


class Moves(Protocol):
    """How one step shows the pictures of N ascents: a linear map, and its transpose."""

    def forth(self, picture: Tensor) -> Tensor: ...

    def back(self, gradient: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Motion:
    """How one step moves the pictures of N ascents: a linear map, and its transpose.

    A zoom about the centre, then a rotation about it as three shears (Paeth 1986, "A fast
    algorithm for general raster rotation"), of which the first two also roll the picture. All
    interpolation is periodic and linear. The transpose is exact and written out: that of a shear is
    the opposite shear, so nothing is scattered and CUDA gives the same bits each time.
    """

    rows: Tensor  # (N, 1, h, h)
    columns: Tensor  # (N, 1, w, w)
    along: Tensor  # (N, 1, h, 1): how far right the first shear moves each row, in pixels
    down: Tensor  # (N, 1, 1, w): how far down the second moves each column
    again: Tensor  # (N, 1, h, 1): the third, right

    @classmethod
    def of(cls, moves: Tensor, canvas: tuple[int, int]) -> Motion:
        """Make it from pixels down and right, the zoom, tan(angle / 2) and sin(angle): (N, 5).

        The angle is counter-clockwise as seen.
        """
        down, right, zoom, tan, sin = (column[:, None] for column in moves.unbind(1))
        h, w = canvas
        y, x = middle_distances(h, moves), middle_distances(w, moves)
        return cls(
            zoom_matrices(zoom, h)[:, None],
            zoom_matrices(zoom, w)[:, None],
            (right + tan * y)[:, None, :, None],
            (down - sin * x)[:, None, None, :],
            (tan * y)[:, None, :, None],
        )

    def forth(self, picture: Tensor) -> Tensor:
        """Return the pictures (N, 3, h, w) as they are shown."""
        zoomed = self.rows @ picture @ self.columns.mT
        sheared = shifted(shifted(zoomed, self.along, 3), self.down, 2)
        return shifted(sheared, self.again, 3)

    def back(self, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the pictures, given that to the shown ones."""
        sheared = shifted(shifted(gradient, -self.again, 3), -self.down, 2)
        return self.rows.mT @ shifted(sheared, -self.along, 3) @ self.columns


def middle_distances(size: int, like: Tensor) -> Tensor:
    """Return the pixels' distances from the middle of a side: (size,)."""
    return torch.arange(size, device=like.device).to(like) - (size - 1) / 2


def zoom_matrices(zoom: Tensor, size: int) -> Tensor:
    """Return the periodic linear interpolation that zooms a side: (N, 1) -> (N, n, n)."""
    place = middle_distances(size, zoom)
    apart = (place / zoom)[:, :, None] - place  # (N, to, from)
    apart = apart - size * (apart / size).round()  # the short way round
    return (1 - apart.abs()).clamp(min=0)


def shifted(x: Tensor, far: Tensor, dim: int) -> Tensor:
    """Return each line moved along `dim` by `far` pixels, periodic and linearly interpolated.

    Both neighbours are permutations of the line: a gather, and that rolled on by one.
    """
    whole = far.floor()
    near = rolled(x, whole, dim)
    return (near.roll(1, dim) - near).mul_(far - whole).add_(near)


def rolled(x: Tensor, far: Tensor, dim: int) -> Tensor:
    """Return each line moved along `dim` by `far` whole pixels, periodic."""
    size = x.shape[dim]
    shape = [1] * x.dim()
    shape[dim] = size
    here = torch.arange(size, device=x.device).view(shape)
    source = here - far.long().remainder(size)
    source = torch.where(source < 0, source + size, source)
    return x.gather(dim, source.expand_as(x))
