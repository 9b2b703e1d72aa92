"""Layers of drawn models that the operators of one operand do not cover: joins, constants, inner graphs, writes."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch._higher_order_ops.scan import scan as torch_scan
from torch._higher_order_ops.while_loop import while_loop

from autotune.programs.drawn.operators import Call, Shape

JOINS = ("add", "subtract", "multiply", "append", "weigh")
INNER = ("autocast", "no_grad", "cond", "while_loop", "scan")
NARROW: Mapping[str, torch.dtype | None] = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
WRITES = ("add_", "lerp_", "copy_", "item", "plain")


def joined(kind: str, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Join two values: elementwise if their shapes are equal, otherwise by the mean of the other."""
    other = other.to(x.dtype)
    if other.shape != x.shape:
        other = other.mean().expand(x.shape)
    if kind == "append":
        return torch.cat([x, other], dim=1)
    if kind == "weigh":
        return x * other.sigmoid()
    if kind == "add":
        return x + other
    return x - other if kind == "subtract" else x * other


def _inner(
    shapes: list[Shape],
    how: str,
    number: float,
    operator: str,
    narrow: str = "",
    literal: list[float] | None = None,
) -> nn.Module:
    def block(x: torch.Tensor) -> torch.Tensor:
        if narrow:  # a product, which autocast runs in a narrower type
            product: torch.Tensor = torch.matmul(x, x.new_ones(x.shape[-1], x.shape[-1])).to(x.dtype) * number
            return product
        value: torch.Tensor = getattr(x, operator)() * number
        return value if literal is None else value * torch.tensor(literal)

    def within(x: torch.Tensor) -> torch.Tensor:
        if how == "autocast":
            with torch.autocast("cpu", dtype=NARROW[narrow], enabled=bool(narrow)):
                return block(x)
        with torch.set_grad_enabled(False):
            return block(x)

    def cond(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, block, torch.cos, (x,))  # type: ignore[no-any-return]

    def loop(x: torch.Tensor) -> torch.Tensor:
        def again(count: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return count < 3

        def body(count: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return count + 1, block(value)

        start = (torch.zeros((), dtype=torch.int64), x)
        result: tuple[torch.Tensor, torch.Tensor] = while_loop(again, body, start)  # type: ignore[no-untyped-call]
        return result[1]

    def scan(x: torch.Tensor) -> torch.Tensor:
        def combine(carry: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value = block(carry) + part
            return value, value.clone()

        result: tuple[torch.Tensor, torch.Tensor] = torch_scan(combine, torch.zeros_like(x[0]), x)
        return result[1]

    return Call({"cond": cond, "while_loop": loop, "scan": scan}.get(how, within))


def _number(shapes: list[Shape], how: str, value: float) -> nn.Module:
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "times": lambda x: x * value,
        "plus": lambda x: x + value,
        "clamp": lambda x: x.clamp(max=value),
        "full": lambda x: x + torch.full((x.shape[-1],), value),
        "power": lambda x: x.abs() ** value,
        "addcmul": lambda x: torch.addcmul(x, x, x, value=value),
        "where": lambda x: torch.where(x > value, x, x * 0.5),
        "add_alpha": lambda x: torch.add(x, x.sin(), alpha=value),
    }
    return Call(ways[how])


NUMBERS = ("times", "plus", "clamp", "full", "power", "addcmul", "where", "add_alpha")


def _literal(shapes: list[Shape], values: list[float]) -> nn.Module:
    return Call(lambda x: x * torch.tensor(values[0]) + torch.tensor(values).sum())


class Weighted(nn.Module):
    """A product with a matrix: a weight of its own, or a second operand of the same shape."""

    def __init__(self, shapes: list[Shape]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shapes[0][-1], shapes[0][-1]) * 0.3) if len(shapes) == 1 else None

    def forward(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply."""
        own = weight if self.weight is None else self.weight
        if own is None:
            raise TypeError("neither a weight nor a second operand")
        return x @ own


class Tied(nn.Module):
    """Two products, by one weight or by two."""

    def __init__(self, shape: Shape, *, shared: bool) -> None:
        super().__init__()
        self.first = nn.Linear(shape[-1], shape[-1], bias=False)
        self.second = nn.Linear(shape[-1], shape[-1], bias=False)
        if shared:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply twice."""
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


class Writer(nn.Module):
    """Reads a buffer, and writes into it if ``writes`` is true."""

    def __init__(self, shape: Shape, *, how: str, writes: bool) -> None:
        super().__init__()
        self.how, self.writes = how, writes
        self.register_buffer("level", torch.rand(shape[-1]))
        self.level: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the level, which a write has moved before or moves after."""
        level: torch.Tensor = self.level
        answer = x + level
        if self.writes:
            now = x.detach().mean(dim=tuple(range(x.dim() - 1))) + 0.5 * level + 1  # never the same twice
            if self.how == "plain":
                self.level = level * 0.5 + now
            elif self.how == "item":
                level[0] = now[0]
            elif self.how == "lerp_":
                level.lerp_(now, 0.01)
            else:
                getattr(level, self.how)(now)
        return answer


LAYERS: Mapping[str, Callable[..., nn.Module]] = {
    "join": lambda shapes, kind: Call(lambda x, other: joined(kind, x, other)),
    "embedding": lambda shapes, size, rows=12: nn.Embedding(rows, size),
    "inner": _inner,
    "number": _number,
    "literal": _literal,
    "weighted": lambda shapes, size: Weighted(shapes),
    "tied": lambda shapes, shared: Tied(shapes[0], shared=shared),
    "writer": lambda shapes, how, writes: Writer(shapes[0], how=how, writes=writes),
}
"""By the operator of a step; each takes the shapes of its operands, and its attributes as keywords."""
