"""Features of pictures from any network that cnnvis loads, to say how alike they look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnnvis_cli.arrays import Floats
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Layer
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import Session

ENCODED_AT_ONCE = 32  # pictures


@dataclass(frozen=True)
class Encoder:
    """A network and the layer whose rectified outputs, averaged over places, are the features."""

    network: Network
    layer: Layer
    is_own: bool  # the network that is being looked at

    @classmethod
    def of(cls, session: Session) -> Encoder:
        """Return the encoder that the plan asks for; raise `UsageError` for an unknown layer."""
        plan = session.plan.score
        network = session.network
        if plan.encoder is not None:
            other = Plan(
                model=plan.encoder,
                weights=plan.encoder_weights,
                trust_code=session.plan.trust_code,
                device=session.plan.device,
            )
            network = load_network(other, session.report.once)
        name = plan.encoder_layer
        layer = network.layer(name) if name else network.layers[max(0, len(network.layers) - 2)]
        return cls(network.to(session.device), layer, plan.encoder is None)

    @property
    def words(self) -> str:
        """Which features these are, for a person."""
        own = ", the network itself" if self.is_own else ""
        return f"{self.network.name} {self.layer.alias}{own}"

    def images(self, session: Session, indices: Sequence[int]) -> Floats:
        """Return the features of images of the dataset by their index: (n, F)."""
        read = image_reader(replace(session, network=self.network))
        groups = in_groups(indices, ENCODED_AT_ONCE)

        def batches() -> Iterator[Tensor]:
            for group in session.report.track(
                groups, "encode", len(indices), "images", ENCODED_AT_ONCE
            ):
                pixels = [torch.from_numpy(read(index).copy()) for index in group]
                yield self.network.centre(torch.stack(pixels))

        return self._features(batches())

    def pictures(self, pictures: Floats) -> Floats:
        """Return the features of pictures (n, h, w, 3) in 0..255, resized to the input: (n, F)."""
        mean = self.network.mean

        def batches() -> Iterator[Tensor]:
            for first in range(0, len(pictures), ENCODED_AT_ONCE):
                some = torch.from_numpy(pictures[first : first + ENCODED_AT_ONCE])
                size, planes = self.network.size, some.permute(0, 3, 1, 2)
                sized = interpolate(planes, size, mode="bilinear", antialias=True)
                yield sized.to(mean.device) - mean

        return self._features(batches())

    def _features(self, batches: Iterator[Tensor]) -> Floats:
        found: list[Tensor] = []

        def see(_: Layer, output: Tensor) -> None:
            maps = output.float().clamp(min=0)
            found.append((maps.flatten(2).mean(dim=2) if maps.dim() == 4 else maps).cpu())

        with torch.inference_mode(), self.network.tap([self.layer], see) as run:
            for pixels in batches:
                run(self.network.normalise(pixels))
        return np.asarray(torch.cat(found).numpy())
