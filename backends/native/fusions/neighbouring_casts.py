"""Casts beside a norm or a mean become part of it: its kernel reads and writes each type as easily as its own.

A model in half precision with inputs and outputs of fp32 has such casts at its border.
"""

import operator
from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.reading import cast_source, prune, sole_user
from autotune.backends.native.graph import is_view, replace, same_layout, value
from autotune.backends.native.sites import DTYPES

_FUSED = torch.ops.autotune_native
_ADD_NORM = _FUSED.add_norm.default
_DTYPE_AT: Mapping[object, int] = {_FUSED.norm.default: 5, _ADD_NORM: 6, _FUSED.mean_pool2d.default: 1}
"""The operators, each with the position of its argument ``dtype``."""


def absorb_casts(module: GraphModule) -> int:
    """Remove casts before and after norms and means that nothing else reads; returns their number."""
    nodes = [node for node in module.graph.nodes if node.target in _DTYPE_AT]
    return sum(_read(node) + _write(node) for node in nodes)


def _read(node: Node) -> bool:
    """Let an operator read the source of a cast; its answer keeps its type."""
    cast, answer = node.args[0], value(node)
    source = cast_source(cast)
    if source is None or answer is None or not isinstance(cast, Node) or sole_user(cast) is not node:
        return False
    if node.target is _ADD_NORM or not _are_read(source, cast):
        return False
    node.args = (source, *node.args[1 : _DTYPE_AT[node.target]], answer.dtype)
    prune(cast)
    return True


def _write(node: Node) -> bool:
    """Let an operator write the type of a cast of its answer; views may be between them."""
    normed = (user for user in node.users if user.target is operator.getitem and user.args[1] == 1)
    answer = next(normed, None) if node.target is _ADD_NORM else node
    views: list[Node] = []
    end = answer
    while end is not None and (user := sole_user(end)) is not None and _is_view_of(user, end):
        views.append(user)
        end = user
    cast = None if end is None else sole_user(end)
    before, after = value(answer), value(cast)
    if answer is None or cast is None or cast_source(cast) is not end or before is None or after is None:
        return False
    written = [torch.empty_like(before, dtype=after.dtype)]
    for view in views:
        written.append(view.target(written[-1], *view.args[1:], **view.kwargs))  # type: ignore[operator]
    if not _are_read(answer, cast) or not same_layout(written[-1], after):
        return False
    for changed, meta in zip((answer, *views), written, strict=True):
        changed.meta["val"] = meta
    if answer is not node:
        node.meta["val"] = (node.meta["val"][0], written[0])
    node.args = (*node.args[: _DTYPE_AT[node.target]], after.dtype)
    assert end is not None
    replace(cast, end)
    return True


def _is_view_of(node: Node, source: Node) -> bool:
    """Return true if a node is a view of one tensor alone, which is its first argument."""
    is_first = bool(node.args) and node.args[0] is source and not any(isinstance(arg, Node) for arg in node.args[1:])
    return is_view(node) and is_first and node.all_input_nodes == [source] and value(node) is not None


def _are_read(*nodes: Node) -> bool:
    """Return true if kernels read and write the types of these tensors."""
    return all((tensor := value(node)) is not None and tensor.dtype in DTYPES for node in nodes)
