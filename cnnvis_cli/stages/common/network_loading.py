"""How a plan's network is loaded: whole, on a device, or only to be named."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnvis_cli.engine import choose_devices
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.guest import needed, told
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.ordinary import channels_taken, takes_grey
from cnnvis_cli.network.timm_models import preprocessing_of, told_by
from cnnvis_cli.network.weights import Say, build, fill, require_weights, say_if_untrained, silent
from cnnvis_cli.network.zoo import Blueprint, blueprint
from cnnvis_cli.nouns import Axis, Layer, Preprocessing, ReceptiveField
from cnnvis_cli.settings import Plan, PreprocessingPlan
from cnnvis_cli.stages.common.known_networks import known_survey
from cnnvis_cli.stages.common.preprocessing import check_doubts, preprocess
from cnnvis_cli.store.run import Record, Run
from cnnvis_cli.validation import read_settings


def load_network(plan: Plan, say: Say = silent) -> Network:
    """Return the plan's network on the CPU, with its trained weights.

    What is to be known about them, and about doubtful settings, is passed to `say`, a line at a
    time. Raise `UsageError` for a network, weights or preprocessing that do not go together.
    """
    choose_devices(plan.device)  # raises for one that is absent, before anything is loaded
    found = blueprint(plan.model, plan.trust_code, plan.weights)
    require_weights(found, plan.weights)
    built = build(found, say=say)
    preprocessing, grey = _settle(found, built, plan.preprocessing, say)
    module, digest = fill(found, built, plan.weights, plan.ema, say)
    if plan.weights is None and found.default_weights is None and say is not silent:
        say_if_untrained(found, module, say)
    classes = found.classes if _alike(module, built) else ()
    return _prepared(replace(found, classes=classes), module, preprocessing, grey, digest)


def _settle(
    found: Blueprint, module: nn.Module, asked: PreprocessingPlan, say: Say
) -> tuple[Preprocessing, bool]:
    """Return a network's preprocessing, and whether it takes images of one channel.

    A network of your own is tried on a black image, in which its lazy parts are made.
    """
    own, remarks = found.preprocessing, list(found.remarks)
    grey = own.grey
    if found.guest is not None:
        if known := told_by(module):
            own, remarks = preprocessing_of(known, f"{found.name}: pretrained_cfg")
            own = replace(own, grey=False)  # the network itself says what it takes
        size = preprocess(own, replace(asked, mean=None, std=None)).crop
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            grey = channels_taken(found.name, module, size, partial(_try_out, found)) == 1
    preprocessing = preprocess(own, asked, grey)
    for remark in remarks:
        say(remark)
    if grey and not own.grey and None in (asked.mean, asked.std):
        say(
            f"{found.name}: takes grey images, with mean {preprocessing.mean[0]:g} and std "
            f"{preprocessing.std[0]:g} unless mean and std under [preprocessing] say otherwise"
        )
    check_doubts(asked, preprocessing, say)
    return preprocessing, grey


def _try_out(found: Blueprint, module: nn.Module, image: Tensor) -> None:
    """Run an image through your network; raise `UsageError` with its file and line if it fails."""
    assert found.guest is not None
    try:
        with torch.no_grad(), found.guest.surroundings():
            module(image)
    except (CnnvisError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        height, width = image.shape[2:]
        start = f"{found.name}: cannot take an input of {height}x{width} pixels"
        if remedy := _remedy(module):
            raise UsageError(f"{start}: {remedy}") from error
        first = told(error).removeprefix("your code: ")
        typed = any(kind in first for kind in ("Half", "BFloat16", "Double"))
        then = "have it compute in float32" if typed else "set crop under [preprocessing]"
        raise UsageError(f"{start} ({first}); {then}") from error


def _remedy(module: nn.Module) -> str:
    """Return what to do about a network that takes no image; empty if its size may be wrong."""
    if more := needed(module.forward)[1:]:
        return (
            f"its forward needs {', '.join(more)} as well; have your function return a module "
            "whose forward takes the images alone"
        )
    if any(isinstance(child, (nn.Conv1d, nn.Conv3d)) for child in module.modules()):
        return "it takes sequences or volumes (Conv1d, Conv3d), where cnnvis has images"
    return ""


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have tensors of the same shapes."""
    return one is other or _shapes(one) == _shapes(other)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _prepared(
    found: Blueprint,
    module: nn.Module,
    preprocessing: Preprocessing,
    grey: bool,
    digest: str = "",
) -> Network:
    """Return a module ready for inspection; raise `UsageError` if it has nothing to inspect."""
    if grey:
        takes_grey(module)
    if not any(True for _ in module.parameters()):
        raise _nothing_to_show(found.name, module)
    look = partial(known_survey, found.name)
    network = Network.prepare(found.name, module, preprocessing, digest, found.classes, look)
    if not network.layers:
        raise _nothing_to_show(found.name, module)
    return network


