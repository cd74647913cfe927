"""Features of pictures from any network that cnnvis loads, to say how alike they look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnnvis_cli.arrays import Floats
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.perceptual import DREAMSIM, DREAMSIM_IMAGES, load_dreamsim
from cnnvis_cli.nouns import Layer, Preprocessing
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import Session

ENCODED_AT_ONCE = 32  # pictures


@dataclass(frozen=True)
class Encoder:
    """What makes features of pictures, (B, 3, h, w) in RGB and 0..255 to (B, F)."""

    words: str  # which features these are, for a person
    preprocessing: Preprocessing  # of the images that it takes
    device: torch.device
    encode: Callable[[Tensor], Tensor]
    from_mean: bool = True  # compared by what differs from the mean of the sample

    @classmethod
    def of(cls, session: Session) -> Encoder:
        """Return the encoder that the plan asks for.

        Raise `UsageError` for an unknown layer, or for DreamSim without its package or weights.
        """
        plan = session.plan.score
        if plan.encoder == DREAMSIM:
            if plan.encoder_layer:
                raise UsageError(f"--encoder-layer: {DREAMSIM} has features of its own")
            folder = Path(plan.encoder_weights) if plan.encoder_weights else None
            words, encode = load_dreamsim(folder, session.device)
            return cls(words, DREAMSIM_IMAGES, session.device, encode, from_mean=False)
        network = session.network
        if plan.encoder is not None:
            other = Plan(
                model=plan.encoder,
                weights=plan.encoder_weights,
                trust_code=session.plan.trust_code,
                device=session.plan.device,
            )
            network = load_network(other, session.report.once)
        network = network.to(session.device)
        name = plan.encoder_layer
        layer = network.layer(name) if name else network.layers[max(0, len(network.layers) - 2)]
        own = ", the network itself" if plan.encoder is None else ""
        words = f"{network.name} {layer.alias}{own}"
        return cls(words, network.preprocessing, session.device, _tapped(network, layer))

    def images(self, session: Session, indices: Sequence[int]) -> Floats:
        """Return the features of images of the dataset by their index: (n, F)."""
        read = image_reader(session, self.preprocessing)
        groups = in_groups(indices, ENCODED_AT_ONCE)

        def batches() -> Iterator[Tensor]:
            for group in session.report.track(
                groups, "encode", len(indices), "images", ENCODED_AT_ONCE
            ):
                pixels = torch.from_numpy(np.stack(list(map(read, group))))
                yield pixels.to(self.device).permute(0, 3, 1, 2).float()

        return self._features(batches())

    def pictures(self, pictures: Floats) -> Floats:
        """Return the features of pictures (n, h, w, 3) in 0..255, resized to the input: (n, F)."""

        def batches() -> Iterator[Tensor]:
            for first in range(0, len(pictures), ENCODED_AT_ONCE):
                some = torch.from_numpy(pictures[first : first + ENCODED_AT_ONCE])
                size, planes = self.preprocessing.crop, some.permute(0, 3, 1, 2)
                yield interpolate(planes, size, mode="bilinear", antialias=True).to(self.device)

        return self._features(batches())

    def _features(self, batches: Iterator[Tensor]) -> Floats:
        with torch.inference_mode():
            found = [self.encode(pixels).cpu() for pixels in batches]
        return np.asarray(torch.cat(found).numpy())


def _tapped(network: Network, layer: Layer) -> Callable[[Tensor], Tensor]:
    """Return a function from images to a layer's rectified outputs, averaged over places."""
    found: list[Tensor] = []

    def see(_: Layer, output: Tensor) -> None:
        maps = output.float().clamp(min=0)
        found.append(maps.flatten(2).mean(dim=2) if maps.dim() == 4 else maps)

    def encode(pixels: Tensor) -> Tensor:
        with network.tap([layer], see) as run:
            run(network.normalise(pixels - network.mean))
        return found.pop()

    return encode
