"""What a prediction depends on: maps over an image for a class or a unit, by known methods.

All maps refer to mean-subtracted pixels in 0..255 units, RGB. Every pass has the same number of
images, padded with the mean colour, so an image's map does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.backward import NoRule, rectify, rectify_all
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.observe import observing
from cnnvis_cli.network.operations import ROLES, Role
from cnnvis_cli.network.probability import probabilities as class_probabilities
from cnnvis_cli.network.survey import mapped, reading_outputs
from cnnvis_cli.network.walk import JOINING, Call, tensors
from cnnvis_cli.nouns import Box, Layer, Unit
from cnnvis_cli.registry import Registry

Shown = Literal["signed", "magnitude", "map"]


@dataclass(frozen=True)
class Target:
    """What is explained: a class (an output of the network), or a unit of a layer.

    Without a channel it is the class that the network predicts for each image.
    """

    layer: Layer | None = None
    channel: int | None = None

    @property
    def spoken(self) -> str:
        """The target in words."""
        if self.layer is None or self.channel is None:
            return "the class"
        return str(Unit(self.layer.alias, self.channel))

    def __str__(self) -> str:
        """Return the target as in file names: ``predicted``, ``class0013``, ``conv5_0151``."""
        if self.channel is None:
            return "predicted"
        if self.layer is None:
            return f"class{self.channel:04d}"
        return str(Unit(self.layer.alias, self.channel)).replace("/", "_")


@dataclass(frozen=True, eq=False)
class Question:
    """One number per image of a batch, which the methods explain.

    For a class it is the network's own output (Simonyan et al. 2013, section 3); for a unit it is
    its layer's own output, at the strongest place in the unchanged image.
    """

    network: Network
    layer: Layer | None  # whose output it is; None: the network's
    images: Tensor  # (B, 3, h, w) mean-subtracted
    channel: Tensor  # (B,)
    place: Tensor  # (B,) in the flattened map; 0 for a class
    size: int  # images per pass
    seeds: tuple[int, ...]  # B seeds of random numbers
    at: Layer | None = None  # the layer whose map Grad-CAM weights

    @property
    def all(self) -> Tensor:
        return torch.arange(len(self.images), device=self.images.device)

    def value(self, x: Tensor, of: Tensor) -> Tensor:
        """Return the number for other pixels (n, 3, h, w) of the images `of` (n,): (n,)."""
        maps = outputs(self.network, self.layer, x, self.size)
        rows = torch.arange(len(x), device=x.device)
        return maps.flatten(2)[rows, self.channel[of], self.place[of]]


def ask(
    network: Network, target: Target, images: Tensor, size: int, seeds: tuple[int, ...] = ()
) -> Question:
    """Return the question of a target for images, (B, 3, h, w) mean-subtracted, `size` per pass."""
    with torch.no_grad():
        maps = outputs(network, target.layer, images, size).flatten(2)
    if target.channel is None:
        channel = maps[:, :, 0].argmax(1)
    else:
        channel = torch.full((len(images),), target.channel, device=maps.device)
    place = maps[torch.arange(len(images), device=maps.device), channel].argmax(1)
    return Question(network, target.layer, images, channel, place, size, seeds)


def outputs(network: Network, layer: Layer | None, x: Tensor, size: int) -> Tensor:
    """Return a layer's own output, or the network's (None), as maps: (n, C, rows, columns).

    Raise `UsageError` for a network whose output is not one number per class.
    """
    filled = torch.cat([x, x.new_zeros(max(0, size - len(x)), *x.shape[1:])])
    if layer is not None:
        return network.values(layer, Box.whole(network.size), filled)[0][: len(x)]
    found = network.module(network.normalise(filled))
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise UsageError(
            f"{network.name} does not give one number per class; ask about a unit, "
            f"like --target {Unit(network.layers[-1].alias, 0)}"
        )
    return found[: len(x), :, None, None]


@dataclass(frozen=True)
class Explainer:
    """A way to explain a value.

    Pixelwise maps are (B, 3, h, w) and `shown` signed, or by the largest of the three magnitudes;
    others are (B, rows, columns).
    """

    explain: Callable[[Question], Tensor]
    title: str
    shown: Shown
    says: str  # what it is, and its source
    parameters: dict[str, Any]


METHODS: Registry[Explainer] = Registry("saliency method")
Explain = Callable[[Question], Tensor]


def _method(
    name: str, title: str, shown: Shown, says: str, **parameters: Any
) -> Callable[[Explain], Explain]:
    """Register a function from a question to maps."""

    def keep(explain: Explain) -> Explain:
        METHODS.register(name)(Explainer(explain, title, shown, says, parameters))
        return explain

    return keep


@_method(
    "gradient",
    "gradient",
    "magnitude",
    "what the value gains with each grey level (Simonyan et al. 2013)",
)
def gradient(question: Question) -> Tensor:
    """Return the derivative of the value with respect to the pixels."""
    return _back(question, question.images, question.all)


@_method(
    "guided",
    "guided gradient",
    "signed",
    "the gradient through rectifiers that were on, its positive part alone at each "
    "(Springenberg et al. 2014)",
)
def guided(question: Question) -> Tensor:
    """Return the gradient by the rule of guided backpropagation."""
    return _back(question, question.images, question.all, "guided")


@_method(
    "deconv",
    "deconvnet",
    "signed",
    "one place's signal sent back, its positive part alone at each rectifier (Zeiler & Fergus "
    "2013)",
)
def deconv(question: Question) -> Tensor:
    """Return the gradient by the deconvnet's rule, from a single activation as in section 2.1."""
    return _back(_at_one_place(question), question.images, question.all, "deconv")


