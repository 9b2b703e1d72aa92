"""Graphs to simplify, and what must hold of them afterwards."""

import operator
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from autotune.backends.native.graph import Pass, Simplified, simplify
from autotune.model.precision import flat_module

aten = torch.ops.aten
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, 1.0, -2.5)
"""Values on which identities of real numbers fail among floats."""

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.bool)


class Written(nn.Module):
    """A module whose forward is a function of the inputs and of its constants."""

    def __init__(self, function: Callable[..., Any], **constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in constants.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        answer = self.function(self, *inputs)
        return answer if isinstance(answer, tuple) else (answer,)


def program_of(function: Callable[..., Any], *inputs: Tensor, **constants: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(Written(function, **constants).eval(), inputs)


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor; every NaN as one and the same."""
    if not tensor.is_floating_point():
        return tensor
    plain = torch.where(tensor.isnan(), torch.full_like(tensor, float("nan")), tensor).contiguous()
    return plain.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def shared(tensors: Sequence[Tensor]) -> set[tuple[int, int]]:
    """Which pairs of tensors lie in the same memory."""
    where = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return {(i, j) for i, j in combinations(range(len(where)), 2) if where[i] == where[j]}


def check(program: ExportedProgram, passes: Sequence[Pass], *inputs: Tensor) -> Simplified:
    """Simplify, and require the same bits, dtypes, strides and no memory that outputs newly share with anything."""
    originals = [*program.state_dict.values(), *(t for t in program.constants.values() if isinstance(t, Tensor))]
    kept = [tensor.clone() for tensor in originals]
    done = simplify(program, passes)
    with torch.no_grad():
        torch.manual_seed(0)
        before = flat_module(program)(*inputs)
        torch.manual_seed(0)
        after = done.module(*inputs)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(bits(one), bits(other))
    assert shared([*after, *inputs, *originals]) <= shared([*before, *inputs, *originals])
    assert all(torch.equal(bits(one), bits(other)) for one, other in zip(kept, originals, strict=True))
    assert done.nodes_after == len(done.module.graph.nodes) <= done.nodes_before
    return done


def operators(done: Simplified) -> list[str]:
    """The operators that are left, in their order, without what checks the dtypes of inputs."""
    silent = (operator.getitem, aten._assert_tensor_metadata.default)
    nodes = [node for node in done.module.graph.nodes if node.op == "call_function"]
    return [str(node.target).removeprefix("aten.") for node in nodes if node.target not in silent]


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    size = shape if shape is not None else tuple(draw(st.lists(st.integers(1, 3), min_size=0, max_size=3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    numbers = torch.randn(size, generator=generator) * 3
    if dtype.is_floating_point and draw(st.booleans()):
        numbers = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), size, generator=generator)]
    if draw(st.integers(0, 3)) == 0:
        numbers = torch.full(size, draw(st.sampled_from([0.0, -0.0, 1.0])))
    return numbers.to(dtype)


SCALARS = st.sampled_from([0, 1, 0.0, -0.0, 1.0, 1 + 1e-12, 2, -1.5, True])
Step = Callable[[Any, list[Tensor]], Tensor]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """One operator on values made before; it raises where they do not fit together."""
    i, j, n = draw(st.integers(0, 99)), draw(st.integers(0, 99)), draw(st.integers(0, 99))
    scalar, dtype = draw(SCALARS), draw(st.sampled_from(DTYPES))
    kind = draw(
        st.sampled_from(["scalar", "pair", "unary", "cast", "view", "view", "reduce", "matmul", "made", "conv"])
    )

    def apply(module: Any, values: list[Tensor]) -> Tensor:
        x, y = values[i % len(values)], values[j % len(values)]
        dim = n % max(x.dim(), 1)
        size = list(x.shape)
        some: dict[str, list[Callable[[], Tensor]]] = {
            "scalar": [
                lambda: x * scalar, lambda: scalar * x, lambda: x + scalar, lambda: x - scalar, lambda: scalar + x,
                lambda: torch.add(x, scalar, alpha=2), lambda: scalar - x,
                lambda: x / (scalar or 1), lambda: torch.div(x, scalar or 1, rounding_mode="floor"),
            ],
            "pair": [lambda: x * y, lambda: x + y, lambda: x - y, lambda: x / y, lambda: torch.maximum(x, y)],
            "unary": [
                lambda: x.relu(), lambda: x.neg(), lambda: x.clone(), lambda: x.abs(),
                lambda: nn.functional.dropout(x, 0.5, training=False), lambda: x.clone().add_(1),
            ],
            "cast": [lambda: x.to(dtype), lambda: x.to(dtype).to(x.dtype), lambda: x.to(dtype).double(), x.float],
            "view": [
                lambda: x.transpose(0, -1), lambda: x.transpose(0, -1).transpose(0, -1), lambda: x.reshape(-1),
                lambda: x.reshape(size), lambda: x.expand(size), lambda: x.unsqueeze(dim).squeeze(dim),
                lambda: x.expand(2, *size), lambda: x.permute(*reversed(range(x.dim()))), lambda: x[: max(size[0], 1)],
                lambda: x.expand(2, *size).contiguous(), lambda: x.reshape(1, -1).reshape(-1, 1), lambda: x.squeeze(),
                lambda: x[1:], lambda: x.select(dim, 0), lambda: x.unsqueeze(0).unsqueeze(-1), lambda: x.mT,
            ],
            "reduce": [lambda: x.sum(), lambda: x.sum(dim), lambda: x.float().mean(dim), lambda: x.amax(dim)],
            "matmul": [lambda: x.mT @ x, lambda: x.float() @ x.float().mT],
            "made": [
                lambda: torch.zeros(size), lambda: torch.ones(size, dtype=x.dtype), lambda: torch.arange(3.0),
                lambda: torch.full(size, float(scalar)), lambda: torch.tensor([1.0, -0.0]),
                lambda: torch.zeros(2, 1, 1),
            ],
            "conv": [
                lambda: module.norm(module.conv(nn.functional.pad(x.float().reshape(1, 1, -1), (0, 2)))),
                lambda: module.depthwise(nn.functional.pad(x.float().reshape(1, 2, 1, -1), (2, 1, 0, 1))),
                lambda: nn.functional.relu6(module.depthwise(x.float().reshape(1, 2, -1, 1)) + scalar),
            ],
        }  # fmt: skip
        chosen = some[kind][n % len(some[kind])]
        return chosen()

    return apply


@st.composite
def graphs(draw: st.DrawFn) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """A random graph with its inputs: shared values, constants and several outputs."""
    inputs = tuple(draw(st.lists(tensors(), min_size=1, max_size=2)))
    constant = draw(tensors())
    program = draw(st.lists(st.tuples(steps(), st.booleans()), min_size=3, max_size=10))
    chosen = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2)
            self.depthwise = nn.Conv2d(2, 2, (2, 3), padding=1, groups=2)
            self.register_buffer("constant", constant)

        def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
            values = [*given, self.get_buffer("constant")]
            for step, twice in fitting:
                values += [step(self, values) for _ in range(1 + twice)]
            made = [*values[len(given) + 1 :], values[0].clone()]
            # What an output shares memory with, passes leave alone; a stack is new memory with the same bits.
            return (*(made[one % len(made)] for one in chosen), *(torch.stack([one, one]) for one in made))

    torch.manual_seed(0)
    module = Random().eval()
    fitting: list[tuple[Step, bool]] = []
    with torch.no_grad():
        for step in program:  # found out beforehand: a trace keeps operators that raised
            fitting.append(step)
            try:
                module(*inputs)
            except (RuntimeError, IndexError, TypeError):
                fitting.pop()
        return torch.export.export(module, inputs), inputs
