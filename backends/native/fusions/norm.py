"""A residual sum and its norm become one operator, and so do a spelled-out RMS norm and a group norm.

The fused operators return contiguous tensors, so only contiguous answers match. The input of a norm alone may have
another layout: the images behind a permutation are contiguous in channels-last memory, in which convolutions write.
"""

import operator

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.group_norm import group_norm
from autotune.backends.native.fusions.neighbouring_casts import absorb_casts
from autotune.backends.native.fusions.reading import FLOATS, arguments, call, cast_source, number, prune, sole_user
from autotune.backends.native.graph import Fusion, aten, place, put_in_place, replace, value
from autotune.backends.native.passes.casts_and_views import lossless
from autotune.backends.native.refusals import refuse

_FUSED = torch.ops.autotune_native
_OF_OTHERS = {aten.native_group_norm.default, aten.instance_norm.default}


def norm(module: GraphModule) -> list[str]:
    """Fuse residual sums and norms, the operators of an RMS norm, and group norms and activations; returns places."""
    places = group_norm(module) + [
        place(node) for node in list(module.graph.nodes) if node.users and _fuse(module, node)
    ]
    absorb_casts(module)
    return places


def _fuse(module: GraphModule, node: Node) -> bool:
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return _spelled_out(module, node)
    if node.target not in (aten.layer_norm.default, aten.rms_norm.default):
        return refuse(node, "it is no norm over the last dimension") if node.target in _OF_OTHERS else False
    given = arguments(node)
    if (
        len(given["normalized_shape"]) != 1 or given["eps"] is None
    ):  # the default eps of rms_norm depends on its backend
        return refuse(node, "a norm over several dimensions, or of an eps that depends on torch's backend")
    if node.target is aten.rms_norm.default:
        return _rms(node, given["input"], given["weight"], given["eps"])
    parameters = given["weight"], given["bias"], given["eps"], "layer"
    return _with_residual(node, given["input"], *parameters) or _alone(node, given["input"], *parameters)


def _alone(node: Node, x: Node, weight: Node | None, bias: Node | None, eps: float, kind: str) -> bool:
    """Replace a node by a norm without a sum before it."""
    if not _alike(node, node) or not _same_type(node, x):
        return refuse(node, "its answer is not contiguous, or of another type than its input")
    replace(node, call(node, _FUSED.norm.default, (x, weight, bias, eps, kind)))
    return True


def _rms(node: Node, x: Node, weight: Node | None, eps: float) -> bool:
    """Replace a node by an RMS norm, with the residual sum before it if there is one."""
    return _with_residual(node, x, weight, None, eps, "rms") or _alone(node, x, weight, None, eps, "rms")


def _with_residual(node: Node, total: Node, weight: Node | None, bias: Node | None, eps: float, kind: str) -> bool:
    """Fuse a norm with the sum that it normalises; other readers of the sum read the operator's first answer."""
    if total.target is not aten.add.Tensor or arguments(total)["alpha"] != 1:
        return False
    x, residual = total.args
    parameters = [one for one in (weight, bias) if one is not None and total < one]
    if not all(_alike(one, total) for one in (x, residual, node)) or any(one.op != "get_attr" for one in parameters):
        return False
    for parameter in parameters:  # a weight may be read anywhere
        total.prepend(parameter)
    both = call(total, _FUSED.add_norm.default, (x, residual, weight, bias, eps, kind))
    put_in_place(both, node)  # the sum is often that of a layer around the norm
    sum_, normed = (call(total, operator.getitem, (both, position)) for position in (0, 1))
    replace(node, normed)
    total.replace_all_uses_with(sum_)
    total.graph.erase_node(total)
    return True


def _spelled_out(module: GraphModule, product: Node) -> bool:
    """Match x · rsqrt(mean(x²) + eps), or x over the root, then a weight and casts in either order."""
    for wide, scale in _readings(product):
        eps = _eps(module, scale, wide)
        if eps is None:
            continue
        end, weight = _weighted(product, wide)
        x = next((one for one in (wide, _exact(wide)) if _alike(one, end)), None)
        if x is None:
            continue
        operands = end.all_input_nodes
        if _rms(end, x, weight, eps):
            prune(*operands)
            return True
    return False


