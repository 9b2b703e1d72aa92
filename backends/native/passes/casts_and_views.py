"""A pass that removes casts without effect, and replaces chains of views by one view."""

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
    """Remove casts to the same dtype and back from a wider one, and shorten chains; returns the number of matches."""
    rewritten = 0
    for node in list(module.graph.nodes):
        if node.target is aten._to_copy.default:
            rewritten += _drop_cast(node) or _skip_cast(node)
        else:
            rewritten += any(_skip_view(node, *family) for family in _families())
    return rewritten


def lossless(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Return true if ``wide`` represents every value of ``narrow`` exactly."""
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
    """Remove a cast to the same dtype, or one back to it from a wider one."""
    source = node.args[0]
    while isinstance(source, Node):
        meta = value(source)
        if same_layout(value(node), meta) and may_replace(node, source):
            replace(node, source)
            return True
        behind = value(source.args[0]) if source.target is aten._to_copy.default else None
        if meta is None or behind is None or not lossless(behind.dtype, meta.dtype):
            return False
        source = source.args[0]
    return False


def _skip_cast(node: Node) -> bool:
    """Skip an earlier cast that loses nothing.

    The cast of a float outside an integer's range is undefined, so other casts may lead to another number.
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
    """Skip an earlier view of the same family, if one view of its source is the same tensor."""
    middle, meta = node.args[0] if node.args else None, value(node)
    if node.target not in family or not isinstance(middle, Node) or middle.target not in family or meta is None:
        return False
    return _use_instead(node, operator, (middle.args[0], argument(node, meta.shape)), {})


def _order(node: Node) -> list[int]:
    """Return the product of two permutations in a row, read from a tensor whose sizes number its dimensions."""
    middle = node.args[0]
    assert isinstance(middle, Node)
    meta = value(node)
    assert meta is not None
    counting = torch.empty(tuple(range(2, 2 + meta.dim())), device="meta")
    for view in (middle, node):
        assert isinstance(view.target, torch._ops.OpOverload)
        counting = view.target(counting, *view.args[1:], **view.kwargs)
    return [size - 2 for size in counting.shape]


def _use_instead(
    node: Node, operator: torch._ops.OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> bool:
    """Replace a node by another operator if that returns a tensor of the same layout."""
    source = value(args[0])
    if source is None:
        return False
    try:
        answer = operator(source, *args[1:], **kwargs)
    except RuntimeError:  # torch refuses a view of this shape
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
