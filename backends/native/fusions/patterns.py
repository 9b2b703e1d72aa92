"""The operators after a product or a convolution that fusions match: sums, views and activations in any spelling."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from autotune.backends.native.fusions.reading import FLOATS, is_elementwise, number, prune, sole_user
from autotune.backends.native.fusions.strides import values_with
from autotune.backends.native.fusions.view_chain import ViewChain, views_after
from autotune.backends.native.graph import aten, constant, is_view, same_layout, value
from autotune.backends.native.operators import ACTIVATIONS
from autotune.backends.native.passes.casts_and_views import lossless
from autotune.backends.native.refusals import operator_name, refuse

LIMIT = 16
"""The most operators of one activation; the longest known spelling, GELU's polynomial, has ten."""

_ELEMENTWISE = {aten.relu.default, aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default}
_ELEMENTWISE |= {aten.erf.default, aten.exp.default, aten.neg.default, aten.reciprocal.default, aten.square.default}
_ELEMENTWISE |= {aten.pow.Tensor_Scalar, aten.rsub.Scalar, aten._to_copy.default}
_ELEMENTWISE |= {aten.relu6.default, aten.hardtanh.default, aten.hardswish.default, aten.hardsigmoid.default}
_ELEMENTWISE |= {aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default}
_ELEMENTWISE |= {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
_ELEMENTWISE |= {aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar}

_FAR = (-1e3, -1e2, 1e2, 1e3)
_POINTS = torch.cat([torch.linspace(-40, 40, 8001, dtype=torch.float64), torch.tensor(_FAR, dtype=torch.float64)])
"""Beyond 40 every activation is a constant or x within half a unit of a float64's last place; it varies on a scale of
1."""

_EXPECTED: Mapping[str, Tensor] = {name: f(_POINTS) for name, f in ACTIVATIONS.items() if name != "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """The operators that can be computed with a product; ``end`` has the answer, ``replaced`` are all nodes.

    ``views`` are all views between the product and the end, ``residual_views`` those before the sum with the residual.
    """

    end: Node
    replaced: tuple[Node, ...]
    bias: Node | None
    residual: Node | None
    activation: str
    views: ViewChain
    residual_views: ViewChain


def epilogue(module: GraphModule, product: Node, bias: Node | None, residual: Node | None, *, rows: bool) -> Epilogue:
    """Match bias, residual and activation after a product, in this order; each but the last has no other user.

    Views between them are looked through. With ``rows`` the kernel writes the product in rows, whose last dimension has
    the features: a vector of constants that is added there is a bias. Without, a residual has no views before it.
    """
    end, replaced = product, [product]
    chain = residual_chain = ViewChain(source=product)
    user: Node | None = None
    while residual is None:
        views = views_after(end)
        viewed, further = views[-1] if views else end, chain.then(views)
        user, other = added(viewed)
        if user is None:
            break
        if rows and bias is None and further.keeps_features and _is_vector(module, other, viewed):
            bias = other
        elif _same_size(other, viewed) and (
            _in_rows(further, other, user) or _put_in_rows(further, other, user)
            if rows
            else not further.views and _same_strides(other, viewed)
        ):
            residual, residual_chain = other, further
        else:
            refuse(user, "its addend is neither a bias nor a residual of the product's shape and layout")
            break
        end, chain = user, further
        replaced += [*views, user]
    views = views_after(end)
    viewed = views[-1] if views else end
    name, parts = activation_of(module, viewed)
    if parts:
        end, chain = parts[-1], chain.then(views)
        replaced += [*views, *parts]
    else:
        for reader, reason in _elementwise_readers(viewed, but=user):
            refuse(reader, reason)
    return Epilogue(
        end=end, replaced=tuple(replaced), bias=bias, residual=residual, activation=name, views=chain,
        residual_views=residual_chain,
    )  # fmt: skip


def added(node: Node) -> tuple[Node | None, Node | None]:
    """Return the sum that is a node's only user, and the other operand."""
    user = sole_user(node)
    if user is None or user.target is not aten.add.Tensor or user.kwargs.get("alpha", 1) != 1:
        return None, None
    others = [one for one in user.args[:2] if one is not node]
    return (user, others[0]) if len(others) == 1 and isinstance(others[0], Node) else (None, None)


def activation_of(module: GraphModule, node: Node) -> tuple[str, list[Node]]:
    """Return the activation that is a node's only use, and the operators that spell it; ``none`` without any.

    It is recognised by its values: elementwise operators that agree with an activation in float64.
    """
    name, parts, following = "none", 0, _elementwise_after(module, node)
    computed: dict[Node, Tensor] = {node: _POINTS}
    meta = value(node)
    assert meta is not None
    for count, operator in enumerate(following, 1):
        computed[operator] = _compute(module, operator, computed)
        inside = set(following[:count])
        closed = all(set(earlier.users) <= inside for earlier in [node, *following[: count - 1]])
        same_dtype = value(operator).dtype == meta.dtype  # type: ignore[union-attr]
        matching = _named(computed[operator], meta.dtype) if closed and same_dtype else None
        if matching is not None:
            name, parts = matching, count
    return name, following[:parts]


def put(fused: Epilogue, new: Node) -> bool:
    """Replace all nodes of an epilogue by a fused operator, if its layout is the same."""
    if not same_layout(value(new), value(fused.end)):
        prune(new)
        return refuse(fused.replaced[0], "the fused operator would write its answer in another layout")
    fused.end.replace_all_uses_with(new)
    for node in reversed(fused.replaced):
        node.graph.erase_node(node)
    return True


def of_one_dtype(*nodes: Node | None) -> bool:
    """Return true if all tensors are dense, of the same floating dtype and on the same device."""
    tensors = [value(node) for node in nodes if node is not None]
    if any(one is None or one.layout is not torch.strided or one.dtype not in FLOATS for one in tensors):
        return False
    return len({(one.dtype, one.device) for one in tensors if one is not None}) == 1


def _same_size(other: Node | None, node: Node) -> bool:
    tensor, meta = value(other), value(node)
    return tensor is not None and meta is not None and tensor.shape == meta.shape and of_one_dtype(other, node)


def _in_rows(views: ViewChain, other: Node | None, total: Node) -> bool:
    """Return true if a kernel that writes the rows of a product can write the sum of it and another tensor.

    A sum with a tensor in another order of memory may be in that order; then the epilogue ends before it.
    """
    size, added = value(views.source), value(other)
    if size is None or added is None or not same_layout(views.replay(size.new_empty(size.shape)), value(total)):
        return False
    rows = views.undo(added)
    return rows is not None and (rows.is_contiguous() or (added.shape == size.shape and not views.permutes))


def _put_in_rows(views: ViewChain, other: Node | None, total: Node) -> bool:
    """Let the sum with images lie in the order of the product's rows, as far as all its readers allow it.

    Images are in this order in channels-last memory, in which convolutions write; in other memory the kernel's module
    copies them, and the stream of residuals that begins with the sum is in this order from there on.
    """
    size, images = value(views.source), value(other)
    if size is None or images is None or images.dim() != 4 or not views.permutes:
        return False
    rows = views.undo(images.new_empty(images.shape).contiguous(memory_format=torch.channels_last))
    written = views.replay(size.new_empty(size.shape))
    if rows is None or not rows.is_contiguous() or written is None or views.undo(images) is None:
        return False
    changed = values_with(total, written)
    if changed is None:
        return refuse(total, "an output or another operator needs the strides of the sum")
    total.meta["val"] = written
    for node, tensor in changed.items():
        node.meta["val"] = tensor
    return True


def _same_strides(other: Node | None, node: Node) -> bool:
    tensor, meta = value(other), value(node)
    return tensor is not None and meta is not None and tensor.stride() == meta.stride()


def _is_vector(module: GraphModule, other: Node | None, node: Node) -> bool:
    tensor, meta = constant(module, other), value(node)
    return tensor is not None and meta is not None and tensor.shape == meta.shape[-1:] and of_one_dtype(other, node)


def _elementwise_readers(end: Node, *, but: Node | None) -> Iterator[tuple[Node, str]]:
    """Yield the elementwise operators that read the end of an epilogue, at once or behind a view, all ``but`` one.

    Each comes with the reason why it is not part of the epilogue.
    """
    many = f", and the product has {len(end.users)} readers" if len(end.users) > 1 else ""
    for user in end.users:
        behind = f" behind {operator_name(user)}" if is_view(user) else ""
        for reader in user.users if behind else [user]:
            if reader is not but and is_elementwise(reader):
                yield reader, f"{operator_name(reader)}{behind} is no activation of an epilogue{many}"


def _elementwise_after(module: GraphModule, start: Node) -> list[Node]:
    """Return the operators, in the graph's order, that compute from one value and plain numbers, element by element."""
    operators: list[Node] = []
    meta = value(start)
    computed = {start}
    waiting = list(start.users)
    heapq.heapify(waiting)
    while meta is not None and waiting and len(operators) < LIMIT:
        node = heapq.heappop(waiting)
        answer = value(node)
        if node in computed or node.target not in _ELEMENTWISE or answer is None or answer.shape != meta.shape:
            continue
        if not lossless(meta.dtype, answer.dtype) or answer.dtype not in FLOATS or answer.device != meta.device:
            continue
        if all(source in computed or number(module, source) is not None for source in node.all_input_nodes):
            computed.add(node)
            operators.append(node)
            for user in node.users:
                heapq.heappush(waiting, user)
    return operators


def _compute(module: GraphModule, node: Node, computed: Mapping[Node, Tensor]) -> Tensor:
    """Compute an operator at the points, in float64; casts between floats only round, and are skipped."""
    operands = {one: computed[one] if one in computed else number(module, one) for one in node.all_input_nodes}
    args, kwargs = map_arg(node.args, operands.get), map_arg(node.kwargs, operands.get)
    if node.target is aten._to_copy.default:
        assert isinstance(args[0], Tensor)
        return args[0]
    assert isinstance(node.target, torch._ops.OpOverload)
    answer = node.target(*args, **kwargs)
    assert isinstance(answer, Tensor)
    return answer


def _named(answer: Tensor, dtype: torch.dtype) -> str | None:
    """Return the activation that equals an answer, up to roundings of its dtype; numbers are often in single precision.

    Narrow dtypes are compared as float32: in them GELU, its polynomial and its approximation by a sigmoid hardly
    differ.
    """
    near = 16 * torch.finfo(dtype).eps if dtype is torch.float64 else 4 * torch.finfo(torch.float32).eps
    for name, expected in _EXPECTED.items():
        # roundings of x, which no bounded activation passes on beyond its bound, and those of the answer
        size = torch.maximum(_POINTS.abs(), expected.abs()).clamp(max=expected.abs().max())
        if bool(((answer - expected).abs() <= near * size).all()):
            return name
    return None
