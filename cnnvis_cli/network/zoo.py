"""The networks by name: torchvision's, the papers', the bundled one, and your own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cnnvis_cli.demo.network import INPUT, DemoNet
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Interpolation, Preprocessing
from cnnvis_cli.registry import Registry, unknown


@dataclass(frozen=True)
class Blueprint:
    """A known network that is not yet built."""

    name: str
    build: Callable[[], nn.Module]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: tuple[str, ...] = ()
    default_weights: str | None = None  # used without -w
    torchvision_weights: Any = None  # the enum of the builder's trained weights
    bundled: Path | None = None  # the weights file that comes with the package


OWN: Registry[Callable[[], Blueprint]] = Registry("model")


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return torchvision's 1000 class names of ILSVRC 2012 in the usual order."""
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights.DEFAULT.meta["categories"])


@OWN.register("demo")
def demo() -> Blueprint:
    """Return the bundled network, trained on the synthetic images."""
    folder = Path(str(files("cnnvis_cli.demo")))
    classes = tuple(json.loads((folder / "demo.json").read_text())["classes"])
    return Blueprint(
        "demo",
        lambda: DemoNet(len(classes)),
        Preprocessing(resize=INPUT, crop=(INPUT, INPUT)),
        classes,
        default_weights="DEFAULT",
        bundled=folder / "demo.safetensors",
    )


class CaffeNet(nn.Module):
    """The network of Yosinski et al. 2015: AlexNet with normalisation after pooling.

    Jia et al. 2014 (BVLC reference CaffeNet): grouped convolutions, 227-pixel input, local
    response normalisation after pool1 and pool2. Layer names are Caffe's, so that a
    ``.caffemodel`` loads by name.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)  # Caffe rounds up
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout()

    def forward(self, images: Tensor) -> Tensor:
        """Compute class scores: (B, 3, 227, 227) -> (B, classes)."""
        x = self.norm(self.pool(self.relu(self.conv1(images))))
        x = self.norm(self.pool(self.relu(self.conv2(x))))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = torch.flatten(self.pool(self.relu(self.conv5(x))), 1)
        x = self.drop(self.relu(self.fc6(x)))
        return cast(Tensor, self.fc8(self.drop(self.relu(self.fc7(x)))))


@OWN.register("caffenet")
def caffenet() -> Blueprint:
    """Return the network of Yosinski et al. 2015; give its ``.caffemodel`` with -w."""
    ilsvrc_mean = (122.67891434, 116.66876762, 104.00698793)  # Caffe's ilsvrc12 mean, in RGB
    preprocessing = Preprocessing((256, 256), (227, 227), ilsvrc_mean, (1.0, 1.0, 1.0), bgr=True)
    return Blueprint("caffenet", CaffeNet, preprocessing, imagenet_classes())


class ZFNet(nn.Module):
    """The network of Zeiler & Fergus 2013, Fig. 3: a 7x7 stride 2 first layer.

    Contrast normalisation follows pool1 and pool2; the paddings are those that give the map
    sizes of the figure (110, 55, 26, 13, 13, 13, 6).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.pool = nn.MaxPool2d(3, 2)
        self.pool_padded = nn.MaxPool2d(3, 2, padding=1)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout()

    def forward(self, images: Tensor) -> Tensor:
        """Compute class scores: (B, 3, 224, 224) -> (B, classes)."""
        x = self.norm(self.pool_padded(self.relu(self.conv1(images))))
        x = self.norm(self.pool_padded(self.relu(self.conv2(x))))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = torch.flatten(self.pool(self.relu(self.conv5(x))), 1)
        x = self.drop(self.relu(self.fc6(x)))
        return cast(Tensor, self.fc8(self.drop(self.relu(self.fc7(x)))))


@OWN.register("zfnet")
def zfnet() -> Blueprint:
    """Return the network of Zeiler & Fergus 2013, trained on mean-subtracted RGB."""
    return Blueprint(
        "zfnet", ZFNet, replace(Preprocessing(), std=(1.0, 1.0, 1.0)), imagenet_classes()
    )


# Attributes that torchvision's builders set only when they load trained weights themselves.
_AS_TRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": True},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": True},
}


def _torchvision(name: str, chosen: str | None) -> Blueprint:
    """Return a classification model of torchvision, with its weights' own preprocessing.

    For a weights file it is that of the default weights.
    """
    from torchvision import models

    weights = models.get_model_weights(name)
    trained = weights[chosen if chosen in weights.__members__ else "DEFAULT"]
    transform = trained.transforms()
    settings = dict(_AS_TRAINED.get(name, {}))
    if name.startswith("vit_"):  # built for one input size
        settings["image_size"] = trained.meta["min_size"][0]
    interpolation = cast(Interpolation, transform.interpolation.value)
    preprocessing = Preprocessing(
        resize=int(transform.resize_size[0]),
        crop=(int(transform.crop_size[0]), int(transform.crop_size[-1])),
        mean=_grey_levels(transform.mean),
        std=_grey_levels(transform.std),
        interpolation=interpolation,
    )
    return Blueprint(
        name,
        lambda: models.get_model(name, weights=None, **settings),
        preprocessing,
        imagenet_classes(),
        default_weights="DEFAULT",
        torchvision_weights=weights,
    )


def _grey_levels(values: Any) -> tuple[float, float, float]:
    """Return channel values of the 0..1 range in 0..255 units."""
    red, green, blue = (round(float(v) * 255, 6) for v in values)
    return red, green, blue


def _custom(name: str) -> Blueprint:
    """Return your own network ``package.module:function``, also searched in the current folder."""
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--model {name}: cannot import it ({error})") from None
    finally:
        sys.path.pop(0)
    return Blueprint(name, build)


def blueprint(model: str, trust_code: bool = False, weights: str | None = None) -> Blueprint:
    """Return the network of this name, not yet built, as `weights` were trained.

    Raise `UsageError` for an unknown name (with the nearest one), or for your own code without
    `trust_code`.
    """
    if model in OWN:
        return OWN[model]()
    if ":" in model:
        if not trust_code:
            raise UsageError(f"--model {model} runs that code; add --trust-code if you trust it")
        return _custom(model)
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise unknown("model", model, [*OWN, *known])
    return _torchvision(model, weights)
