"""A forward and backward pass as one straight list of tensor operations, made faster.

Following a network's modules, and autograd after it, takes about as long as computing a small
canvas. A pass whose shapes never change needs that only once: it is traced into a graph of torch's
own operations (torch.fx), and unneeded operations are removed. Values equal those of the untraced
pass to the bit; gradients may differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

_aten: Any = torch.ops.aten
FEW = 4  # input channels: with so few, a convolution's usual backward leaves a processor idle


def trace(
    function: Callable[..., Any], *examples: Tensor, then: Callable[[fx.GraphModule], object] = id
) -> Callable[..., Any]:
    """Return the function for arguments of these shapes; it may compute gradients inside.

    Tensors that the function uses besides its arguments, such as weights, are shared. `then` may
    change the finished graph.
    """
    with torch.enable_grad():
        module = make_fx(function)(*examples)
    graph = module.graph
    _fold(module)
    mutates = any(_mutates(node) for node in graph.nodes)
    for node in list(graph.nodes):
        rewrite = REWRITES.get(node.target)
        if rewrite is not None and not (mutates and rewrite is _drop_empty_padding):
            rewrite(module, node)
    graph.eliminate_dead_code()
    _in_place(graph)
    then(module)
    graph.lint()
    module.recompile()

    def run(*arguments: Tensor) -> Any:
        with torch.no_grad():
            return module(*arguments)

    return run


def _fold(module: fx.GraphModule) -> None:
    """Compute once what depends only on tensors of the module, such as weights in another type."""
    for number, node in enumerate(list(module.graph.nodes)):
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or any(i.op != "get_attr" for i in inputs):
            continue
        arguments = fx.map_arg(node.args, lambda i: getattr(module, str(i.target)))
        options = fx.map_arg(node.kwargs, lambda i: getattr(module, str(i.target)))
        found = node.target(*arguments, **options)
        if isinstance(found, Tensor):
            name = f"_folded{number}"
            module.register_buffer(name, found)
            with module.graph.inserting_before(node):
                _replace(module, node, module.graph.get_attr(name))


def _replace(module: fx.GraphModule, node: fx.Node, other: fx.Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    module.graph.erase_node(node)


def _drop_alias(module: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    module.graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    """Return whether this operation works in place, so that a copy may be what saves a value."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable)


def _drop_empty_padding(module: fx.GraphModule, node: fx.Node) -> None:
    """Drop a padding by nothing, which would still copy the map."""
    if not any(node.args[1]):  # type: ignore[arg-type]
        _drop_alias(module, node)


def _by_phases(module: fx.GraphModule, node: fx.Node) -> None:
    """Replace the gradient of a strided convolution of an image by a convolution to sub-pixels."""
    call: Any = node.args
    gradient, pixels, weight, _, stride, padding, dilation, transposed, _, groups, mask = call
    few = pixels.meta["val"].shape[1] <= FEW and weight.op == "get_attr"
    plain = list(dilation) == [1, 1] and not transposed and groups == 1
    square = len(set(stride)) == 1 and stride[0] > 1
    if not (few and plain and square and list(mask) == [True, False, False]):
        return
    name = f"{weight.target}_phases_{stride[0]}"
    module.register_buffer(name, phases(getattr(module, weight.target), stride[0]))
    size = tuple(pixels.meta["val"].shape[2:])
    with module.graph.inserting_before(node):
        kernels = module.graph.get_attr(name)
        arguments = (gradient, kernels, stride[0], size, tuple(padding))
        out = module.graph.call_function(gradient_by_phases, arguments)
        out.meta["val"] = pixels.meta["val"]
    for use in list(node.users):
        if use.args[1] == 0:
            use.replace_all_uses_with(out)
            module.graph.erase_node(use)


def phases(weight: Tensor, stride: int) -> Tensor:
    """Return the kernels for each of the stride x stride phases of a convolution's input gradient.

    (O, I, h, w) -> (I stride stride, O, ceil(h / stride), ceil(w / stride)). The gradient of input
    pixel ``stride y + p`` is the sum over q of that of output ``y - q`` times the weight
    ``stride q + p``: one plain convolution per phase p (Shi et al. 2016, arXiv:1609.07009).
    """
    outputs, inputs, height, width = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = F.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
    parts = padded.reshape(outputs, inputs, rows, stride, columns, stride).flip(2, 4)
    kernels = parts.permute(1, 3, 5, 0, 2, 4).reshape(-1, outputs, rows, columns)
    return kernels.contiguous(memory_format=torch.channels_last)


def gradient_by_phases(
    gradient: Tensor, kernels: Tensor, stride: int, size: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return a strided convolution's input gradient by `phases`: (B, O, ...) -> (B, I, *size)."""
    rows, columns = kernels.shape[2:]
    found = F.conv2d(gradient, kernels, padding=(rows - 1, columns - 1))
    whole = F.pixel_shuffle(found, stride)
    top, left = padding
    whole = whole[:, :, top : top + size[0], left : left + size[1]]
    short = (size[0] - whole.shape[2], size[1] - whole.shape[3])  # pixels that no window reaches
    return F.pad(whole, (0, short[1], 0, short[0])) if any(short) else whole


def _spread_divisor(module: fx.GraphModule, node: fx.Node) -> None:
    """Divide by one number per element instead of per channel: several times faster."""
    call: Any = node.args
    map_, divisor = call
    if getattr(divisor, "op", None) != "get_attr":
        return
    numbers, shape = getattr(module, divisor.target), map_.meta["val"].shape
    if len(shape) != 4 or numbers.dim() != 4 or not 1 < numbers.numel() < shape[1:].numel():
        return
    large = numbers.expand(1, *shape[1:]).contiguous(memory_format=torch.channels_last)
    name = f"{divisor.target}_{'x'.join(map(str, shape[1:]))}"
    module.register_buffer(name, large)
    with module.graph.inserting_before(node):
        node.args = (map_, module.graph.get_attr(name))


REWRITES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    _aten.alias.default: _drop_alias,
    _aten.detach.default: _drop_alias,  # torch 2.6 leaves it in
    _aten.constant_pad_nd.default: _drop_empty_padding,
    _aten.convolution_backward.default: _by_phases,
    _aten.div.Tensor: _spread_divisor,
}


_FRESH = {  # operations whose results share no memory with others
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten.max_pool2d_with_indices_backward.default,
    _aten.threshold_backward.default,
    _aten.addmm.default,
    _aten.mm.default,
}


def _in_place(graph: fx.Graph) -> None:
    """Rectify in place, forwards and backwards, if nothing else reads the input."""
    for node in list(graph.nodes):
        if node.target not in (_aten.relu.default, _aten.threshold_backward.default):
            continue
        source = node.args[0]
        if not (_is_fresh(source) and len(source.users) == 1):
            continue
        if node.target == _aten.relu.default:
            node.target = _aten.relu_.default
        else:
            node.target = _aten.threshold_backward.grad_input
            node.kwargs = {**node.kwargs, "grad_input": source}


def _is_fresh(node: Any) -> bool:
    if node.target is getitem:
        node = node.args[0]
    return node.target in _FRESH