def _at_one_place(question: Question) -> Question:
    """Return the question of a class at its strongest place, if it is the mean over a map.

    From all places at once, a deconvnet gives nothing: its rule passes the signal where the forward
    value was 0, and in a flat signal the weights cancel (SqueezeNet).
    """
    network, last = question.network, question.network.layers[-1]
    if question.layer is not None or last.kind != "conv" or last.calls > 1:
        return question
    with torch.no_grad():
        maps = outputs(network, last, question.images, question.size).flatten(2)
        classes = outputs(network, None, question.images, question.size).shape[1]
    if maps.shape[1] != classes:  # otherwise nothing with its own weights follows
        return question
    return replace(question, layer=last, place=maps[question.all, question.channel].argmax(1))


@_method(
    "gradcam",
    "Grad-CAM",
    "map",
    "the layer's channels, each weighed by its mean gradient, summed, its positive part "
    "(Selvaraju et al. 2017), enlarged to the input",
)
def gradcam(question: Question) -> Tensor:
    """Return where a layer supports the value: (B, rows, columns).

    Equations 1 and 2 of the paper, on the layer's map as the next layer receives it: after the
    rectifiers, normalisation and branches that follow.
    """
    assert question.at is not None
    x = question.images.detach().requires_grad_()
    with _following(question.network, question.at) as followed:
        value = question.value(x, question.all)
    (slopes,) = torch.autograd.grad(value.sum(), followed.map)
    gradients, maps = (_as_map(question.at, found) for found in (slopes, followed.map.detach()))
    weighed = gradients.mean((2, 3), keepdim=True) * maps
    return weighed.sum(1).clamp(min=0)[: len(x)]


def _as_map(layer: Layer, found: Tensor) -> Tensor:
    """Return what lies as a layer's output does as a map: (B, C, rows, columns)."""
    return found if layer.arrangement is None else mapped(found, layer.arrangement, layer.map)


SAMPLES, SPREAD = 50, 0.15  # Smilkov et al. 2017, section 3.1: 50 samples, noise of 10 to 20 %


@_method(
    "smoothgrad",
    "SmoothGrad",
    "magnitude",
    f"the mean gradient of {SAMPLES} copies with noise, its deviation {SPREAD:.0%} of the image's "
    "range (Smilkov et al. 2017)",
    samples=SAMPLES,
    spread=SPREAD,
)
def smoothgrad(question: Question) -> Tensor:
    """Return the mean gradient over noisy copies of the image.

    Libraries draw the noise of a whole batch from the device's one generator, so that an image's
    map would depend on its neighbours.
    """
    return torch.stack([_smooth(question, i) for i in range(len(question.images))])


def _smooth(question: Question, number: int) -> Tensor:
    """Return one image's map, with noise drawn on the CPU from its own seed: (3, h, w)."""
    image = question.images[number]
    deviation = SPREAD * (image.max() - image.min())
    generator = torch.Generator().manual_seed(question.seeds[number])
    total = torch.zeros_like(image)
    for first in range(0, SAMPLES, question.size):
        count = min(question.size, SAMPLES - first)
        drawn = [torch.randn(image.shape, generator=generator) for _ in range(count)]
        noise = torch.stack(drawn).to(image.device)
        of = question.all[number].expand(count)
        total += _back(question, image + deviation * noise, of).sum(0)
    return total / SAMPLES


PATH_STEPS = 50  # Sundararajan et al. 2017, section 5: 20 to 300 suffice


@_method(
    "integrated",
    "integrated gradients",
    "magnitude",
    f"parts of the value, from the mean colour to the image in {PATH_STEPS} steps "
    "(Sundararajan et al. 2017)",
    steps=PATH_STEPS,
    baseline="mean colour",
)
def integrated(question: Question) -> Tensor:
    """Return the gradient integrated along the path from the mean colour, times the difference.

    The parts of an image add up to its value minus the mean colour's, up to the step size.
    """
    return torch.stack([_integrate(question, i) for i in range(len(question.images))])


def _integrate(question: Question, number: int) -> Tensor:
    """Return one image's map: (3, h, w)."""
    from captum.attr import IntegratedGradients

    def value(x: Tensor) -> Tensor:
        return question.value(x, question.all[number].expand(len(x)))

    image = question.images[number : number + 1].detach().requires_grad_()
    rule = IntegratedGradients(value)
    parts: Tensor = rule.attribute(image, n_steps=PATH_STEPS, internal_batch_size=question.size)
    return parts[0].detach().to(image.dtype)


