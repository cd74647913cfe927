"""A batch of stored places, projected back through the network to the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.network.backward import rectify
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer, Size, Unit
from cnnvis_cli.settings import ProjectPlan
from cnnvis_cli.stages.common.dataset_images import ReadImage
from cnnvis_cli.stages.project.batching import StoredPlaces
from cnnvis_cli.store.topk_file import LayerTopK, TopKFile, box_of

# Tolerance of a recomputed activation, relative to the largest of its layer, by the arithmetic of
# topk: TF32 keeps 10 binary places, bfloat16 7, and errors add up over layers.
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 0.1}


@dataclass(frozen=True, eq=False)
class BackwardPass:
    """The way back from a layer's stored places by one method."""

    network: Network
    layer: Layer
    method: str
    settings: ProjectPlan
    top: LayerTopK
    topk: Path  # the file, for the images' names

    def project(self, slots: StoredPlaces, whole: bool, read: ReadImage) -> NDArray[np.float32]:
        """Project a batch of places: (n, h, w, 3), 0 outside the image.

        Raise `CnnvisError` if the network does not reproduce the stored activations.
        """
        network, size = self.network, self.network.size
        windows = [Box.whole(size) if whole else box_of(box).clip(size) for box in slots.box]
        found = zip(slots.image.tolist(), windows, strict=True)
        crops = np.stack([read(image)[_inside(window)] for image, window in found])
        x = network.centre(torch.from_numpy(crops)).requires_grad_()
        with rectify(self.method, normalised=self.settings.lrn == "derivative"):
            output, origin = network.values(self.layer, windows[0], x)
        signal = self._signal(output.detach(), slots, origin, whole)
        (gradient,) = torch.autograd.grad(output, x, signal)
        pixels = gradient.permute(0, 2, 3, 1).cpu().numpy()
        if self.settings.start == "map":
            return np.array(pixels)
        boxes = list(map(box_of, slots.box))
        frames = np.zeros((len(slots), *boxes[0].tile(size).size, 3), np.float32)
        for frame, part, box, window in zip(frames, pixels, boxes, windows, strict=True):
            seen, tile = box.clip(size), box.tile(size)
            frame[_inside(seen.within(tile))] = part[_inside(seen.within(window))]
        return frames

    def _signal(self, output: Tensor, slots: StoredPlaces, origin: Size, whole: bool) -> Tensor:
        """Return the signal at the layer's output: (B, C, h, w), 0 but in each slot's channel."""
        places = slots.place if whole else slots.place[:1]
        rows, columns = np.broadcast_to(places - np.array(origin), (len(slots), 2)).T
        chosen = np.stack([np.arange(len(slots)), slots.channel, rows, columns])
        at = torch.from_numpy(chosen).to(output.device).unbind()
        index, channels = at[:2]
        self.compare(output[at].cpu().numpy(), slots)
        signal = torch.zeros_like(output)
        if self.settings.start == "map":  # Zeiler & Fergus 2013, section 2.1
            signal[index, channels] = output[index, channels].clamp(min=0)
        else:
            signal[at] = 1
        return signal

    def compare(self, value: NDArray[np.float32], slots: StoredPlaces) -> None:
        scale = float(np.nanmax(np.abs(self.top.places.activation)))
        allowed = TOLERANCE[self.top.precision] * scale
        wrong = ~(np.abs(value - slots.activation) <= allowed)  # NaN is wrong too
        if wrong.any():
            first = int(wrong.argmax())
            path = TopKFile(self.topk).images().name(int(slots.image[first]))
            unit = Unit(self.layer.alias, int(slots.channel[first]))
            raise CnnvisError(
                f"{path}: {unit} is {value[first]:.6g} there now and "
                f"{slots.activation[first]:.6g} in topk.h5; "
                "the image has changed, so run topk again in another --run"
            )


def _inside(box: Box) -> tuple[slice, slice]:
    return slice(box.top, box.bottom), slice(box.left, box.right)
