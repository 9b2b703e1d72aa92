"""Pooling becomes our operators, whose kernels take a fraction of torch's time in channels-last memory."""

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from autotune.backends.native import operators
from autotune.backends.native.fusions.conv_act import pair
from autotune.backends.native.fusions.neighbouring_casts import absorb_casts
from autotune.backends.native.fusions.reading import FLOATS, arguments, call, prune
from autotune.backends.native.graph import Fusion, aten, place, put_in_place, replace, same_layout, value
from autotune.backends.native.refusals import refuse

_FUSED = getattr(torch.ops, operators.NAMESPACE)
_OF_OTHERS = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default}
_OF_OTHERS |= {aten.mean.dim, aten.amax.default}


def pooling(module: GraphModule) -> list[str]:
    """Rewrite maximum pooling and means of whole images as our operators; returns their places."""
    places = [place(node) for node in list(module.graph.nodes) if node.users and _rewrite(node)]
    absorb_casts(module)
    return places


def _rewrite(node: Node) -> bool:
    if node.target is aten.max_pool2d.default:
        given = arguments(node)
        sides = [pair(given[name]) for name in ("kernel_size", "stride", "padding", "dilation")]
        sides[1] = sides[1] or sides[0]
        if given["ceil_mode"]:
            return refuse(node, "its last windows may reach beyond the image (ceil_mode)")
        return _put(node, _FUSED.max_pool2d.default, (given["self"], *sides))
    if node.target is aten.adaptive_avg_pool2d.default and pair(arguments(node)["output_size"]) == [1, 1]:
        return _put(node, _FUSED.mean_pool2d.default, (node.args[0],))
    if node.target is aten.mean.dim:
        given = arguments(node)
        meta = value(given["self"])
        over = sorted(dim % 4 for dim in given["dim"] or ()) if meta is not None and meta.dim() == 4 else []
        if over == [2, 3] and given["dtype"] in (None, meta.dtype):  # type: ignore[union-attr]
            return _put(node, _FUSED.mean_pool2d.default, (given["self"],))
    return refuse(node, "it is neither a maximum nor a mean of whole images") if node.target in _OF_OTHERS else False


def _put(node: Node, target: "torch._ops.OpOverload", args: tuple[Argument, ...]) -> bool:
    x, meta = value(args[0]), value(node)
    if x is None or meta is None or x.dim() != 4 or not x.numel() or x.dtype not in FLOATS:
        return refuse(node, "it does not pool a batch of images of a floating type")
    pooled = new = call(node, target, args)
    if meta.dim() == 2:  # a mean that drops the dimensions of the image
        new = call(node, aten.view.default, (pooled, list(meta.shape)))
    if not same_layout(value(new), meta):
        prune(new)
        return refuse(node, "the kernel would write its answer in another layout")
    put_in_place(pooled, node)
    replace(node, new)
    return True


POOLING = Fusion(name="pooling", fuse=pooling)