def _back(question: Question, x: Tensor, of: Tensor, rule: str = "gradient") -> Tensor:
    """Return the gradient with respect to pixels x, instead of the images `of`: (n, 3, h, w)."""
    x = x.detach().requires_grad_()
    with rectify(rule):
        value = question.value(x, of)
    (found,) = torch.autograd.grad(value.sum(), x)
    return found


_PLACEWISE = (Role.POINTWISE, Role.RECTIFIER, Role.CURVED, Role.STATISTIC)


class _Followed:
    """Follows a map through operations on single places.

    `map` is the last state: any other use, by a convolution or a pooling, ends it. The channels of
    a map are its dimension `channel`.
    """

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.states: list[Tensor] = []
        self.over = False

    @property
    def map(self) -> Tensor:
        return self.states[-1]

    def begin(self, output: Tensor) -> None:
        self.states, self.over = [output], False

    def note(self, func: Call, args: Any, kwargs: Any, out: Any) -> None:
        """Record a function's call."""
        if self.states and not self.over and isinstance(out, Tensor) and self._uses(args, kwargs):
            if self._keeps_places(func, args, out):
                self.states.append(out)
            else:
                self.over = True

    def _keeps_places(self, func: Call, args: Any, out: Tensor) -> bool:
        """Return whether a result lies as the map does, each place made of the same place."""
        placewise = ROLES.get(func) in _PLACEWISE
        if self.channel == 1:
            return (placewise or func in JOINING) and out.shape[2:] == self.map.shape[2:]
        return (placewise or func is F.layer_norm) and out.shape[:-1] == self.map.shape[:-1]

    def _uses(self, args: Any, kwargs: Any) -> bool:
        given = tensors([args, kwargs])
        return any(tensor is state for tensor in given for state in self.states)


@contextmanager
def _following(network: Network, layer: Layer) -> Iterator[_Followed]:
    """Follow a layer's output through the forward passes of this block."""
    followed = _Followed(layer.arrangement.channel if layer.arrangement else 1)

    def begin(_layer: Layer, output: Any) -> None:
        followed.begin(next(tensors(output)))

    with observing(followed.note), reading_outputs(network.module, [layer], begin):
        yield followed


def last_map(network: Network, target: Target) -> Layer:
    """Return the last convolution that a target depends on; raise `UsageError` if there is none.

    A classifier that is itself a convolution has a map per class, which Grad-CAM would only repeat:
    for a class, the network's last layer is taken if there is no other.
    """
    below = network.layers if target.layer else (network.layers[-1], *network.layers[:-1])
    for layer in reversed(below):
        if layer.kind != "fc" and max(layer.map) > 1 and depends(network, target, layer):
            return layer
    raise UsageError(
        f"{network.name}: Grad-CAM needs a layer with a map before {target.spoken}, and there is "
        "none; choose another --method or --target"
    )


def depends(network: Network, target: Target, layer: Layer) -> bool:
    """Return whether a target is computed from a layer that has one value per place."""
    if layer == target.layer or layer.calls > 1:
        return False
    question = _blank(network, target)
    x = question.images.requires_grad_()
    with _following(network, layer) as followed:
        value = question.value(x, question.all)
    if not followed.states:
        return False
    (found,) = torch.autograd.grad(value.sum(), followed.map, allow_unused=True)
    if found is None or layer.kind != "token":
        return found is not None
    # After the last attention only the class token counts; before it, a map is what blocks add to.
    return len(followed.states) > 1 and bool(_as_map(layer, found).any())


def check_way(network: Network, target: Target, method: str) -> None:
    """Raise `UsageError` if a method has no rule for a function before the target."""
    question = _blank(network, target)
    try:
        with rectify_all(method) as check:
            check(question.value(question.images.requires_grad_(), question.all))
    except NoRule as error:
        raise UsageError(
            f"{network.name}: {method} cannot go back from {target.spoken}: {error.function} is on "
            "the way, and the method has a rule for max(x, 0) only; choose another --method, such "
            "as gradient or gradcam"
        ) from None


def _blank(network: Network, target: Target) -> Question:
    """Return the question for one image of the mean colour."""
    return ask(network, target, torch.zeros(1, 3, *network.size, device=network.device), 1)


def count_classes(network: Network) -> int:
    """Return the network's number of classes; 0 if its output is something else."""
    blank = torch.zeros(1, 3, *network.size, device=network.device)
    with torch.no_grad():
        found = network.module(network.normalise(blank))
    return int(found.shape[1]) if isinstance(found, Tensor) and found.dim() == 2 else 0


def question_probabilities(question: Question) -> Tensor:
    """Return the probability of each class: (B, classes)."""
    with torch.no_grad():
        scores = outputs(question.network, None, question.images, question.size)
    return class_probabilities(question.network, scores[:, :, 0, 0])


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, rows, columns) at the input's size, bilinear as in the Grad-CAM paper."""
    large = F.interpolate(maps[:, None].cpu(), size, mode="bilinear", align_corners=False)
    return large[:, 0]
