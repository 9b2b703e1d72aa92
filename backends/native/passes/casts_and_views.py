"""Casts that lose nothing on their way, and chains of views that one view can stand for."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.graph import Pass, aten, may_replace, put_in_place, replace, same_layout, value

_RESHAPES = {aten.view.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
_PERMUTATIONS = {aten.permute.default, aten.transpose.int, aten.t.default}
_EXPANSIONS = {aten.expand.default}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def casts_and_views(module: GraphModule) -> int:
    """Take out casts to the same dtype and back from a wider one, and shorten chains; returns how many."""
    rewritten = 0
    for node in list(module.graph.nodes):
        if node.target is aten._to_copy.default:
            rewritten += _drop_cast(node) or _skip_cast(node)
        else:
            rewritten += any(_skip_view(node, *family) for family in _families())
    return rewritten


def lossless(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every value of ``narrow`` has its own in ``wide``, exactly."""
    if narrow is torch.bool:
        return wide in _FLOATS + _INTEGERS + (torch.bool,)
    if narrow in _INTEGERS and wide in _INTEGERS:
        return torch.iinfo(wide).min <= torch.iinfo(narrow).min and torch.iinfo(narrow).max <= torch.iinfo(wide).max
    if narrow in _INTEGERS and wide in _FLOATS:  # eps is 2 to the power of 1 - p, and p bits hold integers up to 2^p
        return -torch.iinfo(narrow).min <= 2 / torch.finfo(wide).eps >= torch.iinfo(narrow).max
    if narrow in _FLOATS and wide in _FLOATS:
        small, large = torch.finfo(narrow), torch.finfo(wide)
        return large.eps <= small.eps and large.tiny <= small.tiny and large.max >= small.max
    return False


def _drop_cast(node: Node) -> bool:
    """Take a cast to the same dtype out, or one that comes back to it after a wider one."""
    source = node.args[0]
    while isinstance(source, Node):
        like = value(source)
        if same_layout(value(node), like) and may_replace(node, source):
            replace(node, source)
            return True
        behind = value(source.args[0]) if source.target is aten._to_copy.default else None
        if like is None or behind is None or not lossless(behind.dtype, like.dtype):
            return False
        source = source.args[0]
    return False


def _skip_cast(node: Node) -> bool:
    """Cast from what lies before a cast that lost nothing.

    A float outside an integer's range has no defined value there, so that another way may lead to another number.
    """
    middle = node.args[0]
    if not isinstance(middle, Node) or middle.target is not aten._to_copy.default:
        return False
    source, between, after = value(middle.args[0]), value(middle), value(node)
    if source is None or between is None or after is None or not lossless(source.dtype, between.dtype):
        return False
    if source.device != after.device or (source.is_floating_point() and not after.is_floating_point()):
        return False
    kwargs = {**node.kwargs, "dtype": after.dtype}
    return _use_instead(node, aten._to_copy.default, (middle.args[0],), kwargs)


def _families() -> tuple[tuple[set[torch._ops.OpOverload], torch._ops.OpOverload, Callable[..., object]], ...]:
    return (
        (_RESHAPES, aten.view.default, lambda node, shape: list(shape)),
        (_PERMUTATIONS, aten.permute.default, lambda node, shape: _order(node)),
        (_EXPANSIONS, aten.expand.default, lambda node, shape: list(shape)),
    )


def _skip_view(
    node: Node,
    family: set[torch._ops.OpOverload],
    operator: torch._ops.OpOverload,
    argument: Callable[[Node, torch.Size], object],
) -> bool:
    """Look through a view of the same family, where one view of what lies before it gives the same tensor."""
    middle, like = node.args[0] if node.args else None, value(node)
    if node.target not in family or not isinstance(middle, Node) or middle.target not in family or like is None:
        return False
    return _use_instead(node, operator, (middle.args[0], argument(node, like.shape)), {})


def _order(node: Node) -> list[int]:
    """The order of dimensions that two permutations in a row amount to, read off a tensor that counts its own."""
    middle = node.args[0]
    assert isinstance(middle, Node)
    like = value(node)
    assert like is not None
    counting = torch.empty(tuple(range(2, 2 + like.dim())), device="meta")
    for one in (middle, node):
        assert isinstance(one.target, torch._ops.OpOverload)
        counting = one.target(counting, *one.args[1:], **one.kwargs)
    return [size - 2 for size in counting.shape]


def _use_instead(
    node: Node, operator: torch._ops.OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> bool:
    """Put another operator in a node's place if it gives a tensor of the very same layout."""
    source = value(args[0])
    if source is None:
        return False
    try:
        answer = operator(source, *args[1:], **kwargs)
    except RuntimeError:  # no view of such a shape; which shapes have one is torch's to say
        return False
    if not isinstance(answer, Tensor) or not same_layout(answer, value(node)):
        return False
    with node.graph.inserting_before(node):
        new = node.graph.call_function(operator, args, dict(kwargs))  # type: ignore[arg-type]
    new.meta["val"] = answer
    put_in_place(new, node)
    replace(node, new)
    return True


CASTS_AND_VIEWS = Pass(name="casts_and_views", apply=casts_and_views)
