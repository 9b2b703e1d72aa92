"""What is added to attention's scores, or put in their place: which of it is known, and what it makes of a row.

A row of which every score is masked by minus infinity is NaN where the softmax is spelled out, and 0 in torch's fused
attention; one that is masked by a finite number is the mean of the values. Both meanings are kept, or nothing matches.
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
"""A score that has this or less added to it counts for nothing beside one that has not: a difference of 745 between
scores is a weight of zero in float64 already, and scores of thousands are no use to a softmax."""

ABSORBING = -1e30
"""What is added to a score and leaves nothing of it, in bfloat16 and wider types, so that a row of it is uniform."""

LIMIT = 1 << 26
"""Elements of a mask that is worked out while a graph is rewritten: 256 MiB in float32."""

_SAME_VALUES = {aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default}
_SAME_VALUES |= {aten.slice.Tensor, aten.permute.default, aten.transpose.int, aten.clone.default, aten.index.Tensor}
_SAME_VALUES |= {aten.select.int, aten.squeeze.dim, aten.squeeze.dims, aten.embedding.default}
"""Operators whose answer has no value that their first argument has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A mask: ``factor`` times a tensor is added to scores of ``dims`` dimensions.

    With a ``fill`` this number stands in the place of scores where the tensor is true (``inverted``: where it is not).
    """

    node: Node
    dims: int
    factor: float = 1.0
    fill: float | None = None
    inverted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What a fused attention is given for its terms; ``guard`` is added to its answer, for rows that become NaN."""

    tensor: Node | None = None
    causal: bool = False
    guard: Node | None = None


