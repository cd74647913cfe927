"""Any module as an ordinary one: unwrapped, on the CPU, in float32, with its lazy parts made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.observe import in_evaluation
from cnnvis_cli.nouns import Size

_WRAPPERS = {  # classes that hold the network itself, and under which name
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
_BUILD = "docs/tutorial.md shows how to make a network in Python of it"
_PLAIN = "give the network as it was before that"


def ordinary(name: str, found: Any) -> nn.Module:
    """Return what a builder gave as a plain module of float32 numbers on the CPU.

    Raise `UsageError` for what is no network, or one whose layers cannot be watched.
    """
    module = _unwrapped(found)
    if not isinstance(module, nn.Module):
        raise UsageError(f"--model {name}: returned {_described(module)}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"--model {name}: is TorchScript, whose layers cannot be watched; build the network in "
            "Python, and give its weights: torch.save(scripted.state_dict(), 'weights.pth')"
        )
    _refuse_quantized(name, module)
    _refuse_parameters(name, module)
    with suppress(ValueError):  # one that is not initialised has no numbers to change
        module.to("cpu")
    for parameter in _floating(module):
        if parameter.dtype != torch.float32:
            module.float()
            break
    return _out_of_inference(module)


def _unwrapped(found: Any) -> Any:
    """Return the network inside of what torch wraps around one, also around its parts."""
    while (inner := _WRAPPERS.get(type(found).__name__)) and hasattr(found, inner):
        found = getattr(found, inner)
    if not isinstance(found, nn.Module) or isinstance(found, torch.jit.ScriptModule):
        return found
    for module in list(found.modules()):
        module._compiled_call_impl = None  # module.compile() leaves it
        for key, child in list(module.named_children()):
            plain = child
            while (inner := _WRAPPERS.get(type(plain).__name__)) and hasattr(plain, inner):
                plain = getattr(plain, inner)
            if plain is not child:
                setattr(module, key, plain)
    return found


def _described(found: Any) -> str:
    """Return what something that is no network is, and what to do."""
    kind = f"{type(found).__module__}.{type(found).__qualname__}"
    if isinstance(found, torch.export.ExportedProgram):
        return f"an exported program (.pt2), whose layers cannot be watched; {_BUILD}"
    if kind.startswith(("onnx", "google.protobuf")):
        return f"an ONNX network; {_BUILD}"
    if isinstance(found, (tuple, list)) and any(isinstance(each, nn.Module) for each in found):
        return f"{type(found).__name__}, not a network; return the network alone"
    if isinstance(found, dict):
        return "dict, not a network; build the network, and give its state_dict with --weights"
    plain = kind.removeprefix("builtins.")
    return f"{plain}, not a network (a torch.nn.Module)"


def _refuse_quantized(name: str, module: nn.Module) -> None:
    for path, child in module.named_modules():
        if ".quantized" in type(child).__module__ and "torch" in type(child).__module__:
            raise UsageError(
                f"--model {name}: {path or type(child).__name__} is quantized: it computes with "
                f"whole numbers and has no gradients; {_PLAIN} (before convert)"
            )


def _refuse_parameters(name: str, module: nn.Module) -> None:
    """Raise `UsageError` for parameters that are no plain numbers."""
    for path, parameter in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(parameter, (UninitializedParameter, UninitializedBuffer)):
            continue
        kind = type(parameter.data)
        why = ""
        if kind is not Tensor:
            why = f"is a {kind.__name__}, of no plain numbers"
        elif parameter.is_meta:
            why = "has no numbers (it is on the device meta)"
        elif parameter.is_complex():
            why = "is complex"
        elif parameter.layout is not torch.strided:
            why = f"is {parameter.layout}"
        if why:
            raise UsageError(f"--model {name}: {path} {why}; {_PLAIN}")


def _floating(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of real numbers, lazy ones left out."""
    found = [*module.parameters(), *module.buffers()]
    lazy = (UninitializedParameter, UninitializedBuffer)
    return [t for t in found if not isinstance(t, lazy) and t.is_floating_point()]


def type_remark(found: Any) -> str:
    """Return what is to be said of a network whose numbers are not float32; else nothing."""
    module = _unwrapped(found)
    if not isinstance(module, nn.Module):
        return ""
    kinds = {str(t.dtype).removeprefix("torch.") for t in _floating(module)} - {"float32"}
    return f"its parameters are {' and '.join(sorted(kinds))}; it computes in float32" * bool(kinds)


def _out_of_inference(module: nn.Module) -> nn.Module:
    """Give a module built in inference mode parameters that gradients can pass."""
    for child in module.modules():
        tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
        for table in tables:
            for key, tensor in table.items():
                lazy = isinstance(tensor, (UninitializedParameter, UninitializedBuffer))
                if tensor is not None and not lazy and tensor.is_inference():
                    plain = tensor.clone()
                    table[key] = nn.Parameter(plain) if isinstance(tensor, nn.Parameter) else plain
    return module


Run = Callable[[nn.Module, Tensor], Any]


def channels_taken(name: str, module: nn.Module, size: Size, run: Run) -> int:
    """Return how many channels a network takes, 3 or 1; lazy parts are made by the way.

    `run` passes a black image through the module. Raise `UsageError` for other numbers, and
    whatever `run` raises for a network that takes no image of `size` (height, width).
    """
    in_evaluation(module)
    wanted: list[int] = []
    handles = [
        child.register_forward_pre_hook(_noticing(wanted))
        for child in module.modules()
        if isinstance(child, (nn.Conv2d, nn.BatchNorm2d))
    ]
    try:
        run(module, torch.zeros(1, 3, *size))
    except (RuntimeError, UsageError):
        if not wanted:
            raise
    else:
        return 3
    finally:
        for handle in handles:
            handle.remove()
    if wanted[0] != 1:
        raise UsageError(
            f"--model {name}: takes images of {wanted[0]} channels, where cnnvis has 3 (colours) "
            f"or 1 (grey); have your function return a module that makes the {wanted[0]} channels "
            "of three, as in docs/tutorial.md"
        )
    run(module, torch.zeros(1, 1, *size))
    return 1


def _noticing(wanted: list[int]) -> Callable[[nn.Module, Any], None]:
    """Return a hook that notes the channels of the first layer that does not take an image's 3."""

    def see(child: nn.Module, inputs: Any) -> None:
        takes = child.num_features if isinstance(child, nn.BatchNorm2d) else child.in_channels
        given = inputs[0].shape[1] if inputs and isinstance(inputs[0], Tensor) else takes
        if given == 3 != takes:
            wanted.append(int(takes))  # type: ignore[arg-type]

    return see


def takes_grey(module: nn.Module) -> None:
    """Have a network of one channel take three, as all images here have: it gets their mean."""
    module.register_forward_pre_hook(_grey_input)


def _grey_input(_module: nn.Module, inputs: Any) -> tuple[Any, ...]:
    """Return the mean of three channels as one: (B, 3, h, w) -> (B, 1, h, w).

    A convolution, which every way of following a network knows.
    """
    images, *others = inputs
    third = torch.full((1, 3, 1, 1), 1 / 3, dtype=images.dtype, device=images.device)
    return (nn.functional.conv2d(images, third), *others)