def _readings(product: Node) -> list[tuple[Node, Node]]:
    """Return each reading of a node as x over a root: x, and the operand of the root."""
    first, second = product.args[:2]
    if not isinstance(first, Node) or not isinstance(second, Node):
        return []
    if product.target is aten.div.Tensor:
        return [(first, inside)] if (inside := _inside(second, aten.sqrt.default, product)) else []
    readings = []
    for x, scale in ((first, second), (second, first)):
        inside = _inside(scale, aten.rsqrt.default, product)
        if inside is None and scale.target is aten.reciprocal.default and sole_user(scale) is product:
            root = scale.args[0]
            inside = _inside(root, aten.sqrt.default, scale)
        if inside is not None:
            readings.append((x, inside))
    return readings


def _inside(root: object, target: torch._ops.OpOverload, user: Node) -> Node | None:
    """Return the operand of a root, if only ``user`` reads the root."""
    if not isinstance(root, Node) or root.target is not target or sole_user(root) is not user:
        return None
    inside = root.args[0]
    return inside if isinstance(inside, Node) and sole_user(inside) is root else None


def _eps(module: GraphModule, shifted: Node, wide: Node) -> float | None:
    """Return the eps of mean(x²) + eps over the last dimension; ``None`` if this is something else."""
    if shifted.target not in (aten.add.Tensor, aten.add.Scalar) or arguments(shifted)["alpha"] != 1:
        return None
    for mean, eps in ((shifted.args[0], shifted.args[1]), (shifted.args[1], shifted.args[0])):
        added = number(module, eps)
        if added is None or added < 0 or not isinstance(mean, Node) or mean.target is not aten.mean.dim:
            continue
        given, meta = arguments(mean), value(wide)
        if meta is None or not meta.dim() or sole_user(mean) is not shifted or not given["keepdim"]:
            return None
        square, last = given["self"], [dim % meta.dim() for dim in given["dim"] or ()]
        if last != [meta.dim() - 1] or sole_user(square) is not mean or not _is_square(square, wide):
            return None
        return float(added)
    return None


def _is_square(square: Node, wide: Node) -> bool:
    """Return true if a node is x²; casts that lose nothing may be before x."""
    if square.target in (aten.mul.Tensor, aten.square.default):
        factors = square.all_input_nodes if all(isinstance(one, Node) for one in square.args) else []
    elif square.target is aten.pow.Tensor_Scalar and square.args[1] == 2:
        factors = square.all_input_nodes
    else:
        return False
    return {_exact(one) for one in factors} == {_exact(wide)}


def _weighted(product: Node, wide: Node) -> tuple[Node, Node | None]:
    """Return the last node of a norm with its input's dtype, and the weight; casts may be before and after it."""
    end, weight, meta = product, None, value(wide)
    assert meta is not None
    last: tuple[Node, Node | None] = (product, None)
    while (user := sole_user(end)) is not None:
        if cast_source(user) is not end:
            others = [one for one in user.all_input_nodes if one is not end] if user.target is aten.mul.Tensor else []
            column = value(others[0]) if len(others) == 1 else None
            if weight is not None or column is None or column.shape != meta.shape[-1:] or column.dtype not in FLOATS:
                break
            weight = others[0]
        end = user
        if any(_alike(one, end) for one in (wide, _exact(wide))):
            last = (end, weight)
    return last


def _exact(node: Node) -> Node:
    """Return the source of casts that lose nothing."""
    while (source := cast_source(node)) is not None:
        before, after = value(source), value(node)
        if before is None or after is None or not lossless(before.dtype, after.dtype):
            break
        node = source
    return node


def _alike(left: object, right: object) -> bool:
    """Return true if two nodes are contiguous floating tensors of one shape and dtype."""
    return _same_type(left, right) and all(value(node).is_contiguous() for node in (left, right))  # type: ignore[union-attr]


def _same_type(left: object, right: object) -> bool:
    """Return true if two nodes are floating tensors of one shape and dtype."""
    first, second = value(left), value(right)
    if first is None or second is None or first.dtype not in FLOATS or first.dtype is not second.dtype:
        return False
    return first.shape == second.shape and first.device == second.device


NORM = Fusion(name="norm", fuse=norm)
