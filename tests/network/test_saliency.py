"""Saliency methods against slow twins, by hand or by Captum where it is right."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from captum.attr import GuidedBackprop, LayerGradCam, Saliency
from torch import Tensor, nn

from cnnvis_cli.demo.synthetic import draw
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.saliency import (
    METHODS,
    Question,
    Target,
    ask,
    check_way,
    count_classes,
    depends,
    enlarged,
    last_map,
    question_probabilities,
)
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Preprocessing

SIDE = 12
PREPROCESSING = Preprocessing(SIDE, (SIDE, SIDE), std=(50.0, 60.0, 70.0))
CLASSES = 6


class Functional(nn.Module):
    """Two convolutions with rectifiers that are functions, and a mean that is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 5, 3, padding=1)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = F.relu(self.second(x))
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


class ClassMaps(nn.Module):
    """Ends as SqueezeNet does: a rectified map for each class, and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))


class Branches(nn.Module):
    """A layer with normalisation, a shortcut, a rectifier and a neighbour behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.beside = nn.Conv2d(4, 2, 1)
        self.head = nn.Conv2d(6, 5, 3)
        self.last = nn.Linear(5, CLASSES)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        stem = F.relu(self.stem(x))
        joined = F.relu(self.norm(self.layer(stem)) + stem)
        self.seen = torch.cat([joined, self.beside(stem)], 1)
        return self.last(F.relu(self.head(self.seen)).mean((2, 3)))  # type: ignore[no-any-return]


def network(kind: type[nn.Module]) -> Network:
    torch.manual_seed(3)
    module = kind()
    return Network.prepare("small", module, PREPROCESSING)


def images(count: int = 3, size: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, size, size, generator=generator) * 60


def asked(of: Network, target: Target, x: Tensor, size: int = 4) -> Question:
    question = ask(of, target, x, size, tuple(range(len(x))))
    return replace(question, at=last_map(of, target))


def explain(name: str, question: Question) -> Tensor:
    return METHODS[name].explain(question)


@pytest.fixture(scope="module")
def functional() -> Network:
    return network(Functional)


@pytest.fixture(scope="module")
def demo() -> Network:
    from cnnvis_cli.network.weights import load

    plan = blueprint("demo")
    module, digest = load(plan, None)
    return Network.prepare("demo", module, plan.preprocessing, digest, plan.classes)


TARGETS = [Target(), Target(None, 2), Target(None, 0)]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_gradient_is_autograd_s(functional: Network, target: Target) -> None:
    x = images().requires_grad_()
    scores = functional.module(x / torch.tensor(PREPROCESSING.std)[:, None, None])
    chosen = scores.argmax(1) if target.channel is None else torch.full((3,), target.channel)
    (by_hand,) = torch.autograd.grad(scores[torch.arange(3), chosen].sum(), x)
    question = asked(functional, target, x)
    torch.testing.assert_close(explain("gradient", question), by_hand)
    torch.testing.assert_close(
        question.value(x, question.all), scores.gather(1, chosen[:, None])[:, 0]
    )


def back_by_hand(of: Network, x: Tensor, channel: int, guided: bool) -> Tensor:
    """Guided or deconvnet through the functional network, a transposed convolution at a time."""
    module = of.module
    assert isinstance(module, Functional)
    std = torch.tensor(PREPROCESSING.std)[:, None, None]
    one = module.first(x / std)
    two = module.second(one.clamp(min=0))
    signal = module.last.weight[channel][:, None, None] / (SIDE * SIDE) * torch.ones_like(two)
    signal = signal.clamp(min=0) * ((two > 0) if guided else 1)
    signal = F.conv_transpose2d(signal, module.second.weight, padding=1)
    signal = signal.clamp(min=0) * ((one > 0) if guided else 1)
    return F.conv_transpose2d(signal, module.first.weight, padding=1) / std


@pytest.mark.parametrize("method", ["guided", "deconv"])
def test_rules_hold_for_rectifiers_that_are_functions(functional: Network, method: str) -> None:
    x = images()
    found = explain(method, asked(functional, Target(None, 2), x))
    by_hand = back_by_hand(functional, x, 2, method == "guided")
    torch.testing.assert_close(found, by_hand)
    assert by_hand.any()


