"""Train the bundled network on generated images: `python -m cnnvis_cli.demo.training`.

Nothing is downloaded and no image is stored: the images are drawn from fixed seeds, start and order
follow from `--seed`, so the same machine, thread count and seed give the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialized
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from cnnvis_cli.demo.network import INPUT, DemoNet
from cnnvis_cli.demo.synthetic import CLASSES, draw

OUTPUT = Path(__file__).with_name("demo.safetensors")
HELD_OUT = 1_000_000  # images drawn from this seed on are not used in training
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision uses them
NOTHING: Mapping[int, Path] = {}
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    per_class: int = 600  # images of each class
    epochs: int = 8
    held_out: int = 50  # test images of each class
    batch: int = 64
    rate: float = 0.08  # the peak of the learning rate
    decay: float = 1e-3  # of the weights
    first_decay: float = 5e-3  # of the first filters: components that images do not need fade away
    dropout: float = 0.2
    smoothing: float = 0.05  # of the labels


@dataclass(frozen=True)
class DrawnImages:
    """Drawn images and their classes: (N, 3, INPUT, INPUT) uint8 and (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Drawn(Dataset[Tensor]):
    """The images of every class with seeds from `first` on, class by class."""

    def __init__(self, first: int, per_class: int) -> None:
        self.first, self.per_class = first, per_class

    def __len__(self) -> int:
        return len(CLASSES) * self.per_class

    def __getitem__(self, index: int) -> Tensor:
        label, offset = divmod(index, self.per_class)
        picture = draw(CLASSES[label], self.first + offset, INPUT)
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def drawn(first: int, per_class: int, threads: int = 0) -> DrawnImages:
    """Draw images of every class, in as many processes as threads (0: in this one)."""
    images = Drawn(first, per_class)
    batches = list(DataLoader(images, batch_size=100, num_workers=threads))
    return DrawnImages(torch.cat(batches), torch.arange(len(CLASSES)).repeat_interleave(per_class))


def prepared(pixels: Tensor) -> Tensor:
    """Return the network's input: (B, 3, H, W) of 0 to 255 -> normalised float32."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def varied(pixels: Tensor, dice: torch.Generator) -> Tensor:
    """Return augmented images: mirrored, moved, rotated, zoomed, in another light."""
    count = len(pixels)
    flip = torch.randint(0, 2, (count,), generator=dice) * 2.0 - 1
    angle = (torch.rand(count, generator=dice) - 0.5) * math.radians(20)
    zoom = 1 + (torch.rand(count, generator=dice) - 0.5) * 0.2
    move = (torch.rand(count, 2, generator=dice) - 0.5) * 0.2  # in half widths of the image
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    rows = (cos * flip, -sin, move[:, 0], sin * flip, cos, move[:, 1])
    maps = torch.stack(rows, 1).view(count, 2, 3)
    grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(
        pixels.float(), grid, padding_mode="reflection", align_corners=False
    )
    gain = 1 + (torch.rand(count, 3, 1, 1, generator=dice) - 0.5) * 0.3
    return (moved * gain).clamp(0, 255)


def with_norms(network: DemoNet, dropout: float) -> nn.Sequential:
    """Return the network with batch normalisation after every hidden layer, for training only."""
    modules: list[nn.Module] = []
    for module in (*network.features, nn.Flatten(), *network.classifier):
        modules.append(nn.Dropout(dropout) if isinstance(module, nn.Dropout) else module)
        if isinstance(module, nn.Conv2d):
            modules.append(nn.BatchNorm2d(module.out_channels))
        elif isinstance(module, nn.Linear) and module.out_features != len(CLASSES):
            modules.append(nn.BatchNorm1d(module.out_features))
    return nn.Sequential(*modules)


@torch.no_grad()
def fold(normed: nn.Sequential) -> None:
    """Fold each normalisation into the weights before it, and reset it to the identity."""
    for layer, norm in zip(normed, list(normed)[1:], strict=False):
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.bias is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
        norm.reset_parameters()
        norm.eps = 0.0


@torch.no_grad()
def soften(filters: Tensor, width: float = 1.2) -> None:
    """Blur random first filters, (C, 3, k, k), by `width` pixels, keeping their strength.

    Images are smooth, so training hardly changes the fine grain of a random start: it would stay
    visible in the trained filters.
    """
    ticks = torch.arange(filters.shape[-1])
    blur = torch.exp(-((ticks[:, None] - ticks) ** 2) / (2 * width**2))
    soft = blur @ filters @ blur
    filters.copy_(soft * (filters.std() / soft.std()))


def optimizer(normed: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return momentum descent; only weight matrices and filters decay."""
    first, *weights = (value for value in normed.parameters() if value.ndim > 1)
    others = [value for value in normed.parameters() if value.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": [first], "weight_decay": recipe.first_decay},
        {"params": weights},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, recipe.rate, 0.9, weight_decay=recipe.decay, nesterov=True)


def shuffled(
    images: DrawnImages, batch: int, dice: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one pass over the images in random order, in whole batches."""
    order = torch.randperm(len(images), generator=dice)
    for chosen in order[: len(order) // batch * batch].view(-1, batch):
        yield images.pixels[chosen], images.labels[chosen]


def train(
    network: DemoNet, images: DrawnImages, recipe: Recipe, keep: Mapping[int, Path] = NOTHING
) -> None:
    """Train the network in place; the learning rate rises briefly and falls to 0.

    The weights after some epochs, 0 being the start, are written where `keep` says.
    """
    normed = with_norms(network, recipe.dropout)
    descent = optimizer(normed, recipe)
    steps = len(images) // recipe.batch * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, recipe.rate, steps, pct_start=0.15)
    dice = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        keep_weights(network, normed, keep.get(epoch))
        total, hits = 0.0, 0
        for pixels, labels in shuffled(images, recipe.batch, dice):
            scores = normed(prepared(varied(pixels, dice)))
            loss = functional.cross_entropy(scores, labels, label_smoothing=recipe.smoothing)
            descent.zero_grad()
            torch.autograd.backward(loss)
            descent.step()
            schedule.step()
            total, hits = total + loss.item(), hits + int((scores.argmax(1) == labels).sum())
        mean, share = total * recipe.batch / len(images), hits / len(images)
        say(f"epoch {epoch + 1}/{recipe.epochs}: loss {mean:.3f}, right {share:.1%}")
    keep_weights(network, normed, keep.get(recipe.epochs))
    fold(normed.eval())


def keep_weights(network: DemoNet, normed: nn.Sequential, path: Path | None) -> None:
    """Write the weights as they are, with their norms folded in, if there is a path."""
    if path is not None:
        early, its_norms = copy.deepcopy((network, normed))
        fold(its_norms.eval())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(serialized(early.state_dict()))


@contextlib.contextmanager
def peaks(network: DemoNet) -> Iterator[dict[str, Tensor]]:
    """Record, during the block, the highest output of every unit before any ReLU."""
    found: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        highest = output.detach().transpose(0, 1).flatten(1).amax(1)  # (B, C, ...) -> (C,)
        found[name] = torch.maximum(found.get(name, highest), highest)

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with contextlib.ExitStack() as hooks:
        for name, layer in zip(LAYERS, layers, strict=True):
            hook = layer.register_forward_hook(lambda _m, _i, output, n=name: note(n, output))
            hooks.callback(hook.remove)
        yield found


@torch.no_grad()
def examined(network: DemoNet, images: DrawnImages) -> tuple[float, dict[str, float]]:
    """Return the share of correct images, and each layer's share of dead units."""
    network.eval()
    with peaks(network) as highest:
        guesses = [network(prepared(part)).argmax(1) for part in torch.split(images.pixels, 100)]
    accuracy = float((torch.cat(guesses) == images.labels).double().mean())
    dead = {name: float((peak <= 0).double().mean()) for name, peak in highest.items()}
    return accuracy, dead


def save(network: DemoNet, output: Path, facts: dict[str, object]) -> None:
    """Write weights and facts, atomically."""
    weights, about = output.with_suffix(".part"), output.with_suffix(".json.part")
    weights.write_bytes(serialized(network.state_dict()))
    about.write_text(json.dumps(facts, indent=2) + "\n")
    weights.replace(output)
    about.replace(output.with_suffix(".json"))


def say(text: str) -> None:
    """Print a line of progress on stderr, with the processor time used so far."""
    print(f"[{time.process_time():6.0f} s of processor time] {text}", file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    usual = Recipe()
    parser = argparse.ArgumentParser(description="Train the bundled demo network.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the weights; facts go beside")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument(
        "--threads", type=int, default=1, help="the bits of the result depend on it"
    )
    parser.add_argument("--images", type=int, default=usual.per_class, help="of each class")
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument(
        "--keep",
        type=int,
        nargs="*",
        default=[],
        help="epochs after which weights are kept as well, in OUTPUT-EPOCH.safetensors",
    )
    return parser.parse_args()


def main() -> None:
    """Draw the images, train, test on held-out images, and write weights and facts."""
    asked = parsed()
    recipe = Recipe(seed=asked.seed, per_class=asked.images, epochs=asked.epochs)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(asked.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(recipe.seed)
    images = drawn(0, recipe.per_class, asked.threads)
    say(f"{len(images)} images drawn")
    network = DemoNet(len(CLASSES))
    soften(next(network.parameters()))
    keep = {n: asked.output.with_name(f"{asked.output.stem}-{n}.safetensors") for n in asked.keep}
    train(network, images, recipe, keep)
    held_out = drawn(HELD_OUT, recipe.held_out, asked.threads)
    accuracy, dead = examined(network, held_out)
    say(f"right on {accuracy:.1%} of {len(held_out)} held-out images; dead units: {dead}")
    facts: dict[str, object] = {
        "classes": list(CLASSES),
        "accuracy": round(accuracy, 4),
        "dead": {name: round(share, 4) for name, share in dead.items()},
        "seed": recipe.seed,
        "images": len(images),
        "epochs": recipe.epochs,
        "held_out": len(held_out),
        "command": f"python -m cnnvis_cli.demo.training --seed {recipe.seed} "
        f"--threads {asked.threads} --images {recipe.per_class} --epochs {recipe.epochs}",
    }
    save(network, asked.output, facts)


if __name__ == "__main__":
    main()
