"""Two products in a row become one operator, if only the second reads the first.

Pairs of 1×1 convolutions stay: as products they would have another memory format than the graph's, and their answers'
strides would change.
"""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.reading import call, sole_user
from autotune.backends.native.graph import Fusion, place, put_in_place, replace, same_layout, value

_FUSED = torch.ops.autotune_native


def back_to_back_gemm(module: GraphModule) -> list[str]:
    """Rewrite pairs of products that :mod:`gemm_epilogue` made; returns the places of the pairs."""
    products = [node for node in module.graph.nodes if node.target is _FUSED.gemm.default]
    return [place(pair) for product in products if (pair := _fuse(product)) is not None]


def _fuse(second: Node) -> Node | None:
    first, *others = second.args
    if not isinstance(first, Node) or first.target is not _FUSED.gemm.default or sole_user(first) is not second:
        return None
    a, weight, bias, residual, activation = first.args
    if residual is not None or first in others:
        return None
    new = call(second, _FUSED.gemm_gemm.default, (a, weight, bias, activation, *others))
    if not same_layout(value(new), value(second)):
        second.graph.erase_node(new)
        return None
    put_in_place(new, first, second)
    replace(second, new)
    first.graph.erase_node(first)
    return new


BACK_TO_BACK_GEMM = Fusion(name="back_to_back_gemm", fuse=back_to_back_gemm)