class Masks:
    """The masks of one graph; those that several attentions share are written once."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._written: dict[object, Mask] = {}
        self._known: dict[Node, Tensor | None] = {}

    def mask(
        self, terms: list[Term], like: Tensor, lead: tuple[int, int], size: tuple[int, int], at: Node
    ) -> Mask | None:
        """The mask that stands for ``terms`` before the node ``at``, or ``None`` where none keeps their meaning.

        ``terms`` run from the scores outwards, ``like`` has the dtype and device, ``lead`` is batch and heads, and
        ``size`` the number of queries and of keys.
        """
        if not terms:
            return Mask()
        if any(term.fill is not None and term.fill > HIDDEN for term in terms):
            return None  # it stands in the place of scores, and counts
        key = (tuple(terms), like.dtype, lead, size)
        if key not in self._written:
            known = [self.known(term.node) for term in terms]
            if all(tensor is not None for tensor in known):
                pairs = [
                    (tensor.reshape(_four(tensor.shape, term, lead)), term)
                    for tensor, term in zip(known, terms, strict=True)
                    if tensor is not None
                ]
                mask = self._constant(pairs, like, size, at)
            else:
                mask = self._computed(terms, like, lead, at)
            if mask is None:
                return None
            self._written[key] = mask
        return self._written[key]

    def known(self, node: Node) -> Tensor | None:
        """The value of a node that depends on no input, worked out; ``None`` for others and for very large ones."""
        if node not in self._known:
            self._known[node] = self._worked_out(node)
        return self._known[node]

    def _worked_out(self, node: Node) -> Tensor | None:
        tensor, like = constant(self._module, node), value(node)
        if tensor is not None:
            return tensor
        if like is None or not is_pure(node) or like.numel() > LIMIT:
            return None
        sources = {source: self.known(source) for source in node.all_input_nodes}
        if any(source is None for source in sources.values()):
            return None
        args = map_arg(node.args, lambda one: sources[one])
        kwargs = map_arg(node.kwargs, lambda one: sources[one])
        assert isinstance(node.target, torch._ops.OpOverload)
        answer = node.target(*args, **kwargs)
        return answer if isinstance(answer, Tensor) else None

    def _constant(self, pairs: list[tuple[Tensor, Term]], like: Tensor, size: tuple[int, int], at: Node) -> Mask | None:
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
        shown = total == 0
        if bool((shown | hidden).all()):
            tensor = shown.contiguous()
        else:
            tensor = total.clamp(min=torch.finfo(like.dtype).min).to(like.dtype).contiguous()
        meta = like.new_empty(tensor.shape, dtype=tensor.dtype)
        return Mask(tensor=add_constant(self._module, "attention_mask", tensor, meta, before=at))

    def _computed(self, terms: list[Term], like: Tensor, lead: tuple[int, int], at: Node) -> Mask | None:
        lows = [self._lowest(term, like.dtype) for term in terms]
        if any(low is None for low in lows):
            return None
        fills = [term.fill for term in terms if term.fill is not None and math.isfinite(term.fill)]
        if fills and sum(low is not None and low <= HIDDEN for low in lows) > 1:
            return None  # a number that is put in a score's place is not the sum of what is masked twice
        tensor, *others = (self._part(term, like, lead, at) for term in terms)
        for other in others:
            tensor = call(at, aten.add.Tensor, (tensor, other))
        if sum(low for low in lows if low is not None) >= torch.finfo(like.dtype).min:
            return Mask(tensor=tensor)
        nothing = call(at, aten.eq.Scalar, (tensor, -math.inf))
        rows = call(at, aten.all.dim, (nothing, -1, True))
        guard = call(at, aten.where.Scalar, (rows, math.nan, -0.0))  # what -0.0 is added to stays as it is
        return Mask(tensor=tensor, guard=_cast(guard, like.dtype, at))

    def _lowest(self, term: Term, dtype: torch.dtype) -> float | None:
        """The lowest number a term may add; ``None`` where a row of it would mean something else in ``dtype``.

        A score of 16 bits with a large number added is mostly that number; a fused attention adds in float32, where the
        score outlives it.
        """
        if term.fill is not None:
            return None if math.isfinite(term.fill) and dtype is torch.float16 else term.fill
        found, wide = self.spread(term.node), dtype in (torch.float32, torch.float64)
        if found is None:
            return -math.inf if wide else None
        low = found.low * term.factor
        if low < torch.finfo(dtype).min or (not wide and low <= HIDDEN and (dtype is torch.float16 or low > ABSORBING)):
            return None
        return -math.inf if found.infinite else low

    def _part(self, term: Term, like: Tensor, lead: tuple[int, int], at: Node) -> Node:
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
        return _cast(node, like.dtype, at)

    def spread(self, node: object) -> "Spread | None":
        """The numbers that a mask may have, as far as its operators tell."""
        if isinstance(node, int | float):
            return Spread.of(torch.tensor(node, dtype=torch.float64))
        like = value(node)
        if not isinstance(node, Node) or like is None or like.is_complex():
            return None
        if like.dtype is torch.bool:
            return Spread(low=0.0, high=1.0)
        tensor = self.known(node)
        if tensor is not None:
            return Spread.of(tensor.double())
        if node.target in _SAME_VALUES:
            return self.spread(node.args[0])
        if node.target is aten._to_copy.default:
            found = self.spread(node.args[0])
            limit = torch.finfo(like.dtype).max if like.dtype in FLOATS else 0.0
            return found if found is not None and max(-found.low, found.high) <= limit else None
        if str(node.target).startswith("aten.where."):
            return _either(self.spread(node.args[1]), self.spread(node.args[2]))
        if node.target is aten.masked_fill.Scalar:
            return _either(self.spread(node.args[0]), self.spread(node.args[2]))
        return self._of_arithmetic(node)

    def _of_arithmetic(self, node: Node) -> "Spread | None":
        if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor):
            return None
        given = arguments(node)
        one, other = self.spread(given["self"]), self.spread(given["other"])
        if given.get("alpha", 1) != 1 or one is None or other is None or other.infinite:
            return None
        if node.target is aten.add.Tensor:
            return Spread(low=one.low + other.low, high=one.high + other.high, infinite=one.infinite)
        if one.infinite:
            return None
        if node.target is aten.sub.Tensor:
            return Spread(low=one.low - other.high, high=one.high - other.low)
        if node.target is aten.rsub.Scalar:
            return Spread(low=other.low - one.high, high=other.high - one.low)
        products = [first * second for first in (one.low, one.high) for second in (other.low, other.high)]
        return Spread(low=min(products), high=max(products))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Between which finite numbers a mask lies, and whether it may be minus infinity as well."""

    low: float
    high: float
    infinite: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> "Spread | None":
        """What a known tensor says; nothing where it has a NaN or an infinity above."""
        finite = tensor[tensor.isfinite()]
        infinite = bool((tensor == -math.inf).any())
        if finite.numel() + int((tensor == -math.inf).sum()) < tensor.numel() or not tensor.numel():
            return None
        ends = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
        return cls(low=ends[0], high=ends[1], infinite=infinite)


def _either(one: Spread | None, other: Spread | None) -> Spread | None:
    if one is None or other is None:
        return None
    infinite = one.infinite or other.infinite
    return Spread(low=min(one.low, other.low), high=max(one.high, other.high), infinite=infinite)


def is_causal(shown: Tensor, hidden: Tensor, size: tuple[int, int]) -> bool:
    """Whether each query sees itself and what is before it, in every one of a batch of square masks."""
    if size[0] != size[1] or tuple(shown.shape[-2:]) != size:
        return False
    lower = torch.ones(size, dtype=torch.bool, device=shown.device).tril()
    return bool(((shown == lower) & (hidden != lower)).all())


def _four(shape: torch.Size, term: Term, lead: tuple[int, int]) -> list[int]:
    """A mask's shape among scores of batch, heads, queries and keys."""
    if term.dims == 3 and len(shape) == 3 and shape[0] != 1:
        return [*lead, *shape[1:]]
    return [*[1] * (4 - len(shape)), *shape]


def _cast(node: Node, dtype: torch.dtype, at: Node) -> Node:
    like = value(node)
    if like is None or like.dtype is dtype:
        return node
    return call(at, aten._to_copy.default, (node,), {"dtype": dtype})
