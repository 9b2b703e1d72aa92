"""A product with a constant matrix becomes one operator with its bias, factors, residual and activation."""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.layer_scale import fold_scale
from autotune.backends.native.fusions.patterns import epilogue, put
from autotune.backends.native.fusions.products import product_of, weight_of
from autotune.backends.native.fusions.reading import call
from autotune.backends.native.graph import Fusion, place, put_in_place, same_layout, value
from autotune.backends.native.refusals import refuse

_GEMM = torch.ops.autotune_native.gemm.default


def gemm_epilogue(module: GraphModule) -> list[str]:
    """Rewrite products with constant matrices, alone or with their epilogues; returns the products' places."""
    return [place(node) for node in list(module.graph.nodes) if _fuse(module, node)]


def _fuse(module: GraphModule, node: Node) -> bool:
    product = product_of(module, node)
    if product is None:
        return False
    if (scaled := fold_scale(module, node, product)) is not None:
        return _fuse(module, scaled)
    following = epilogue(module, node, product.bias, product.residual, rows=True)
    size, end, residual = value(node), value(following.end), following.residual
    assert size is not None and end is not None
    if not same_layout(following.views.replay(size.new_empty(size.shape)), end):
        return refuse(node, "the end of its epilogue is not in the order of the product's rows")
    if residual is not None:
        residual = following.residual_views.undone(following.end, residual)
    weight = weight_of(module, product, before=following.end)
    new = call(following.end, _GEMM, (product.a, weight, following.bias, residual, following.activation))
    put_in_place(new, node)
    return put(following, following.views.replayed(following.end, new))


GEMM_EPILOGUE = Fusion(name="gemm_epilogue", fuse=gemm_epilogue)
