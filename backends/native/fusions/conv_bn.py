"""A batch norm in evaluation becomes part of the convolution or the linear layer before it."""

import operator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.graph import Fusion, add_constant, aten, constant, place, replace, value
from autotune.backends.native.refusals import refuse

_NORM = aten._native_batch_norm_legit_no_training.default
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_CONVOLUTIONS |= {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}


def conv_bn(module: GraphModule) -> list[str]:
    """Fold batch norms into the weights before them, in float64 and rounded once; returns the norms' places."""
    norms = [node for node in module.graph.nodes if node.target is _NORM]
    return [place(node) for node in norms if _fold(module, node)]


def _fold(module: GraphModule, norm: Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, Node) or not _can_take(layer) or set(layer.users) != {norm}:
        return refuse(norm, "no convolution or linear layer before it that nothing else reads")
    answers = list(norm.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in answers):
        return False
    read = [layer.args[1], layer.args[2] if len(layer.args) > 2 else None, *norm.args[1:5]]
    tensors = [constant(module, source) for source in read]
    if any(tensor is None and source is not None for tensor, source in zip(tensors, read, strict=True)):
        return refuse(norm, "weights of it, or of the layer before it, are computed")
    weight, bias, gain, shift, mean, variance = tensors
    meta, eps = value(layer.args[1]), norm.args[6]
    if weight is None or mean is None or variance is None or meta is None or not isinstance(eps, float):
        return False
    if any(value(answer) is None or value(answer).dtype != weight.dtype for answer in answers):  # type: ignore[union-attr]
        return False
    scale = (variance.double() + eps).rsqrt()
    scale = scale if gain is None else scale * gain.double()
    offset = -mean.double() if bias is None else bias.double() - mean.double()
    offset = offset * scale if shift is None else offset * scale + shift.double()
    scaled = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    if not fits(scaled, offset, weight.dtype):
        return refuse(norm, "its folded weights would be outside the range of their type")
    folded = scaled.to(weight.dtype).contiguous(memory_format=_memory_format(weight))
    new = add_constant(module, "normed_weight", folded, meta, before=layer)
    moved = add_constant(module, "normed_bias", offset.to(weight.dtype), meta.new_empty(len(offset)), before=layer)
    layer.args = (layer.args[0], new, moved, *layer.args[3:])
    for answer in answers:
        replace(answer, layer)
    module.graph.erase_node(norm)
    return True


def _can_take(layer: Node) -> bool:
    """Return true if the norm's channels, dimension 1, are the first dimension of the layer's weight."""
    if "bias" in layer.kwargs:  # capture passes operands by position
        return False
    if layer.target in _CONVOLUTIONS:
        return True
    answer = value(layer)
    return layer.target is aten.linear.default and answer is not None and answer.dim() == 2


def fits(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> bool:
    """Return true if rounding changes values by at most half a unit in the last place of a channel's largest.

    Else a value is outside the range of the type, or was not a number before.
    """
    limits = torch.finfo(dtype)
    largest = torch.maximum(weight.flatten(1).abs().amax(dim=1), bias.abs())
    if bool(((largest >= limits.tiny) & (largest <= limits.max)).all()):
        return True  # rounding to nearest changes no value by more
    channels = torch.cat([weight.flatten(1), bias.reshape(-1, 1)], dim=1)
    error = (channels.to(dtype).double() - channels).abs()
    return bool((error <= limits.eps / 2 * largest.unsqueeze(1)).all())


def _memory_format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format


CONV_BN = Fusion(name="conv_bn", fuse=conv_bn)
