"""Views between a product and the operators after it: reshapes and permutations, each read by the next one alone.

Elementwise operators commute with them, so a kernel computes these operators in the order of its rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from autotune.backends.native.fusions.reading import call, sole_user
from autotune.backends.native.graph import aten, value

_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims}
_PERMUTATIONS = {aten.permute.default, aten.transpose.int, aten.t.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChain:
    """Views in their order, the first of ``source``."""

    source: Node
    views: tuple[Node, ...] = ()

    @property
    def keeps_features(self) -> bool:
        """True if the last dimension stays as it is."""
        for view in self.views:
            before, after = _shape(view.args[0]), _shape(view)
            if not after or after[-1] != before[-1]:
                return False
            if view.target in _PERMUTATIONS and _order(view)[-1] != len(after) - 1:
                return False
        return True

    @property
    def permutes(self) -> bool:
        """True if the order of the elements changes."""
        return any(view.target in _PERMUTATIONS for view in self.views)

    def then(self, views: Sequence[Node]) -> "ViewChain":
        """Return the chain with further views; elementwise operators may be before them."""
        return ViewChain(source=self.source, views=(*self.views, *views))

    def replay(self, tensor: Tensor) -> Tensor | None:
        """Return the views of a tensor of the source's shape; ``None`` if its strides do not allow them."""
        try:
            for view in self.views:
                tensor = view.target(tensor, *view.args[1:], **view.kwargs)  # type: ignore[operator]
        except RuntimeError:
            return None
        return tensor

    def replayed(self, before: Node, node: Node) -> Node:
        """Add the views of a node of the source's shape to the graph."""
        for view in self.views:
            assert isinstance(view.target, torch._ops.OpOverload)
            node = call(before, view.target, (node, *view.args[1:]), view.kwargs)
        return node

    def undo(self, tensor: Tensor) -> Tensor | None:
        """Return a tensor of the last view's shape in the source's shape; ``None`` if its strides do not allow it."""
        try:
            for operator, argument in self._inverses():
                tensor = operator(tensor, argument)
        except RuntimeError:
            return None
        return tensor

    def undone(self, before: Node, node: Node) -> Node:
        """Add the inverse views of a node to the graph; :meth:`undo` returns its value."""
        for operator, argument in self._inverses():
            node = call(before, operator, (node, argument))
        return node

    def _inverses(self) -> list[tuple[torch._ops.OpOverload, list[int]]]:
        inverses: list[tuple[torch._ops.OpOverload, list[int]]] = []
        for view in reversed(self.views):
            if view.target in _PERMUTATIONS:
                order = _order(view)
                inverses.append((aten.permute.default, [order.index(dim) for dim in range(len(order))]))
            elif inverses and inverses[-1][0] is aten.view.default:  # two reshapes in a row are one
                inverses[-1] = (aten.view.default, list(_shape(view.args[0])))
            else:
                inverses.append((aten.view.default, list(_shape(view.args[0]))))
        return inverses


def views_after(node: Node) -> tuple[Node, ...]:
    """Return the chain of views that is a node's only use; each but the last has one reader, too."""
    views: list[Node] = []
    while (user := sole_user(node)) is not None and value(user) is not None:
        if user.target not in _RESHAPES | _PERMUTATIONS or not math.prod(_shape(user)):
            break
        views.append(user)
        node = user
    return tuple(views)


def _shape(node: object) -> tuple[int, ...]:
    tensor = value(node)
    assert tensor is not None
    return tuple(tensor.shape)


def _order(view: Node) -> list[int]:
    """Return the order in which a permutation reads the dimensions, from a tensor whose sizes number them."""
    counting = torch.empty(tuple(range(2, 2 + len(_shape(view)))), device="meta")
    assert isinstance(view.target, torch._ops.OpOverload)
    return [size - 2 for size in view.target(counting, *view.args[1:], **view.kwargs).shape]
