"""Backward rules: what a rectifier passes back on the way from a unit to the pixels.

Every rectifier call of the pass is replaced, whether it is a module, a function, in place or
reused; the forward values are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.operations import ROLES, Role
from cnnvis_cli.network.walk import Call, function_name
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.registry import Registry

Rule = type[torch.autograd.Function]
RULES: Registry[Rule | None] = Registry("projection method")
RULES.register("gradient")(None)


@RULES.register("deconv")
class Deconv(torch.autograd.Function):
    """The rule of the deconvnet: rectify the backward signal, whatever the forward value.

    Zeiler & Fergus 2013, section 2.1, "Rectification".
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(min=0)


@RULES.register("guided")
class Guided(torch.autograd.Function):
    """The rule of guided backpropagation: forward value and backward signal must be positive.

    Springenberg et al. 2014 (arXiv:1412.6806), section 3.4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        on: Tensor = ctx.saved_tensors[0]
        return gradients[0].clamp(min=0) * on


class _Unchanged(torch.autograd.Function):
    """Passes the backward signal unchanged, whatever the forward value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class NoRule(CnnvisError):
    """A function of the network for which the deconvnet and guided rules are not defined."""

    def __init__(self, function: str) -> None:
        self.function = function
        super().__init__(
            f"cannot project back through {function}: the deconvnet and guided "
            "rules are defined for rectifiers only; use --method gradient"
        )


class _Backward(TorchFunctionMode):
    """Gives the rectifiers of a forward pass, and on request its normalisation, a backward rule."""

    def __init__(self, rule: Rule | None, normalised: bool) -> None:
        super().__init__()
        self._rule, self._normalised = rule, normalised

    def __torch_function__(
        self, func: Call, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.local_response_norm and not self._normalised:
            return _identity_gradient(func, args, kwargs)
        role = ROLES.get(func)
        if self._rule is None or role not in (Role.RECTIFIER, Role.CURVED):
            return func(*args, **kwargs)
        if role is Role.CURVED:
            raise NoRule(function_name(func))
        return _rectified(self._rule, func, args, kwargs)


def _identity_gradient(func: Call, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """Return a function's own value, with the gradient of the identity."""
    with torch.no_grad():
        out = func(*args, **kwargs)
    passing: Tensor = _Unchanged.apply(args[0] if args else kwargs["input"], out)
    return passing


def _rectified(rule: Rule, func: Call, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """Return the rectified value, also in place, with the backward rule."""
    x: Tensor = args[0] if args else kwargs["input"]
    out: Tensor = rule.apply(x)
    in_place = kwargs.get("inplace", len(args) > 1 and bool(args[1]))
    return x.copy_(out) if in_place or function_name(func).endswith("_") else out


def rectify(method: str, normalised: bool = True) -> AbstractContextManager[object]:
    """Return the ``with`` block in which a forward pass must run to be projected back by `method`.

    The signal passes back through local response normalisation by its derivative, or, if not
    `normalised`, unchanged. Raise `UsageError` for an unknown method; inside the block, `NoRule` at
    an activation function that the method has no rule for.
    """
    rule = RULES[method]
    return nullcontext() if rule is None and normalised else _Backward(rule, normalised)


def check_rules(network: Network, layers: Sequence[Layer], method: str) -> None:
    """Raise `UsageError` for the first of these layers from which `method` cannot project back."""
    if _without_a_rule(network, layers[-1], method) is None:  # it includes all earlier layers
        return
    for layer in layers:
        found = _without_a_rule(network, layer, method)
        if found is not None:
            raise UsageError(
                f"{network.name}: {method} cannot project {layer.alias}: {found} is on the way "
                "back, and the method has a rule for max(x, 0) only; use --method gradient, or "
                "a --layer before it"
            )


def _without_a_rule(network: Network, layer: Layer, method: str) -> str | None:
    """Return the function without a rule on the way to a layer, and where it is called."""
    blank = next(network.module.parameters()).new_zeros(1, 3, *network.size)
    with _whereabouts(network.module) as modules, torch.no_grad():
        try:
            with rectify(method):
                network.values(layer, Box.whole(network.size), blank)
        except NoRule as error:
            name, module = modules[-1]
            return f"{error.function} (in {name or 'the network'}, {type(module).__name__})"
    return None


@contextmanager
def _whereabouts(network: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Track the modules, outermost first, that a forward pass is in."""
    inside: list[tuple[str, nn.Module]] = []
    names = {module: name for name, module in network.named_modules()}

    def enter(module: nn.Module, _given: Any) -> None:
        inside.append((names[module], module))

    def leave(_module: nn.Module, _given: Any, _made: Any) -> None:
        inside.pop()

    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield inside
