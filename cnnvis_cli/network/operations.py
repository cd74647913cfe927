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
    RECTIFIER = auto()  # pointwise, max(x, 0) or a clamp: the one that projections have a rule for
    CURVED = auto()  # pointwise, another nonlinearity: projections have no rule for it
    MOVE = auto()  # numbers change places and keep their values
    LAST = auto()  # mixes the trailing dimensions: pointwise where they hold no places
    REDUCE = auto()  # mixes the dimensions that it is told
    STATISTIC = auto()  # pointwise, but for a scale that every place of an image shares
    PRODUCT = auto()  # matrices: each row of the first with every column of the second
    ATTENTION = auto()  # each query's place sees every place
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


def _same_padding(padding: Any, kernel: Size, dilation: Size) -> tuple[Margin, Margin]:
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

    margins = _same_padding(padding, kernel, dilation)
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

    margins, fill = _same_padding(padding, kernel, dilation), float("-inf")
    exact = not return_indices  # numbers of places in the whole map, not in a window
    return Sliding(kernel, steps, margins, dilation, ceil_mode, fill, apply, exact=exact)


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
    steps, margins = _pair(stride) if stride else kernel, _same_padding(padding, kernel, (1, 1))

    def apply(padded: Tensor) -> Tensor:
        return F.avg_pool2d(padded, kernel, steps, 0, divisor_override=divisor_override)

    counted = count_include_pad or margins == ((0, 0), (0, 0))
    return Sliding(
        kernel, steps, margins, (1, 1), ceil_mode, 0.0, apply, exact=counted and not ceil_mode
    )


def _pixel_unshuffle(input: Tensor, downscale_factor: int) -> Sliding:
    block = (downscale_factor, downscale_factor)

    def apply(padded: Tensor) -> Tensor:
        return F.pixel_unshuffle(padded, downscale_factor)

    channels = int(input.shape[1]) * downscale_factor**2
    return Sliding(
        block, block, _same_padding(0, block, (1, 1)), (1, 1), False, 0.0, apply, channels
    )


SLIDING: dict[Callable[..., Any], Callable[..., Sliding]] = {
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.max_pool2d: _max_pool2d,
    F.max_pool2d_with_indices: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.pixel_unshuffle: _pixel_unshuffle,
}

_T = torch.Tensor
_A: Any = torch.Tensor  # whose methods the annotations leave out
_F: Any = F


def _both(*names: str) -> tuple[Any, ...]:
    """Return the functions and the methods of these names, where torch has them."""
    places = (torch, torch.Tensor, F)
    return tuple(getattr(place, name) for name in names for place in places if hasattr(place, name))


