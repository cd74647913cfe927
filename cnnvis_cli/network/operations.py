"""Every operation that cnnvis understands, one row each: what it sees, and how it goes back.

A network is followed at the level of torch functions, so that functional and reused layers work
like any other, and a function without a row stops the run by name instead of being guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from cnnvis_cli.nouns import Size

Margin = tuple[int, int]  # before and after, along one axis


class Role(Enum):
    """What an operation does to the places of a map."""

    SLIDING = auto()  # a window slides over rows and columns
    PAD = auto()  # rows and columns are added
    POINTWISE = auto()  # each place on its own; several maps meet place by place
    RECTIFIER = auto()  # pointwise, max(x, 0): the one that projections have a rule for
    CURVED = auto()  # pointwise, another nonlinearity: projections have no rule for it
    INDEX = auto()  # picks or adds dimensions: pointwise while rows and columns are left alone
    LAST = auto()  # mixes the trailing dimension: pointwise unless that is rows or columns
    PERMUTE = auto()  # dimensions change places
    RESHAPE = auto()  # keeps rows and columns only where they stay the last two dimensions
    WHOLE = auto()  # every output sees every place
    CONSTANT = auto()  # takes a tensor's type or size, not its values


@dataclass(frozen=True)
class Sliding:
    """A window operation, taken apart; `apply` runs it on a padded map."""

    kernel: Size
    stride: Size
    padding: tuple[Margin, Margin]
    dilation: Size
    ceil: bool
    fill: float  # the value of the padding
    apply: Callable[[Tensor], Tensor]
    channels: int | None = None  # of the output; None keeps the input's
    exact: bool = True  # whether padding beforehand gives the same numbers

    def length(self, axis: int, size: int) -> int:
        """Return the number of places along `axis` for an input of `size`, as torch counts them."""
        before, after = self.padding[axis]
        extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        room, stride = size + before + after - extent, self.stride[axis]
        places = (-(-room // stride) if self.ceil else room // stride) + 1
        # A ceil-mode window must start inside the input or the padding before it.
        return places - 1 if self.ceil and (places - 1) * stride >= size + before else places


def _pair(value: Any) -> Size:
    """Return an int or a sequence of one or two, as (rows, columns)."""
    if isinstance(value, int):
        return value, value
    first, *rest = (int(v) for v in value)
    return first, rest[0] if rest else first


def _same(padding: Any, kernel: Size, dilation: Size) -> tuple[Margin, Margin]:
    """Return padding as margins; 'same' puts the odd one after, as torch does."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (total[0] // 2, -(-total[0] // 2)), (total[1] // 2, -(-total[1] // 2))
    rows, columns = _pair(padding)
    return (rows, rows), (columns, columns)


# The readers below have torch's own signatures: a call is read by calling them instead.
# ruff: noqa: PLR0913


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Sliding:
    kernel, dilation = (weight.shape[2], weight.shape[3]), _pair(dilation)

    def apply(padded: Tensor) -> Tensor:
        return F.conv2d(padded, weight, bias, stride, 0, dilation, groups)

    margins = _same(padding, kernel, dilation)
    return Sliding(
        kernel, _pair(stride), margins, dilation, False, 0.0, apply, int(weight.shape[0])
    )


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Sliding:
    kernel, dilation = _pair(kernel_size), _pair(dilation)
    steps = _pair(stride) if stride else kernel

    def apply(padded: Tensor) -> Tensor:
        return F.max_pool2d(padded, kernel, steps, 0, dilation)

    margins = _same(padding, kernel, dilation)
    return Sliding(kernel, steps, margins, dilation, ceil_mode, float("-inf"), apply)


def _avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Sliding:
    kernel = _pair(kernel_size)
    steps, margins = _pair(stride) if stride else kernel, _same(padding, kernel, (1, 1))

    def apply(padded: Tensor) -> Tensor:
        return F.avg_pool2d(padded, kernel, steps, 0, divisor_override=divisor_override)

    counted = count_include_pad or margins == ((0, 0), (0, 0))
    return Sliding(
        kernel, steps, margins, (1, 1), ceil_mode, 0.0, apply, exact=counted and not ceil_mode
    )


SLIDING: dict[Callable[..., Any], Callable[..., Sliding]] = {
    F.conv2d: _conv2d,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
}

_T = torch.Tensor
_ROLES: dict[Role, tuple[Any, ...]] = {
    Role.SLIDING: tuple(SLIDING),
    Role.PAD: (F.pad,),
    Role.POINTWISE: (
        *(torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__),
        *(torch.sub, _T.sub, _T.sub_, _T.__sub__, _T.__rsub__, _T.__isub__),
        *(torch.mul, _T.mul, _T.mul_, _T.__mul__, _T.__rmul__, _T.__imul__),
        *(torch.div, _T.div, _T.div_, _T.__truediv__, _T.__itruediv__, _T.__neg__),
        *(torch.cat, torch.concat, _T.contiguous, _T.clone, _T.detach, _T.to, _T.float),
        *(F.batch_norm, F.dropout, F.dropout2d, F.local_response_norm, F.alpha_dropout),
        *(torch.chunk, _T.chunk, torch.split, _T.split),
    ),
    Role.RECTIFIER: (F.relu, F.relu_, torch.relu, torch.relu_, _T.relu, _T.relu_),
    Role.CURVED: (
        *(F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.selu, F.celu, F.prelu, F.gelu, F.silu),
        *(F.mish, F.softplus, F.hardswish, F.hardsigmoid, F.threshold, F.sigmoid, F.tanh),
        *(torch.sigmoid, _T.sigmoid, torch.tanh, _T.tanh, torch.clamp, _T.clamp, _T.clamp_),
        *(torch.exp, _T.exp, torch.sqrt, _T.sqrt, torch.pow, _T.pow, _T.__pow__),
        *(torch.maximum, torch.minimum, torch.abs, _T.abs),
        *(F.rrelu, F.softsign, F.logsigmoid, F.hardshrink, F.softshrink, F.tanhshrink),
        *(F.hardtanh_, F.leaky_relu_, F.elu_, F.selu_, F.celu_, F.rrelu_),
        *(torch.selu, torch.celu, torch.rrelu, torch.threshold, _T.sigmoid_, _T.tanh_),
    ),
    Role.INDEX: (_T.__getitem__, torch.unsqueeze, _T.unsqueeze),
    Role.LAST: (F.linear, F.layer_norm),
    Role.PERMUTE: (
        *(torch.permute, _T.permute, torch.transpose, _T.transpose),
        *(torch.swapaxes, _T.swapaxes),
    ),
    Role.RESHAPE: (_T.view, _T.reshape, torch.reshape),
    Role.WHOLE: (
        *(F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.flatten, _T.flatten),
        *(_T.mean, torch.mean, _T.sum, torch.sum, _T.amax, _T.squeeze, torch.squeeze),
        *(_T.expand, torch.roll),
        *(torch.matmul, _T.matmul, _T.__matmul__, torch.bmm, torch.functional.einsum),
        *(F.softmax, torch.softmax, F.log_softmax, F.normalize, F.multi_head_attention_forward),
        *(F.scaled_dot_product_attention, F.group_norm, F.instance_norm, F.interpolate),
    ),
    Role.CONSTANT: (_T.new_zeros, _T.new_ones, _T.new_empty, _T.new_full, torch.zeros_like),
}
ROLES: dict[Callable[..., Any], Role] = {f: role for role, row in _ROLES.items() for f in row}
WEIGHTED = (F.linear, F.layer_norm, F.batch_norm, F.prelu)  # weights of channels, not of places
