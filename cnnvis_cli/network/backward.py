"""Backward rules: what a rectifier passes back on the way from a unit to the pixels.

Every rectifier call of the pass is replaced, whether it is a module, a function, in place or
reused; the forward values are the same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.observe import hookable
from cnnvis_cli.network.operations import ROLES, UNRULED, Role
from cnnvis_cli.network.walk import Call, function_name, tensors
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.registry import Registry

Rule = type[torch.autograd.Function]
RULES: Registry[Rule | None] = Registry("projection method")
RULES.register("gradient")(None)


class Clamp(NamedTuple):
    """A rectifier: it passes on what lies between its edges, times its slope."""

    low: float = 0.0
    high: float = math.inf
    slope: float = 1.0


@RULES.register("deconv")
class Deconv(torch.autograd.Function):
    """The rule of the deconvnet: rectify the backward signal, whatever the forward value.

    Zeiler & Fergus 2013, section 2.1, "Rectification".
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, clamp: Clamp) -> Tensor:
        ctx.slope = clamp.slope
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        passed = gradients[0].clamp(min=0)
        return passed if ctx.slope == 1 else ctx.slope * passed, None, None


@RULES.register("guided")
class Guided(torch.autograd.Function):
    """The rule of guided backpropagation: forward value and backward signal must be positive.

    Springenberg et al. 2014 (arXiv:1412.6806), section 3.4. Of a clamp with two edges, the forward
    value must lie between them: its own derivative is 0 elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, clamp: Clamp) -> Tensor:
        ctx.slope = clamp.slope
        inside = x > clamp.low
        ctx.save_for_backward(inside & (x < clamp.high) if clamp.high < math.inf else inside)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        on: Tensor = ctx.saved_tensors[0]
        passed = gradients[0].clamp(min=0) * on
        return passed if ctx.slope == 1 else ctx.slope * passed, None, None


def rectifier_of(func: Call, args: tuple[Any, ...], kwargs: Any) -> Clamp | None:
    """Return the edges of a function that rectifies; None for other functions.

    A rectifier that saturates (ReLU6, a hard gate) is one for the projection rules: the signal of
    the way back is rectified where it passes, as at max(x, 0), and the upper edge is the forward
    pass's own. A hard swish is one outside -3 to 3, and near it inside.
    """
    name = function_name(func).rpartition(".")[2].rstrip("_")
    if name == "hardsigmoid":
        return Clamp(-3.0, 3.0, 1 / 6)
    if name in _CLAMPS:
        return _CLAMPS[name]
    if name in ("hardtanh", "clamp", "clip", "clamp_min"):
        given = dict(zip(("min", "max"), args[1:3], strict=False))
        low = kwargs.get("min", kwargs.get("min_val", given.get("min", _LOWEST.get(name))))
        high = kwargs.get("max", kwargs.get("max_val", given.get("max", _HIGHEST.get(name))))
        plain = low == 0 and not isinstance(low, Tensor) and not isinstance(high, Tensor)
        return Clamp(0.0, math.inf if high is None else float(high)) if plain else None
    return None


_CLAMPS = {"relu": Clamp(), "relu6": Clamp(high=6.0), "hardswish": Clamp()}
_LOWEST, _HIGHEST = {"hardtanh": -1.0}, {"hardtanh": 1.0}


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
    """Gives the rectifiers of a forward pass, and on request its normalisation, a backward rule.

    A `strict` one raises `NoRule` also for what is no torch function or has no row in the table of
    operations: a rectifier may hide in it.
    """

    def __init__(self, rule: Rule | None, normalised: bool, strict: bool = False) -> None:
        super().__init__()
        self._rule, self._normalised, self._strict = rule, normalised, strict
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Call, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._strict:
            for tensor in tensors([args, kwargs]):
                self.check(tensor)
        out = self._run(func, args, kwargs)
        if self._strict:
            for tensor in tensors(out):
                self._seen[tensor] = _history(tensor)
                if func not in ROLES and tensor.grad_fn is not None:
                    raise NoRule(function_name(func))
        return out

    def check(self, tensor: Tensor) -> None:
        """Raise `NoRule` for a result that depends on the input and that no torch function made."""
        made = tensor.grad_fn
        if made is not None and (tensor not in self._seen or self._seen[tensor] != made.name()):
            raise NoRule(f"code that cnnvis cannot look into ({made.name()})")

    def _run(self, func: Call, args: tuple[Any, ...], kwargs: Any) -> Any:
        if func is F.local_response_norm and not self._normalised:
            return _identity_gradient(func, args, kwargs)
        role = ROLES.get(func)
        if self._rule is None or (role not in _NONLINEAR and func not in UNRULED):
            return func(*args, **kwargs)
        clamp = rectifier_of(func, args, kwargs)
        if clamp is None:
            raise NoRule(function_name(func))
        return _rectified(self._rule, clamp, func, args, kwargs)


def _history(tensor: Tensor) -> str:
    """Return what autograd will do first on the way back from a tensor."""
    return tensor.grad_fn.name() if tensor.grad_fn is not None else ""


_NONLINEAR = (Role.RECTIFIER, Role.CURVED)


def _identity_gradient(func: Call, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """Return a function's own value, with the gradient of the identity."""
    with torch.no_grad():
        out = func(*args, **kwargs)
    passing: Tensor = _Unchanged.apply(args[0] if args else kwargs["input"], out)
    return passing


