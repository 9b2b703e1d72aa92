"""A product with a constant matrix becomes one operator with its bias, residual and activation."""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.patterns import epilogue, put
from autotune.backends.native.fusions.products import product_of, weight_of
from autotune.backends.native.fusions.reading import call
from autotune.backends.native.graph import Fusion, aten, place, put_in_place, value
from autotune.backends.native.refusals import refuse

_GEMM = torch.ops.autotune_native.gemm.default


def gemm_epilogue(module: GraphModule) -> list[str]:
    """Rewrite products with constant matrices, alone or with their epilogues; returns the products' places."""
    return [place(node) for node in list(module.graph.nodes) if _fuse(module, node)]


def _fuse(module: GraphModule, node: Node) -> bool:
    product = product_of(module, node)
    if product is None:
        return False
    following = epilogue(module, node, product.bias, product.residual, rows=True)
    size, end, residual = value(node), value(following.end), following.residual
    assert size is not None and end is not None
    if not end.is_contiguous():
        return refuse(node, "the end of its epilogue is not contiguous")
    added = value(residual)
    if added is not None and added.shape != size.shape:  # a view between the product and the sum
        if not added.is_contiguous():
            return refuse(node, "the residual behind a view is not contiguous")
        residual = call(following.end, aten.view.default, (residual, list(size.shape)))
    weight = weight_of(module, product, before=following.end)
    new = call(following.end, _GEMM, (product.a, weight, following.bias, residual, following.activation))
    put_in_place(new, node)
    if end.shape != size.shape:
        new = call(following.end, aten.view.default, (new, list(end.shape)))
    return put(following, new)


GEMM_EPILOGUE = Fusion(name="gemm_epilogue", fuse=gemm_epilogue)