def _nothing_to_show(name: str, module: nn.Module) -> UsageError:
    kinds = dict.fromkeys(type(m).__name__ for m in module.modules() if m is not module)
    return UsageError(
        f"{name}: has no convolution or fully connected layer to show, only "
        f"{', '.join(list(kinds)[:6]) or type(module).__name__}; cnnvis looks for nn.Conv2d "
        "and nn.Linear"
    )


def network_on(device: torch.device, plan: Plan, network: Network | None) -> Network:
    """For a worker process: the network on a device, which becomes the process's own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if network is not None:
        return network if network.device == device else network.to(device)
    return _loaded_once(replace(plan, device=str(device)), device)


_loaded: list[tuple[Plan, Network]] = []


def _loaded_once(plan: Plan, device: torch.device) -> Network:
    """A worker process goes on with the network that it has."""
    parts = ("model", "weights", "ema", "trust_code", "preprocessing", "device")
    if not _loaded or any(getattr(_loaded[0][0], p) != getattr(plan, p) for p in parts):
        _loaded[:] = [(plan, load_network(plan).to(device))]
    return _loaded[0][1]


def bare_network(plan: Plan, run: Run) -> Network:
    """The network that the run directory is of, without its module: to be named, not to be run."""
    record = run.read()
    known, digest = record.get("network"), str(record["weights_sha256"])
    if known is None or plan.model != record["model"]:
        return replace(outline(plan), digest=digest)
    try:
        layers, classes = tuple(map(_stored_layer, known["layers"])), tuple(known["classes"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{run.manifest}: its network is not as cnnvis writes it ({why}); remove that section, "
            "and give --weights"
        ) from None
    preprocessing = preprocess(Preprocessing(), plan.preprocessing)
    return Network(plan.model, nn.Module(), preprocessing, digest, classes, layers)


def outlined(network: Network) -> Record:
    """What run.json keeps of a network: enough to draw what was made with it."""
    layers = [plain(asdict(replace(layer, arrangement=None))) for layer in network.layers]
    return {"classes": list(network.classes), "layers": layers}


def _stored_layer(record: Record) -> Layer:
    fields = {name: _field(record[name]) for name in ("field", "narrow") if record.get(name)}
    return Layer(**{**record, "map": tuple(record["map"]), **fields})


def _field(record: Record) -> ReceptiveField:
    return ReceptiveField(*(Axis(**record[axis]) for axis in ("rows", "columns")))


def outline(plan: Plan, say: Say = silent) -> Network:
    """The plan's network without its weights: enough to list its layers.

    A file of weights is read, if it is there, for a network of known name: it says for how many
    classes the network is.
    """
    plan = planned_for(plan)
    found = blueprint(plan.model, plan.trust_code, plan.weights)
    if found.guest is None and plan.weights and Path(plan.weights).is_file():
        return replace(load_network(plan, say), digest="")
    if found.guest is None:
        try:
            with torch.device("meta"):  # costs nothing
                module = found.build()
            settled = _settle(found, module, plan.preprocessing, silent)
            network = _prepared(found, module, *settled)
        except (NotImplementedError, RuntimeError, TypeError, ValueError, CnnvisError):
            pass  # a builder that computes with its weights: it tells below what is wrong, if it is
        else:
            check_doubts(plan.preprocessing, network.preprocessing, say)
            return network
    module = build(found, say=say)
    return _prepared(found, module, *_settle(found, module, plan.preprocessing, say))


def planned_for(plan: Plan) -> Plan:
    """The plan with model, weights and preprocessing of its run directory where it leaves them."""
    record = Run(plan.folder).read()
    if not record and not plan.model:
        raise UsageError(f"{plan.folder}: holds no run; give --model")
    if plan.model not in ("", record.get("model")):
        return plan
    preprocessing = plan.preprocessing
    if preprocessing == PreprocessingPlan():
        preprocessing = read_settings(PreprocessingPlan, record["preprocessing"], "run.json")
    return replace(
        plan,
        model=str(record["model"]),
        weights=plan.weights or record.get("weights"),
        ema=plan.ema or record.get("ema") is True,
        preprocessing=preprocessing,
    )


def plain(value: Any) -> Any:
    """Tuples as lists, so that a value equals itself read back from JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def lasting(weights: str | None) -> str | None:
    """Where the weights are, also when seen from another folder."""
    return str(Path(weights).resolve()) if weights and Path(weights).is_file() else weights
