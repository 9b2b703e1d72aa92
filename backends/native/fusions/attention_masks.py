"""Masks, which are added to attention's scores or replace them: their constant values and their effect on a row.

If every score of a row is masked by minus infinity, a spelled-out softmax is NaN and torch's fused attention 0; if all
are masked by a finite number, the answer is the mean of the values. A match keeps both meanings.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from autotune.backends.native.fusions.reading import FLOATS, arguments, call
from autotune.backends.native.graph import add_constant, aten, constant, is_pure, value

HIDDEN = -1e4
"""If this or less is added to a score, its weight beside an unmasked score is zero: a difference of 745 between scores
is a weight of zero in float64 already, and a softmax of scores in the thousands is of no use."""

ABSORBING = -1e30
"""A score plus this number or less is this number, in bfloat16 and wider types, so that a row of it is uniform."""

LIMIT = 1 << 26
"""The most elements of a mask that is computed while a graph is rewritten: 256 MiB in float32."""

_SAME_VALUES = {aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default}
_SAME_VALUES |= {aten.slice.Tensor, aten.permute.default, aten.transpose.int, aten.clone.default, aten.index.Tensor}
_SAME_VALUES |= {aten.select.int, aten.squeeze.dim, aten.squeeze.dims, aten.embedding.default}
"""Operators whose answer has only values of their first argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A mask: ``factor`` times a tensor is added to scores of ``dims`` dimensions.

    With a ``fill`` this number replaces the scores where the tensor is true (``inverted``: where it is false).
    """

    node: Node
    dims: int
    factor: float = 1.0
    fill: float | None = None
    inverted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """The mask of a fused attention for its terms; ``guard`` is added to its answer, for rows that become NaN."""

    tensor: Node | None = None
    causal: bool = False
    guard: Node | None = None


class Masks:
    """The masks of one graph; those that several attentions share are written once."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._written: dict[object, Mask] = {}
        self._values: dict[Node, Tensor | None] = {}

    def mask(
        self, terms: list[Term], meta: Tensor, lead: tuple[int, int], size: tuple[int, int], at: Node
    ) -> Mask | None:
        """Return the mask for ``terms`` before the node ``at``, or ``None`` if none keeps their meaning.

        ``terms`` are in order from the scores outwards, ``meta`` has the dtype and device, ``lead`` is batch and heads,
        and ``size`` the number of queries and of keys.
        """
        if not terms:
            return Mask()
        if any(term.fill is not None and term.fill > HIDDEN for term in terms):
            return None  # it replaces scores, and their weight is not zero
        key = (tuple(terms), meta.dtype, lead, size)
        if key not in self._written:
            tensors = [self.constant_value(term.node) for term in terms]
            if all(tensor is not None for tensor in tensors):
                pairs = [
                    (tensor.reshape(_four(tensor.shape, term, lead)), term)
                    for tensor, term in zip(tensors, terms, strict=True)
                    if tensor is not None
                ]
                mask = self._constant(pairs, meta, size, at)
            else:
                mask = self._computed(terms, meta, lead, at)
            if mask is None:
                return None
            self._written[key] = mask
        return self._written[key]

    def constant_value(self, node: Node) -> Tensor | None:
        """Return the value of a node that depends on no input; ``None`` for other nodes and for very large values."""
        if node not in self._values:
            self._values[node] = self._computed_value(node)
        return self._values[node]

    def _computed_value(self, node: Node) -> Tensor | None:
        tensor, meta = constant(self._module, node), value(node)
        if tensor is not None:
            return tensor
        if meta is None or not is_pure(node) or meta.numel() > LIMIT:
            return None
        sources = {source: self.constant_value(source) for source in node.all_input_nodes}
        if any(source is None for source in sources.values()):
            return None
        args = map_arg(node.args, lambda source: sources[source])
        kwargs = map_arg(node.kwargs, lambda source: sources[source])
        assert isinstance(node.target, torch._ops.OpOverload)
        answer = node.target(*args, **kwargs)
        return answer if isinstance(answer, Tensor) else None

    def _constant(self, pairs: list[tuple[Tensor, Term]], meta: Tensor, size: tuple[int, int], at: Node) -> Mask | None:
        total = torch.zeros((), dtype=torch.float64, device=pairs[0][0].device)
        for tensor, term in pairs:  # from the scores outwards
            if term.fill is None:
                total = total + tensor.double() * term.factor
            else:
                filled = torch.full((), term.fill, dtype=torch.float64, device=total.device)
                total = torch.where(tensor, total, filled) if term.inverted else torch.where(tensor, filled, total)
        if bool((total.isnan() | (total == math.inf)).any()):
            return None
        if bool((total == 0).all()):
            return Mask()
        if is_causal(total == 0, total <= HIDDEN, size):
            return Mask(causal=True)
        hidden = total <= HIDDEN
        if bool(hidden.all(-1).any()):
            return None
        visible = total == 0
        if bool((visible | hidden).all()):
            tensor = visible.contiguous()
        else:
            tensor = total.clamp(min=torch.finfo(meta.dtype).min).to(meta.dtype).contiguous()
        mask_meta = meta.new_empty(tensor.shape, dtype=tensor.dtype)
        return Mask(tensor=add_constant(self._module, "attention_mask", tensor, mask_meta, before=at))

    def _computed(self, terms: list[Term], meta: Tensor, lead: tuple[int, int], at: Node) -> Mask | None:
        lows = [self._lowest(term, meta.dtype) for term in terms]
        if any(low is None for low in lows):
            return None
        fills = [term.fill for term in terms if term.fill is not None and math.isfinite(term.fill)]
        if fills and sum(low is not None and low <= HIDDEN for low in lows) > 1:
            return None  # a number that replaces a score is not the sum of two masks
        tensor, *others = (self._part(term, meta, lead, at) for term in terms)
        for other in others:
            tensor = call(at, aten.add.Tensor, (tensor, other))
        if sum(low for low in lows if low is not None) >= torch.finfo(meta.dtype).min:
            return Mask(tensor=tensor)
        nothing = call(at, aten.eq.Scalar, (tensor, -math.inf))
        rows = call(at, aten.all.dim, (nothing, -1, True))
        guard = call(at, aten.where.Scalar, (rows, math.nan, -0.0))  # x + -0.0 is x
        return Mask(tensor=tensor, guard=_cast(guard, meta.dtype, at))

    def _lowest(self, term: Term, dtype: torch.dtype) -> float | None:
        """Return the lowest number a term may add; ``None`` if a row of it would have another meaning in ``dtype``.

        In 16 bits a score plus a large number is mostly that number; a fused attention adds in float32, in which the
        score is not lost.
        """
        if term.fill is not None:
            return None if math.isfinite(term.fill) and dtype is torch.float16 else term.fill
        spread, wide = self.spread(term.node), dtype in (torch.float32, torch.float64)
        if spread is None:
            return -math.inf if wide else None
        low = spread.low * term.factor
        if low < torch.finfo(dtype).min or (not wide and low <= HIDDEN and (dtype is torch.float16 or low > ABSORBING)):
            return None
        return -math.inf if spread.infinite else low

    def _part(self, term: Term, meta: Tensor, lead: tuple[int, int], at: Node) -> Node:
        like_mask = value(term.node)
        assert like_mask is not None
        shape = _four(like_mask.shape, term, lead)
        node = term.node if list(like_mask.shape) == shape else call(at, aten.view.default, (term.node, shape))
        if term.fill is not None:
            lowest = torch.finfo(torch.bfloat16).min  # absorbs a score in wider types as well
            filled = term.fill if math.isinf(term.fill) else lowest
            numbers = (0.0, filled) if term.inverted else (filled, 0.0)
            node = call(at, aten.where.Scalar, (node, *numbers))
        elif term.factor != 1:
            node = call(at, aten.mul.Tensor, (node, term.factor))
        return _cast(node, meta.dtype, at)

    def spread(self, node: object) -> "Spread | None":
        """Return the range of a mask's numbers, as far as its operators determine it; else ``None``."""
        if isinstance(node, int | float):
            return Spread.of(torch.tensor(node, dtype=torch.float64))
        meta = value(node)
        if not isinstance(node, Node) or meta is None or meta.is_complex():
            return None
        if meta.dtype is torch.bool:
            return Spread(low=0.0, high=1.0)
        tensor = self.constant_value(node)
        if tensor is not None:
            return Spread.of(tensor.double())
        if node.target in _SAME_VALUES:
            return self.spread(node.args[0])
        if node.target is aten._to_copy.default:
            source = self.spread(node.args[0])
            limit = torch.finfo(meta.dtype).max if meta.dtype in FLOATS else 0.0
            return source if source is not None and max(-source.low, source.high) <= limit else None
        if str(node.target).startswith("aten.where."):
            return _either(self.spread(node.args[1]), self.spread(node.args[2]))
        if node.target is aten.masked_fill.Scalar:
            return _either(self.spread(node.args[0]), self.spread(node.args[2]))
        return self._of_arithmetic(node)

    def _of_arithmetic(self, node: Node) -> "Spread | None":
        if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor):
            return None
        given = arguments(node)
        left, right = self.spread(given["self"]), self.spread(given["other"])
        if given.get("alpha", 1) != 1 or left is None or right is None or right.infinite:
            return None
        if node.target is aten.add.Tensor:
            return Spread(low=left.low + right.low, high=left.high + right.high, infinite=left.infinite)
        if left.infinite:
            return None
        if node.target is aten.sub.Tensor:
            return Spread(low=left.low - right.high, high=left.high - right.low)
        if node.target is aten.rsub.Scalar:
            return Spread(low=right.low - left.high, high=right.high - left.low)
        products = [first * second for first in (left.low, left.high) for second in (right.low, right.high)]
        return Spread(low=min(products), high=max(products))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The range of a mask's finite numbers; ``infinite`` if it may be minus infinity as well."""

    low: float
    high: float
    infinite: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> "Spread | None":
        """Return the range of a tensor; ``None`` if it has a NaN or plus infinity."""
        finite = tensor[tensor.isfinite()]
        infinite = bool((tensor == -math.inf).any())
        if finite.numel() + int((tensor == -math.inf).sum()) < tensor.numel() or not tensor.numel():
            return None
        ends = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
        return cls(low=ends[0], high=ends[1], infinite=infinite)


def _either(left: Spread | None, right: Spread | None) -> Spread | None:
    if left is None or right is None:
        return None
    infinite = left.infinite or right.infinite
    return Spread(low=min(left.low, right.low), high=max(left.high, right.high), infinite=infinite)


def is_causal(visible: Tensor, hidden: Tensor, size: tuple[int, int]) -> bool:
    """Return true if each query sees exactly itself and the keys before it, in each of a batch of square masks."""
    if size[0] != size[1] or tuple(visible.shape[-2:]) != size:
        return False
    lower = torch.ones(size, dtype=torch.bool, device=visible.device).tril()
    return bool(((visible == lower) & (hidden != lower)).all())


def _four(shape: torch.Size, term: Term, lead: tuple[int, int]) -> list[int]:
    """Return a mask's shape for scores of batch, heads, queries and keys."""
    if term.dims == 3 and len(shape) == 3 and shape[0] != 1:
        return [*lead, *shape[1:]]
    return [*[1] * (4 - len(shape)), *shape]


def _cast(node: Node, dtype: torch.dtype, at: Node) -> Node:
    meta = value(node)
    if meta is None or meta.dtype is dtype:
        return node
    return call(at, aten._to_copy.default, (node,), {"dtype": dtype})
