"""What a pointwise program computes, and that what is none is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from autotune.backends.native.pointwise import (
    DTYPES,
    OPERATORS,
    PointwiseProgram,
    PointwiseStep,
    Reference,
    parse,
    pointwise,
)
from autotune.errors import WorkError

IN0, IN1 = Reference(kind="in", index=0), Reference(kind="in", index=1)
EXPECTED: dict[str, Any] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y,
    "neg": lambda x: -x, "exp": torch.exp, "log": torch.log, "sqrt": lambda x: x**0.5, "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: 1 / x, "abs": torch.abs, "tanh": torch.tanh, "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "erf": torch.erf, "relu": lambda x: x.clamp(min=0), "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)), "hardswish": lambda x: x * functional.relu6(x + 3) / 6,
    "hardsigmoid": lambda x: functional.relu6(x + 3) / 6, "maximum": torch.maximum, "minimum": torch.minimum,
    "pow": lambda x, n: x**n, "clamp": lambda x, low, high: x.clamp(low, high),
    "cast": lambda x, dtype: x.to(DTYPES[dtype]), "leaky_relu": functional.leaky_relu,
}  # fmt: skip


def run(program: PointwiseProgram | str, *inputs: Tensor) -> Tensor:
    text = program if isinstance(program, str) else program.text()
    answer: Tensor = torch.ops.autotune_native.pointwise(list(inputs), text)
    return answer


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_computes_what_it_is_called(name: str) -> None:
    x, y = torch.linspace(0.1, 4, 24).reshape(2, 3, 4), torch.linspace(-3, 3, 4)
    given = {"x": [IN0, IN1], "n": [2.5] * 2, "d": ["float16"] * 2, "b": [0.5, 3.0]}
    form = OPERATORS[name].form
    operands: list[Any] = [IN0, *([IN1] if form == "xx" else [given[one][i] for i, one in enumerate(form[1:])])]
    values = [{IN0: x, IN1: y}.get(one, one) if isinstance(one, Reference) else one for one in operands]
    program = PointwiseProgram(dtype="float32", steps=(PointwiseStep(name=name, operands=tuple(operands)),))
    expected = EXPECTED[name](*(one.double() if isinstance(one, Tensor) else one for one in values))
    torch.testing.assert_close(run(program, x, y).double(), expected.double().expand(2, 3, 4), rtol=1e-5, atol=1e-6)


def test_steps_are_computed_wide_and_the_answer_is_rounded_once() -> None:
    steps = (
        PointwiseStep(name="add", operands=(IN0, 2.0**-12)),
        PointwiseStep(name="sub", operands=(Reference(kind="step", index=0), IN0)),
    )
    one = torch.ones(3, dtype=torch.float16)
    assert run(PointwiseProgram(dtype="float16", steps=steps), one).tolist() == [2.0**-12] * 3
    cast = PointwiseStep(name="cast", operands=(Reference(kind="step", index=0), "float16"))
    last = PointwiseStep(name="sub", operands=(Reference(kind="step", index=1), IN0))
    assert run(PointwiseProgram(dtype="float16", steps=(steps[0], cast, last)), one).tolist() == [0.0] * 3
    tiny = PointwiseStep(name="add", operands=(IN0, 1e-12))
    wide = PointwiseProgram(dtype="float64", steps=(tiny, steps[1]))
    assert run(wide, torch.ones(1, dtype=torch.float64)).item() > 0 == run(wide, torch.ones(1)).item()


def test_the_answer_is_contiguous_and_new() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    program = PointwiseProgram(dtype="float32", steps=(PointwiseStep(name="maximum", operands=(IN0, IN0)),))
    answer = run(program, x)
    assert answer.is_contiguous() and answer.data_ptr() != x.data_ptr() and torch.equal(answer, x)
    inputs = (
        [x, torch.randn(5)],
        PointwiseProgram(dtype="float16", steps=(PointwiseStep(name="mul", operands=(IN0, IN1)),)).text(),
    )
    torch.library.opcheck(
        torch.ops.autotune_native.pointwise.default, inputs, test_utils=("test_schema", "test_faketensor")
    )


def test_a_program_is_canonical_text_and_back() -> None:
    steps = (PointwiseStep(name="clamp", operands=(IN0, None, 1.5)), PointwiseStep(name="sub", operands=(1, IN1)))
    program = PointwiseProgram(dtype="bfloat16", steps=steps)
    assert parse(program.text()) == program and program.inputs == 2
    assert program.text() == '{"dtype":"bfloat16","steps":[["clamp",{"in":0},null,1.5],["sub",1,{"in":1}]]}'


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[1]", "nothing", '{"dtype":"float32","steps":[]}', '{"dtype":"int8","steps":[["neg",{"in":0}]]}',
        '{"dtype":"float32","steps":[["neg",{"step":0}]]}', '{"dtype":"float32","steps":[["neg",{"in":-1}]]}',
        '{"dtype":"float32","steps":[["neg",{"in":1}]]}', '{"dtype":"float32","steps":[["add",{"in":0}]]}',
        '{"dtype":"float32","steps":[["sin",{"in":0}]]}', '{"dtype":"float32","steps":[["cast",{"in":0},"int8"]]}',
        '{"dtype":"float32","steps":[["add",{"in":0},true]]}', '{"dtype":"float32","steps":[["pow",2,{"in":0}]]}',
        '{"dtype":"float32","steps":[["add",{"in":0},NaN]]}', '{"dtype":"float32","steps":[["add",{"out":0},1]]}',
    ],
)  # fmt: skip
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(WorkError, match="pointwise program"):
        run(text, torch.ones(2))


def test_inputs_that_are_no_floats_are_refused() -> None:
    program = PointwiseProgram(dtype="float32", steps=(PointwiseStep(name="neg", operands=(IN0,)),))
    with pytest.raises(WorkError, match=r"int64\[2\]"):
        run(program, torch.ones(2, dtype=torch.int64))


@pytest.mark.gpu
def test_numbers_are_captured_in_a_cuda_graph() -> None:
    step = PointwiseStep(name="mul", operands=(IN0, 0.3))
    program, x = PointwiseProgram(dtype="float32", steps=(step,)), torch.randn(8, device="cuda")
    run(program, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run(program, x)
    x.copy_(torch.ones_like(x))
    graph.replay()
    torch.testing.assert_close(answer, torch.full_like(x, 0.3))


class HostTensors(TorchDispatchMode):
    """Counts the tensors that are made from numbers on the host: their copy to a GPU cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operator is torch.ops.aten.lift_fresh.default
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATORS)
def test_no_number_is_copied_from_the_host(name: str) -> None:
    operands = [{"x": 0.3, "n": 2.5, "b": 0.5, "d": "float16"}[letter] for letter in OPERATORS[name].form]
    step = PointwiseStep(name=name, operands=(IN0, *operands[1:]))
    text = PointwiseProgram(dtype="float32", steps=(step,)).text()
    with HostTensors() as made:
        pointwise._init_fn([torch.ones(2)], text)  # the function itself: a mode sees an operator as a whole
    assert made.count == 0
    with HostTensors() as made:
        torch.tensor(0.3)
    assert made.count == 1
