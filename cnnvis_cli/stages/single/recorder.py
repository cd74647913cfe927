"""The network's outputs for images, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.engine import steady
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.live import Guess
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.outputs import PROB, Output, choose_outputs, find_outputs, watching
from cnnvis_cli.nouns import Unit
from cnnvis_cli.stages.common.lists import names_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.single.inputs import class_name

TOP = 5  # classes that are named


@dataclass(frozen=True)
class Recorded:
    """A batch's outputs by name, (B, C, h, w) or (B, C) each, and its classes' probabilities."""

    values: dict[str, Floats]
    prob: Floats | None  # (B, classes)

    def of(self, slot: int) -> Recorded:
        """Return the outputs of one image: (C, h, w) or (C,), and (1, classes)."""
        values = {name: np.ascontiguousarray(each[slot]) for name, each in self.values.items()}
        return Recorded(values, None if self.prob is None else self.prob[slot : slot + 1])


class Recorder:
    """Runs the network on pixels and keeps some of its outputs."""

    def __init__(self, network: Network, outputs: Sequence[Output], size: int) -> None:
        self.network, self.outputs, self.size = network, tuple(outputs), size
        self._pass = local()  # several threads may run it at once
        self._watching = watching(network, outputs, self._keep)

    def __enter__(self) -> Recorder:
        self._run = self._watching.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watching.__exit__(*error)

    def _keep(self, output: Output, values: Tensor) -> None:
        """Copy an output at once: the rest of the network may work in place."""
        kept = values.detach().to("cpu", torch.float32, copy=True)
        self._pass.values[output.name] = kept.numpy()

    def see(self, pixels: Sequence[Pixels]) -> Recorded:
        """Return the outputs for up to `size` images (height, width, 3), padding with black.

        Values depend on the batch size in their last bits, so it is always the same.
        """
        batch = np.zeros((self.size, *self.network.size, 3), np.uint8)
        batch[: len(pixels)] = pixels
        self._pass.values = {}
        with torch.inference_mode(), steady(self.size):
            shown = self.network.normalise(self.network.centre(torch.from_numpy(batch)))
            prob = self._run(shown)
        used = {name: each[: len(pixels)] for name, each in self._pass.values.items()}
        return Recorded(used, None if prob is None else prob.cpu().numpy()[: len(pixels)])


@dataclass(frozen=True)
class Outputs:
    """The outputs of a session's network, and those that its plan selects."""

    session: Session

    @cached_property
    def all(self) -> tuple[Output, ...]:
        return find_outputs(self.session.network)

    @cached_property
    def shown(self) -> tuple[Output, ...]:
        """For images: the selected outputs; by default all usual ones, unless units are given."""
        plan = self.session.plan
        if plan.activations.unit and not plan.layer:
            return ()
        return choose_outputs(self.session.network, self.all, plan.layer)

    @cached_property
    def filmed(self) -> tuple[Output, ...]:
        """For videos: the selected outputs, or all convolutions and fully connected layers."""
        plan = self.session.plan
        names = plan.layer or [layer.alias for layer in self.session.network.layers]
        return choose_outputs(self.session.network, self.all, names)

    @cached_property
    def units(self) -> tuple[tuple[Output, int], ...]:
        """The selected single channels; raise `UsageError` for one without a map."""
        found = []
        for unit in map(Unit.parse, self.session.plan.activations.unit):
            output = choose_outputs(self.session.network, self.all, (unit.layer,))[0]
            if output.flat:
                raise UsageError(f"--unit {unit}: {output.name} has one value per unit, no map")
            if unit.channel >= output.channels:
                last = output.channels - 1
                raise UsageError(f"--unit {unit}: {output.name} has channels 0 to {last}")
            found.append((output, unit.channel))
        return tuple(found)

    @cached_property
    def needed(self) -> tuple[Output, ...]:
        """All outputs that are drawn or saved, in the network's order."""
        names = set(names_of(self.shown))
        names.update(output.name for output, _ in self.units)
        if self.session.plan.activations.save:
            names.add(PROB)
        return tuple(each for each in self.all if each.name in names)

    def label(self, output: Output, channel: int) -> str:
        """Return the number of a channel, and its class if there is one channel per class."""
        names = self.session.network.classes
        if output.name in self._of_classes and output.channels == len(names):
            return f"{channel} {names[channel]}"
        return str(channel)

    @cached_property
    def _of_classes(self) -> frozenset[str]:
        """The last layer and everything after it."""
        last = self.session.network.layers[-1].module
        begin = next(i for i, each in enumerate(self.all) if each.module == last)
        return frozenset(names_of(self.all[begin:]))


def guesses(network: Network, prob: NDArray[Any] | None, slot: int = 0) -> tuple[Guess, ...]:
    """Return the most probable classes of one image of a batch, the most probable first."""
    if prob is None:
        return ()
    order = np.argsort(-prob[slot], kind="stable")[:TOP].tolist()
    return tuple(Guess(class_name(network, i), float(prob[slot, i])) for i in order)


def title_of(network: Network, output: Output) -> str:
    """Return the network and output, with its module's path if that differs from its name."""
    same = output.name.partition("#")[0] == output.module
    path = f" ({output.module})" if output.module and not same else ""
    return f"{network.name} {output.name}{path}"
