"""Backward rules: what a rectifier lets through on the way from a unit back to the pixels.

Every rectifier call of the pass is replaced, whether it is a module, a function, in place or
reused; the values going forward are the same to the bit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.network.operations import ROLES, Role
from cnnvis_cli.network.walk import Call, function_name
from cnnvis_cli.registry import Registry

RULES: Registry[type[torch.autograd.Function] | None] = Registry("projection method")
RULES.register("gradient")(None)


@RULES.register("deconv")
class Deconv(torch.autograd.Function):
    """A deconvnet rectifies the signal that comes back, whatever went forward.

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
    """Guided backpropagation: both the forward value and the signal back must be positive.

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


class _Rectify(TorchFunctionMode):
    """Swaps every rectifier of a forward pass for one with the given backward rule."""

    def __init__(self, rule: type[torch.autograd.Function]) -> None:
        super().__init__()
        self._rule = rule

    def __torch_function__(
        self, func: Call, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        role = ROLES.get(func)
        if role is Role.CURVED:
            raise CnnvisError(
                f"cannot project back through {function_name(func)}: the deconvnet and guided "
                "rules are defined for rectifiers only; use --method gradient"
            )
        if role is not Role.RECTIFIER:
            return func(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["input"]
        out: Tensor = self._rule.apply(x)
        in_place = kwargs.get("inplace", len(args) > 1 and bool(args[1]))
        return x.copy_(out) if in_place or function_name(func).endswith("_") else out


def rectify(method: str) -> AbstractContextManager[object]:
    """The ``with`` block in which a forward pass must run to be projected back by `method`.

    Raises `UsageError` for an unknown method; inside the block, `CnnvisError` at an activation
    function that the method has no rule for.
    """
    rule = RULES[method]
    return nullcontext() if rule is None else _Rectify(rule)