def _rectified(rule: Rule, clamp: Clamp, func: Call, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """Return the rectified value, also in place, with the backward rule."""
    x: Tensor = args[0] if args else kwargs["input"]
    name = function_name(func)
    with torch.no_grad():
        if name.rpartition(".")[2] in ("relu", "relu_"):
            value = x.clamp(min=0)
        else:
            value = func(x.clone(), *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
    out: Tensor = rule.apply(x, value, clamp)
    place = 3 if "hardtanh" in name else 1
    given = len(args) > place and args[place] is True
    return x.copy_(out) if name.endswith("_") or kwargs.get("inplace", given) else out


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


def way_back(
    network: Network, layers: Sequence[Layer], method: str, asked: bool
) -> tuple[str, str | None]:
    """Return the method to project some layers by, and what to say if it is another one.

    A default that has no rule for the network gives way to the gradient. Raise `UsageError` for a
    method that was `asked` for.
    """
    if asked:
        check_rules(network, layers, method)
        return method, None
    found = _without_a_rule(network, layers[-1], method)
    if found is None:
        return method, None
    note = f"{network.name}: {method} has no rule for {found}; projected by gradient instead"
    return "gradient", note


def _without_a_rule(network: Network, layer: Layer, method: str) -> str | None:
    """Return the function without a rule on the way to a layer, and where it is called."""
    rule = RULES[method]
    if rule is None:
        return None
    blank = next(network.module.parameters()).new_zeros(1, 3, *network.size)
    mode = _Backward(rule, normalised=True, strict=True)
    with _whereabouts(network.module) as modules, torch.enable_grad():
        try:
            with mode:
                whole = Box.whole(network.size)
                mode.check(network.values(layer, whole, blank.requires_grad_())[0])
        except NoRule as error:
            name, module = modules[-1] if modules else ("", network.module)
            return f"{error.function} (in {name or 'the network'}, {type(module).__name__})"
    return None


@contextmanager
def _whereabouts(network: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Track the modules, outermost first, that a forward pass is in."""
    inside: list[tuple[str, nn.Module]] = []
    names = {module: name for name, module in hookable(network)}

    def enter(module: nn.Module, _given: Any) -> None:
        inside.append((names[module], module))

    def leave(_module: nn.Module, _given: Any, _made: Any) -> None:
        inside.pop()

    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield inside
