"""The networks by name: torchvision's, the papers', the bundled one, and your own."""

from __future__ import annotations

import json
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
from cnnvis_cli.light_imports import import_torchvision
from cnnvis_cli.network import timm_models
from cnnvis_cli.network.checkpoints import Tree
from cnnvis_cli.network.guest import Guest, functions_of
from cnnvis_cli.nouns import Interpolation, Preprocessing
from cnnvis_cli.registry import Registry, unknown


@dataclass(frozen=True)
class Blueprint:
    """A known network that is not yet built."""

    name: str
    build: Callable[[], Any]  # a network, unless it is your own code that builds it
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: tuple[str, ...] = ()
    default_weights: str | None = None  # used without -w
    torchvision_weights: Any = None  # the enum of the builder's trained weights
    bundled: Path | None = None  # the weights file that comes with the package
    build_for: Callable[[int], nn.Module] | None = None  # builds it for a number of classes
    fetch: Callable[[], Path] | None = None  # the file of its library's trained weights
    convert: Callable[[Tree], nn.Module | None] | None = None  # reads its authors' own names
    guest: Guest | None = None  # your own code, which builds it
    remarks: tuple[str, ...] = ()  # what is to be said of its preprocessing


OWN: Registry[Callable[[], Blueprint]] = Registry("model")


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return torchvision's 1000 class names of ILSVRC 2012 in the usual order."""
    models = import_torchvision("torchvision.models")
    return tuple(models.AlexNet_Weights.DEFAULT.meta["categories"])


@cache
def imagenet_names() -> dict[str, str]:
    """Return torchvision's name of each of ILSVRC 2012's 1000 WordNet ids."""
    text = (Path(str(files("cnnvis_cli.network"))) / "wordnet_ids.txt").read_text()
    ids = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(zip(ids, imagenet_classes(), strict=True))


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
        build_for=DemoNet,
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
    classes = imagenet_classes()
    return Blueprint("caffenet", CaffeNet, preprocessing, classes, build_for=CaffeNet)


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
    preprocessing = replace(Preprocessing(), std=(1.0, 1.0, 1.0))
    return Blueprint("zfnet", ZFNet, preprocessing, imagenet_classes(), build_for=ZFNet)


# Attributes that torchvision's builders set only when they load trained weights themselves.
_AS_TRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": True},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": True},
}


def _torchvision(name: str, chosen: str | None) -> Blueprint:
    """Return a classification model of torchvision, with its weights' own preprocessing.

    For a weights file it is that of the default weights.
    """
    models = import_torchvision("torchvision.models")
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
        build_for=lambda classes: models.get_model(
            name, weights=None, num_classes=classes, **settings
        ),
    )


def _grey_levels(values: Any) -> tuple[float, float, float]:
    """Return channel values of the 0..1 range in 0..255 units."""
    red, green, blue = (round(float(v) * 255, 6) for v in values)
    return red, green, blue


def _timm(model: str) -> Blueprint:
    """Return a network of timm, with the preprocessing of its configuration."""
    name = model.removeprefix(timm_models.PREFIX)
    known = timm_models.configuration(name)
    preprocessing, remarks = timm_models.preprocessing_of(known or _UNTRAINED, model)
    imagenet = known.get("num_classes", 1000) == 1000 and not known.get("label_names")
    return Blueprint(
        model,
        lambda: timm_models.build_timm(name),
        preprocessing,
        imagenet_classes() if imagenet else (),
        default_weights="DEFAULT",
        build_for=lambda classes: timm_models.build_timm(name, classes),
        fetch=lambda: timm_models.trained(name),
        convert=lambda tree: timm_models.converted(name, tree),
        remarks=tuple(remarks),
    )


_UNTRAINED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # ImageNet's


def _custom(name: str) -> Blueprint:
    """Return your own network ``package.module:function`` or ``file.py:function``."""
    guest = Guest(name)
    guest.find()
    return Blueprint(name, guest.build, guest=guest)


def blueprint(model: str, trust_code: bool = False, weights: str | None = None) -> Blueprint:
    """Return the network of this name, not yet built, as `weights` were trained.

    Raise `UsageError` for an unknown name (with the nearest one), or for your own code without
    `trust_code`.
    """
    if model in OWN:
        return OWN[model]()
    if model.startswith(timm_models.PREFIX):
        return _timm(model)
    if remedy := timm_models.advice(model):
        raise UsageError(f"there is no model {model!r}; {remedy}")
    if model.endswith(".py") and not Path(model).is_file():
        raise UsageError(f"--model {model}: there is no such file")
    if model.endswith(".py"):
        names = functions_of(Path(model))
        raise UsageError(
            f"--model {model}: which function builds the network? write {model}:"
            + (names[0] if len(names) == 1 else f"FUNCTION, one of {', '.join(names) or 'its own'}")
        )
    if ":" in model:
        if not trust_code:
            raise UsageError(f"--model {model} runs that code; add --trust-code if you trust it")
        return _custom(model)
    models = import_torchvision("torchvision.models")
    known = models.list_models(module=models)
    if model not in known:
        raise unknown("model", model, [*OWN, *known, *timm_models.names_like(model)])
    return _torchvision(model, weights)