def test_captum_s_guided_gradient_misses_functions(functional: Network) -> None:
    """Why the rules are our own: theirs hooks modules, and silently gives a plain gradient."""
    x = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = functional.normalise(x).requires_grad_()
        theirs = GuidedBackprop(functional.module).attribute(inputs, target=2)
        plain = Saliency(functional.module).attribute(inputs, target=2, abs=False)
    torch.testing.assert_close(theirs, plain)
    ours = explain("guided", asked(functional, Target(None, 2), x))
    assert (ours * torch.tensor(PREPROCESSING.std)[:, None, None] - theirs).abs().max() > 0.1 * (
        theirs.abs().max()
    )


def test_grad_cam_of_a_mean_is_the_class_s_map(functional: Network) -> None:
    """Equations 1 and 2 by hand: the mean's gradient is the class's weight, everywhere alike."""
    x, module = images(), functional.module
    assert isinstance(module, Functional)
    inputs = x / torch.tensor(PREPROCESSING.std)[:, None, None]
    maps = module.second(module.first(inputs).clamp(min=0)).clamp(min=0)
    weights = module.last.weight[2][:, None, None] / (SIDE * SIDE)
    question = asked(functional, Target(None, 2), x)
    assert question.at == functional.layer("conv2")
    torch.testing.assert_close(
        explain("gradcam", question), (weights * maps).sum(1).clamp(min=0), rtol=1e-4, atol=1e-9
    )


def test_grad_cam_looks_at_what_the_next_layer_is_given() -> None:
    of = network(Branches)
    x = images()
    question = replace(ask(of, Target(None, 1), x, 3), at=of.layer("conv2"))
    module = of.module
    assert isinstance(module, Branches)
    with torch.enable_grad():
        value = question.value(x.requires_grad_(), question.all)
        (slopes,) = torch.autograd.grad(value.sum(), module.seen)
    seen = module.seen.detach()
    by_hand = (slopes.mean((2, 3), keepdim=True) * seen).sum(1).clamp(min=0)
    assert by_hand.any()
    torch.testing.assert_close(explain("gradcam", question), by_hand)


def test_grad_cam_is_captum_s_at_the_end_of_a_block() -> None:
    torch.manual_seed(1)
    module = blueprint("resnet18").build()
    of = Network.prepare("resnet18", module, Preprocessing(64, (64, 64)))
    x = images(2, 64)
    question = asked(of, Target(None, 7), x)
    assert question.at is not None
    assert question.at.module == "layer4.1.conv2"
    theirs = LayerGradCam(lambda y: module(of.normalise(y)), module.get_submodule("layer4.1"))
    expected = theirs.attribute(x, target=7, relu_attributions=True)[:, 0]
    torch.testing.assert_close(
        explain("gradcam", question), expected.detach(), rtol=1e-4, atol=1e-9
    )


def test_integrated_gradients_add_up_to_the_value(demo: Network) -> None:
    drawn = [torch.from_numpy(draw(name, 2_000_000)) for name in ("cat", "wheel")]
    x = demo.centre(torch.stack(drawn))
    question = ask(demo, Target(), x, 4)
    parts = explain("integrated", question).sum((1, 2, 3))
    with torch.no_grad():
        gained = question.value(x, question.all) - question.value(x * 0, question.all)
    assert gained.min() > 1
    torch.testing.assert_close(parts, gained, rtol=0.05, atol=0)


def test_a_network_without_rectifiers_is_explained_exactly() -> None:
    """A straight line: every gradient is the weights, and the parts add up but for rounding."""
    torch.manual_seed(2)
    linear = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 100, CLASSES))
    of = Network.prepare("linear", linear, PREPROCESSING)
    x = images()
    question = asked(of, Target(None, 1), x)
    slope = explain("gradient", question)
    for method in ("guided", "deconv", "smoothgrad"):
        torch.testing.assert_close(explain(method, question), slope)
    torch.testing.assert_close(explain("integrated", question), slope * x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [False, True])
def test_an_image_has_the_same_map_in_any_company(demo: Network, method: str, unit: bool) -> None:
    target = Target(demo.layer("conv3"), 9) if unit else Target()
    x = images(3, demo.size[0])
    together = explain(method, asked(demo, target, x, 3))
    assert together.isfinite().all()
    assert (together.flatten(1) != 0).any(1).all() or method == "gradcam"
    for i in (0, 2):
        alone = replace(asked(demo, target, x[i : i + 1], 3), seeds=(i,))
        assert torch.equal(explain(method, alone)[0], together[i])


