"""A constant factor of each feature after a product with a constant matrix becomes part of its weight and bias."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.conv_bn import fits
from autotune.backends.native.fusions.patterns import of_one_dtype
from autotune.backends.native.fusions.products import LinearProduct
from autotune.backends.native.fusions.reading import call, prune, sole_user
from autotune.backends.native.fusions.view_chain import ViewChain, views_after
from autotune.backends.native.graph import add_constant, aten, constant, may_replace, replace, same_layout, value
from autotune.backends.native.refusals import refuse


def fold_scale(module: GraphModule, node: Node, product: LinearProduct) -> Node | None:
    """Fold the factors into the weights, in float64 and rounded once; returns the new product, ``None`` without any."""
    chain = ViewChain(source=node, views=views_after(node))
    viewed = chain.views[-1] if chain.views else node
    scaling = sole_user(viewed)
    if scaling is None or scaling.target is not aten.mul.Tensor or product.residual is not None:
        return None
    if not same_layout(value(scaling), value(viewed)) or not may_replace(scaling, viewed):
        return None
    factors = _factors(module, chain, viewed, scaling)
    if factors is None:
        return None
    meta = value(product.weight)
    assert meta is not None
    bias = None if product.bias is None else constant(module, product.bias)
    offset = torch.zeros(len(factors), dtype=torch.float64) if bias is None else bias.double() * factors
    scaled = product.matrix.double() * factors[:, None]
    if not fits(scaled, offset, product.matrix.dtype):
        refuse(scaling, "the weights with its factors would be outside the range of their type")
        return None
    operands = [
        product.a,
        add_constant(module, "scaled_weight", scaled.to(meta.dtype), meta.new_empty(scaled.shape), before=node),
    ]
    if bias is not None:
        operands.append(
            add_constant(module, "scaled_bias", offset.to(meta.dtype), meta.new_empty(len(offset)), before=node)
        )
    new = call(node, aten.linear.default, tuple(operands))
    if not same_layout(value(new), value(node)):
        prune(new)
        return None
    replace(scaling, viewed)
    replace(node, new)
    return new


def _factors(module: GraphModule, chain: ViewChain, viewed: Node, scaling: Node) -> Tensor | None:
    """Return the factor of each feature of the product; ``None`` if it is not constant, or differs between rows."""
    others = [operand for operand in scaling.args if operand is not viewed]
    tensor = constant(module, others[0]) if len(others) == 1 else None
    meta = value(viewed)
    if tensor is None or meta is None or not isinstance(others[0], Node) or not of_one_dtype(others[0], viewed):
        return None
    if tensor.dim() > meta.dim():
        return None
    rows = chain.undo(tensor.double().expand(meta.shape))
    if rows is None or any(step and size > 1 for size, step in zip(rows.shape[:-1], rows.stride()[:-1], strict=True)):
        return None
    return rows[(0,) * (rows.dim() - 1)]
