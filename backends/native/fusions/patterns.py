"""What fusions look for around a product or a convolution: sums, views and activations, however they are spelled."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from autotune.backends.native.fusions.reading import FLOATS, number, sole_user
from autotune.backends.native.graph import aten, constant, same_layout, value
from autotune.backends.native.operators import ACTIVATIONS
from autotune.backends.native.passes.casts_and_views import lossless

LIMIT = 16
"""Operators in one activation at most; the longest known spelling, GELU's polynomial, has ten."""

_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims}
_ELEMENTWISE = {aten.relu.default, aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default}
_ELEMENTWISE |= {aten.erf.default, aten.exp.default, aten.neg.default, aten.reciprocal.default, aten.square.default}
_ELEMENTWISE |= {aten.pow.Tensor_Scalar, aten.rsub.Scalar, aten._to_copy.default}
_ELEMENTWISE |= {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
_ELEMENTWISE |= {aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar}

_FAR = (-1e3, -1e2, 1e2, 1e3)
_POINTS = torch.cat([torch.linspace(-40, 40, 8001, dtype=torch.float64), torch.tensor(_FAR, dtype=torch.float64)])
"""Beyond 40 every activation is 0 or x within half a unit of a float64's last place; it varies on a scale of 1."""

_EXPECTED: Mapping[str, Tensor] = {name: f(_POINTS) for name, f in ACTIVATIONS.items() if name != "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What follows a product and can be computed with it; ``end`` has the answer, ``taken`` is all that goes."""

    end: Node
    taken: tuple[Node, ...]
    bias: Node | None
    residual: Node | None
    activation: str


def epilogue(module: GraphModule, product: Node, bias: Node | None, residual: Node | None, *, rows: bool) -> Epilogue:
    """Follow a product as far as bias, residual and activation go, in this order; each but the last has no other user.

    With ``rows`` the last dimension has the features: a vector of constants that is added there is a bias, and views
    that leave this dimension as it is are looked through.
    """
    end, taken = product, [product]
    while residual is None:
        seen, views = _behind_views(end) if rows else (end, [])
        user, other = added(seen)
        if user is None:
            break
        if rows and bias is None and _is_vector(module, other, seen):
            bias = other
        elif _same_size(other, seen) and (rows or value(other).stride() == value(seen).stride()):  # type: ignore[union-attr]
            residual = other
        else:
            break
        end = user
        taken += [*views, user]
    seen, views = _behind_views(end) if rows else (end, [])
    name, parts = activation_of(module, seen)
    if parts:
        end = parts[-1]
        taken += [*views, *parts]
    return Epilogue(end=end, taken=tuple(taken), bias=bias, residual=residual, activation=name)


def added(node: Node) -> tuple[Node | None, Node | None]:
    """The sum that is a node's only user, and what is added to it there."""
    user = sole_user(node)
    if user is None or user.target is not aten.add.Tensor or user.kwargs.get("alpha", 1) != 1:
        return None, None
    others = [one for one in user.args[:2] if one is not node]
    return (user, others[0]) if len(others) == 1 and isinstance(others[0], Node) else (None, None)


def activation_of(module: GraphModule, node: Node) -> tuple[str, list[Node]]:
    """The activation that is all the use of a node, and the operators that spell it; ``none`` without any.

    It is known by what it computes: operators on each element by itself that agree in float64 with an activation.
    """
    name, parts, around = "none", 0, _elementwise_after(module, node)
    computed: dict[Node, Tensor] = {node: _POINTS}
    like = value(node)
    assert like is not None
    for count, one in enumerate(around, 1):
        computed[one] = _compute(module, one, computed)
        inside = set(around[:count])
        closed = all(set(earlier.users) <= inside for earlier in [node, *around[: count - 1]])
        same_dtype = value(one).dtype == like.dtype  # type: ignore[union-attr]
        found = _named(computed[one], like.dtype) if closed and same_dtype else None
        if found is not None:
            name, parts = found, count
    return name, around[:parts]


def put(found: Epilogue, new: Node) -> bool:
    """Let a fused operator's answer stand for all that an epilogue took, if its layout is the same."""
    if not same_layout(value(new), value(found.end)):
        new.graph.erase_node(new)
        return False
    found.end.replace_all_uses_with(new)
    for node in reversed(found.taken):
        node.graph.erase_node(node)
    return True


def of_one_dtype(*nodes: Node | None) -> bool:
    """Whether all tensors are dense, of the same floating dtype and on the same device."""
    found = [value(node) for node in nodes if node is not None]
    if any(one is None or one.layout is not torch.strided or one.dtype not in FLOATS for one in found):
        return False
    return len({(one.dtype, one.device) for one in found if one is not None}) == 1


def _same_size(other: Node | None, node: Node) -> bool:
    one, like = value(other), value(node)
    return one is not None and like is not None and one.shape == like.shape and of_one_dtype(other, node)


def _is_vector(module: GraphModule, other: Node | None, node: Node) -> bool:
    one, like = constant(module, other), value(node)
    return one is not None and like is not None and one.shape == like.shape[-1:] and of_one_dtype(other, node)


def _behind_views(node: Node) -> tuple[Node, list[Node]]:
    """The last of a chain of views in which each is all the use of the one before, and the chain."""
    views: list[Node] = []
    like = value(node)
    while like is not None and (user := sole_user(node)) is not None:
        seen = value(user)
        if user.target not in _VIEWS or seen is None or not seen.dim() or seen.shape[-1] != like.shape[-1]:
            break
        views.append(user)
        node = user
    return node, views


def _elementwise_after(module: GraphModule, start: Node) -> list[Node]:
    """Operators in the graph's order that follow from one value and plain numbers, element by element."""
    found: list[Node] = []
    like = value(start)
    known = {start}
    waiting = list(start.users)
    heapq.heapify(waiting)
    while like is not None and waiting and len(found) < LIMIT:
        node = heapq.heappop(waiting)
        answer = value(node)
        if node in known or node.target not in _ELEMENTWISE or answer is None or answer.shape != like.shape:
            continue
        if not lossless(like.dtype, answer.dtype) or answer.dtype not in FLOATS or answer.device != like.device:
            continue
        if all(source in known or number(module, source) is not None for source in node.all_input_nodes):
            known.add(node)
            found.append(node)
            for user in node.users:
                heapq.heappush(waiting, user)
    return found


def _compute(module: GraphModule, node: Node, computed: Mapping[Node, Tensor]) -> Tensor:
    """What an operator makes of the points, in float64; casts between floats are rounding, and leave them."""
    known = {one: computed[one] if one in computed else number(module, one) for one in node.all_input_nodes}
    args, kwargs = map_arg(node.args, known.get), map_arg(node.kwargs, known.get)
    if node.target is aten._to_copy.default:
        assert isinstance(args[0], Tensor)
        return args[0]
    assert isinstance(node.target, torch._ops.OpOverload)
    answer = node.target(*args, **kwargs)
    assert isinstance(answer, Tensor)
    return answer


def _named(answer: Tensor, dtype: torch.dtype) -> str | None:
    """The activation that an answer is, up to roundings of its dtype; numbers are often written in single precision.

    Narrow dtypes are held to float32: in them GELU, its polynomial and its approximation by a sigmoid are hard to tell.
    """
    near = 16 * torch.finfo(dtype).eps if dtype is torch.float64 else 4 * torch.finfo(torch.float32).eps
    for name, expected in _EXPECTED.items():
        if bool(((answer - expected).abs() <= near * _POINTS.abs()).all()):
            return name
    return None