@pytest.mark.parametrize("method", METHODS)
def test_another_batch_size_changes_only_rounding(demo: Network, method: str) -> None:
    x = images(1, demo.size[0])
    one, other = (explain(method, asked(demo, Target(None, 3), x, size)) for size in (1, 7))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_smoothgrad_follows_its_seed(demo: Network) -> None:
    question = asked(demo, Target(None, 3), images(1, demo.size[0]), 5)
    once = explain("smoothgrad", question)
    assert torch.equal(once, explain("smoothgrad", question))
    assert not torch.equal(once, explain("smoothgrad", replace(question, seeds=(1,))))
    noisy = explain("gradient", question)
    assert not torch.allclose(once, noisy)


def test_a_unit_is_asked_about_at_its_strongest_place(demo: Network) -> None:
    layer = demo.layer("conv2")
    x = images(2, demo.size[0])
    question = ask(demo, Target(layer, 5), x, 2)
    kept: list[Tensor] = []
    with demo.tap([layer], lambda _, output: kept.append(output)) as run, torch.no_grad():
        run(demo.normalise(x))
    maps = kept[0][:, 5].flatten(1)
    assert question.place.tolist() == maps.argmax(1).tolist()
    torch.testing.assert_close(question.value(x, question.all), maps.amax(1))
    box = layer.field.box(*divmod(int(question.place[0]), layer.map[1])).clip(demo.size)
    outside = explain("gradient", question)[0].clone()
    assert outside[:, box.top : box.bottom, box.left : box.right].any()
    outside[:, box.top : box.bottom, box.left : box.right] = 0
    assert not outside.any()


def test_a_deconvnet_starts_at_one_place_of_a_class_s_map() -> None:
    of = network(ClassMaps)
    x = images()
    by_class = explain("deconv", ask(of, Target(None, 2), x, 3))
    by_unit = explain("deconv", ask(of, Target(of.layer("conv2"), 2), x, 3))
    assert torch.equal(by_class, by_unit)
    assert by_class.any()


def test_the_last_map_is_one_that_the_target_is_computed_from() -> None:
    of = network(Branches)
    assert last_map(of, Target()).alias == "conv4"
    assert last_map(of, Target(of.layer("conv4"), 0)).alias == "conv3"
    assert last_map(of, Target(of.layer("conv3"), 0)).alias == "conv1"  # conv2 is beside it
    assert not depends(of, Target(of.layer("conv3"), 0), of.layer("conv2"))
    with pytest.raises(UsageError, match="Grad-CAM needs a layer"):
        last_map(of, Target(of.layer("conv1"), 0))


@pytest.mark.parametrize("method", ["guided", "deconv"])
def test_a_method_without_a_rule_is_refused_by_name(method: str) -> None:
    curved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(400, CLASSES))
    of = Network.prepare("curved", curved, PREPROCESSING)
    with pytest.raises(UsageError, match=rf"{method}.*silu.*gradcam"):
        check_way(of, Target(), method)
    check_way(of, Target(of.layer("conv1"), 0), method)
    check_way(of, Target(), "gradient")


def test_a_network_that_gives_no_classes_says_so() -> None:
    of = Network.prepare("maps", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), PREPROCESSING)
    assert count_classes(of) == 0
    with pytest.raises(UsageError, match="--target conv1/0000"):
        ask(of, Target(), images(), 3)
    assert explain("gradient", ask(of, Target(of.layer("conv1"), 1), images(), 3)).any()


def test_probabilities_are_of_all_classes(functional: Network) -> None:
    assert count_classes(functional) == CLASSES
    found = question_probabilities(ask(functional, Target(), images(), 5))
    assert found.shape == (3, CLASSES)
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_a_map_is_enlarged_without_new_extremes() -> None:
    maps = torch.rand(2, 3, 4)
    large = enlarged(maps, (30, 50))
    assert large.shape == (2, 30, 50)
    assert large.max() <= maps.max() + 1e-6
    assert large.min() >= maps.min() - 1e-6


@pytest.mark.parametrize(
    ("target", "name"),
    [(Target(), "predicted"), (Target(None, 13), "class0013")],
)
def test_targets_are_spelt_for_file_names(target: Target, name: str, demo: Network) -> None:
    assert str(target) == name
    assert str(Target(demo.layer("conv5"), 7)) == "conv5_0007"


def test_grad_cam_is_taken_below_a_classifier_of_maps() -> None:
    """A map of the class itself is no explanation: SqueezeNet's last convolution is its classes."""
    of = network(ClassMaps)
    assert last_map(of, Target()).alias == "conv1"
    assert last_map(of, Target(of.layers[-1], 3)).alias == "conv1"