_ROLES: dict[Role, tuple[Any, ...]] = {
    Role.SLIDING: tuple(SLIDING),
    Role.PAD: (F.pad,),
    Role.POINTWISE: (
        *_both("add", "add_", "sub", "sub_", "subtract", "rsub", "mul", "mul_", "multiply"),
        *_both("div", "div_", "divide", "true_divide", "neg", "neg_", "negative", "lerp"),
        *(_T.__add__, _T.__radd__, _T.__iadd__, _T.__sub__, _T.__rsub__, _T.__isub__),
        *(_T.__mul__, _T.__rmul__, _T.__imul__, _T.__truediv__, _T.__rtruediv__),
        *(_T.__itruediv__, _T.__neg__, _T.__rdiv__, _T.__div__, _T.__idiv__),
        *_both("addcmul", "addcdiv", "clone", "positive", "nan_to_num", "where", "masked_fill"),
        *_both("masked_fill_", "copy_", "add_relu"),
        *(_T.contiguous, _T.detach, _T.to, _T.type, _T.type_as, _T.float, _T.half, _T.bfloat16),
        *(_T.double, _T.cpu, _T.cuda, _T.requires_grad_, _A.data.__get__, torch.detach),
        *(F.batch_norm, torch.batch_norm, F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout),
        *(F.dropout3d, F.feature_alpha_dropout, torch.feature_dropout, torch.dropout),
        *(F.local_response_norm,),
        *_both("eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or"),
        *(_T.__eq__, _T.__ne__, _T.__lt__, _T.__le__, _T.__gt__, _T.__ge__, _T.__invert__),
        *(_T.__and__, _T.__or__, _T.bool, _T.int, _T.long, _T.byte),
    ),
    Role.RECTIFIER: (
        *_both("relu", "relu_"),
        *_both("relu6", "hardtanh", "hardtanh_", "hardsigmoid", "hardswish"),
    ),
    Role.CURVED: (
        *_both("leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "celu_"),
        *_both("prelu", "rrelu", "rrelu_", "gelu", "silu", "mish", "softplus", "softsign"),
        *_both("threshold", "threshold_", "sigmoid", "sigmoid_", "tanh", "tanh_", "logsigmoid"),
        *_both("hardshrink", "softshrink", "tanhshrink", "clamp", "clamp_", "clip", "clip_"),
        *_both("clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "maximum", "minimum"),
        *_both("fmax", "fmin", "exp", "exp_", "expm1", "log", "log1p", "log2", "log10", "sqrt"),
        *_both("sqrt_", "rsqrt", "pow", "pow_", "float_power", "square", "abs", "abs_", "absolute"),
        *_both("sign", "reciprocal", "erf", "sin", "cos", "tan", "atan", "atan2", "floor", "ceil"),
        *_both("round", "trunc", "frac", "remainder", "fmod", "sinh", "cosh", "logit", "xlogy"),
        *_both("sinc", "heaviside", "copysign", "hypot", "special_expit", "floor_divide"),
        *(_T.__pow__, _T.__rpow__, _T.__ipow__, _T.__abs__, _T.__mod__, _T.__floordiv__),
    ),
    Role.MOVE: (
        *(_T.__getitem__, _T.view, _T.view_as, _A.T.__get__, _A.mT.__get__, _A.H.__get__),
        *_both("reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *_both("squeeze_", "unsqueeze_", "permute", "transpose", "transpose_", "swapaxes"),
        *_both("swapdims", "movedim", "moveaxis", "t", "adjoint", "expand", "expand_as", "repeat"),
        *_both("broadcast_to", "tile", "repeat_interleave", "unbind", "split", "tensor_split"),
        *_both("split_with_sizes", "hsplit", "vsplit", "dsplit", "chunk", "narrow", "select"),
        *_both("index_select", "flip", "fliplr", "flipud", "roll", "rot90", "cat", "concat"),
        *_both("concatenate", "stack", "hstack", "vstack", "dstack", "channel_shuffle", "diagonal"),
        *(_T.unfold, torch.functional.broadcast_tensors, torch.functional.split),
    ),
    Role.LAST: (F.linear, F.layer_norm, *_both("rms_norm", "layer_norm")),
    Role.REDUCE: (
        *_both("mean", "sum", "amax", "amin", "norm", "var", "std", "prod", "logsumexp", "max"),
        *_both("min", "median", "all", "any", "softmax", "log_softmax", "softmin", "normalize"),
        *_both("cumsum", "argmax", "argmin", "nansum", "nanmean", "glu", "sort", "topk"),
        *(torch.functional.norm, torch.linalg.norm, torch.linalg.vector_norm),
    ),
    Role.STATISTIC: (F.group_norm, F.instance_norm, *_both("group_norm", "instance_norm")),
    Role.PRODUCT: (
        *_both("matmul", "bmm", "mm", "__matmul__", "__rmatmul__"),
        torch.functional.einsum,
    ),
    Role.ATTENTION: (
        *(F.multi_head_attention_forward, F.scaled_dot_product_attention),
        *_both("_native_multi_head_attention"),
    ),
    Role.WHOLE: (
        *(F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool1d),
        *(F.interpolate, F.upsample, F.grid_sample, F.fold, F.unfold, F.pixel_shuffle),
        *(F.lp_pool2d, F.bilinear, F.embedding, F.cosine_similarity, F.pairwise_distance),
        *(F.conv1d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(F.max_pool1d, F.avg_pool1d, F.max_pool3d, F.avg_pool3d, F.max_unpool2d, F.one_hot),
        *(torch.adaptive_avg_pool1d, torch.functional.tensordot),
        *_both("conv1d", "conv3d", "addmm", "baddbmm", "cdist", "outer", "kron", "gather"),
        *_both("scatter", "scatter_add", "take", "take_along_dim", "masked_select", "index_add"),
        *_both("cumprod", "unfold_copy", "fft", "view_as_real", "view_as_complex", "cross", "dot"),
        *(torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2),
        *(torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft),
        *_both("lstm", "gru", "rnn_tanh", "rnn_relu"),
    ),
    Role.CONSTANT: (
        *(_T.new_zeros, _T.new_ones, _T.new_empty, _T.new_full, _T.new_tensor),
        *_both("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    ),
}
ROLES: dict[Callable[..., Any], Role] = {f: role for role, row in _ROLES.items() for f in row}
WEIGHTED = (F.linear, F.layer_norm, F.batch_norm, F.prelu)  # weights of channels, not of places
# Where a reduction's dimensions stand among its arguments, and what they are by default; for those
# that are not here, they come second, and all dimensions are mixed if there are none.
REDUCED: dict[Callable[..., Any], tuple[int, int | None]] = {
    F.normalize: (2, 1),
    F.glu: (1, -1),
    **dict.fromkeys((torch.functional.norm, _T.norm, torch.norm), (2, None)),
    **dict.fromkeys((torch.linalg.norm, torch.linalg.vector_norm), (2, None)),
    **dict.fromkeys((torch.sort, _T.sort), (1, -1)),
    **dict.fromkeys((torch.topk, _T.topk), (2, -1)),
}

# Nonlinear functions that mix places or channels: projections have no rule for them either.
UNRULED: frozenset[Any] = frozenset(
    (
        *_ROLES[Role.ATTENTION],
        *_both("softmax", "log_softmax", "softmin", "logsumexp", "norm", "var", "std", "normalize"),
        *(torch.functional.norm, torch.linalg.norm, torch.linalg.vector_norm, F.glu),
        *_both("lstm", "gru", "rnn_tanh", "rnn_relu"),
    )
)
