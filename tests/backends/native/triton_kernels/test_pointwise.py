"""Kernels written for pointwise programs, by Triton's interpreter, against the operator; and compiled."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.backends.native.pointwise import OPERATORS, compute_dtype, parse, pointwise
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan
from autotune.backends.native.triton_kernels.pointwise import InputLayout, plan
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.errors import WorkError
from autotune.records.canonical import canonical
from autotune.records.device import Device
from tests.backends.native.triton_kernels.interpreted import interpret

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
NUMBERS = [0.5, 2, -1.25, 3, 0.1]
SPECIAL = [0.0, 1.0, -1.0, 1e-6, -1e-3, 0.3, -0.7, 2.5, -3.5, 7.0, 30.0, -30.0, math.inf, -math.inf, math.nan, 100.0]


def program(*steps: list[Any], dtype: str = "float32") -> str:
    return canonical({"dtype": dtype, "steps": list(steps)})


def planned(text: str, inputs: list[Tensor], *, programmatic_launch: bool = False) -> LaunchPlan:
    layouts = [
        InputLayout(shape=tuple(one.shape), strides=one.stride(), dtype=str(one.dtype).removeprefix("torch."))
        for one in inputs
    ]
    shape = torch.broadcast_shapes(*(one.shape for one in inputs))
    return plan(text, layouts, shape, programmatic_launch=programmatic_launch)


def computed(cases: list[tuple[str, list[Tensor]]], folder: Path) -> list[Tensor]:
    orders = []
    for text, inputs in cases:
        made = planned(text, inputs)
        out = torch.full(
            torch.broadcast_shapes(*(one.shape for one in inputs)), math.nan, dtype=DTYPES[parse(text).dtype]
        )  # fmt: skip
        given = {f"in{index}": one for index, one in enumerate(inputs)} | {"out": out}
        orders.append((made, {name: given[name] for name in made.buffers}))
    return [buffers["out"] for buffers in interpret(orders, folder)]


def operands(name: str, draw: random.Random) -> list[Any]:
    made: list[Any] = []
    for letter in OPERATORS[name].form:
        if letter == "x":
            made.append({"in": len(made)})
        elif letter == "d":
            made.append(draw.choice([*DTYPES]))
        else:
            made.append(draw.choice([1, 2, 3, -1, -2, 0.5, -0.5, 0, 1.7, -2.3, 11, 10, -13]))
    return made


def test_every_operator_means_what_torch_means(tmp_path: Path) -> None:
    cases = []
    for seed, name in enumerate([*OPERATORS, *["pow"] * 20]):
        draw = random.Random(seed)
        x, y = torch.tensor(SPECIAL), torch.tensor(draw.sample(SPECIAL, len(SPECIAL)))
        given = operands(name, draw)
        if name == "clamp":
            given = [{"in": 0}, *draw.choice([[-1.0, 1.0], [None, 0.25], [0.25, None]])]
        cases.append((program([name, *given]), [x, y]))
    for (text, inputs), found in zip(cases, computed(cases, tmp_path), strict=True):
        wide = pointwise([one.double() for one in inputs], text).double()
        narrow = pointwise(inputs, text)
        step = parse(text).steps[0]
        # -inf to a broken power is +inf by C's rules, and not a number here; no model asks.
        skip = step.name == "pow" and not float(str(step.operands[1])).is_integer()
        x = inputs[0]
        for index in range(len(x)):
            if skip and x[index] == -math.inf:
                continue
            got, want, exact = float(found[index]), float(narrow[index]), float(wide[index])
            if not math.isfinite(want) or not math.isfinite(exact):
                # torch's own vectorised fp32 and fp64 differ at infinity, as in GELU: either will do.
                same = got in (want, exact) or (math.isnan(got) and (math.isnan(want) or math.isnan(exact)))
                assert same, f"{text} of {x[index]}: {got}, {want} or {exact}"
            else:
                slack = 2.0**-7 if step.name == "cast" else 1e-6
                assert abs(got - exact) <= slack * abs(exact) + 3e-7 * min(1.0, abs(float(x[index]))), (
                    f"{text} of {x[index]}: {got}, {exact}"
                )


def layouts(draw: random.Random, shape: list[int], dtype: torch.dtype) -> Tensor:
    """A tensor that broadcasts to a shape: missing, repeated, permuted and cut dimensions."""
    mine = [1 if draw.random() < 0.25 else size for size in shape][draw.choice([0, 0, 0, len(shape) // 2]) :]
    order = draw.sample(range(len(mine)), len(mine)) if draw.random() < 0.4 else list(range(len(mine)))
    padded = [mine[i] + (draw.randint(0, 2) if draw.random() < 0.3 else 0) for i in order]
    base = torch.randn(padded) if padded else torch.randn(())
    for place, i in enumerate(order):
        base = base.narrow(place, 0, mine[i])
    return base.permute([order.index(i) for i in range(len(mine))]).to(dtype)


def random_case(seed: int) -> tuple[str, list[Tensor]]:
    """Only operators that keep a difference of one rounding small, so that the bound stays a few roundings."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = [draw.choice([1, 2, 3, 5, 8, 16, 33]) for _ in range(draw.randint(1, 4))]
    inputs = [layouts(draw, shape, draw.choice([*DTYPES.values()])) for _ in range(draw.randint(1, 4))]
    steps: list[list[Any]] = []
    for index in range(draw.randint(1, 6)):

        def operand(index: int = index) -> Any:
            kinds = [{"in": draw.randrange(len(inputs))}, draw.choice(NUMBERS)]
            return draw.choice(kinds[:1] * 3 + kinds[1:] + ([{"step": index - 1}] * 4 if index else []))

        name = draw.choice(["add", "sub", "maximum", "minimum", "tanh", "sigmoid", "relu", "gelu", "silu", "hardswish"])
        steps.append([name, *(operand() for _ in OPERATORS[name].form)])
    return canonical({"dtype": draw.choice([*DTYPES]), "steps": steps}), inputs


def test_random_programs_of_random_layouts_equal_the_operator(tmp_path: Path) -> None:
    cases = [random_case(seed) for seed in range(40)]
    for (text, inputs), found in zip(cases, computed(cases, tmp_path), strict=True):
        assert compute_dtype(inputs) is torch.float32
        exact = pointwise([one.double() for one in inputs], text).double()
        # Up to 6 steps whose answers are below about 20, each a few roundings of fp32, and one of the answer's dtype
        # (which the interpreter cuts off).
        bound = torch.finfo(found.dtype).eps * exact.abs() + 6 * 8 * 2**-24 * 20
        assert bool(((found.double() - exact).abs() <= bound).all()), f"{text} of {[one.shape for one in inputs]}"


def test_neighbouring_dimensions_are_merged_and_repeated_ones_not_read() -> None:
    x, vector = torch.zeros(8, 16, 32), torch.zeros(32)
    code = planned(program(["add", {"in": 0}, {"in": 1}]), [x, vector]).sources[0].code
    assert "tl.load(in0 + at, " in code and "tl.load(in1 + (at % 32), " in code
    channels = planned(program(["add", {"in": 0}, {"in": 1}]), [x, torch.zeros(16, 1)]).sources[0].code
    assert "tl.load(in1 + ((at // 32) % 16), " in channels
    unread = planned(program(["relu", {"in": 1}]), [x, torch.zeros(8, 1, 1)])
    assert unread.buffers == ("in1", "out") and "(at // 512)," in unread.sources[0].code


@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_all_of_it_compiles(programmatic_launch: bool, tmp_path: Path) -> None:
    steps = [[name, *operands(name, random.Random(1))] for name in OPERATORS]
    numbers = [["pow", {"in": 0}, exponent] for exponent in (11, -0.3)]
    chain = [["add", {"step": i}, {"step": i + 1}] for i in range(len(steps) + 1)]
    text, inputs = program(*steps, *numbers, *chain, dtype="bfloat16"), [torch.zeros(7, 40), torch.zeros(40)]
    sources = planned(text, inputs, programmatic_launch=programmatic_launch).sources
    (kernel,) = TritonCache(tmp_path).compile(TritonCompiler(version="3.9.0", capability=(9, 0)), sources)
    assert isinstance(kernel, CompiledCubin), kernel
    assert kernel.read()[0].programmatic_launch == programmatic_launch


@pytest.mark.parametrize(
    ("text", "inputs", "said"),
    [
        (program(["relu", {"in": 0}]), [torch.zeros(2, dtype=torch.float64)], "float64"),
        (program(["relu", {"in": 0}]), [torch.zeros(0, 4)], r"\(0, 4\)"),
        (program(["add", {"in": 0}, 1e39]), [torch.zeros(4)], "1e\\+39"),
        (program(["add", {"in": 0}, {"in": 1}]), [torch.zeros(4)], "1 inputs"),
    ],
)
def test_what_no_kernel_computes_is_refused(text: str, inputs: list[Tensor], said: str) -> None:
    with pytest.raises(WorkError, match=said):
        planned(text, inputs)
    with pytest.raises(WorkError, match="shape"):
        plan(program(["relu", {"in": 0}]), [InputLayout(shape=(3,), strides=(1,), dtype="float16")], (4,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_random_programs_on_a_gpu(tmp_path: Path) -> None:
    device = Device(kind="cuda", name="this GPU", uuid="gpu-0", capability=torch.cuda.get_device_capability(0))
    for seed in range(60):
        text, inputs = random_case(seed)
        given = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").copy_(x) for x in inputs]
        made = planned(text, given)
        kernels = TritonCache(tmp_path).compile(TritonCompiler.find(device), made.sources)
        there = [kernel for kernel in kernels if isinstance(kernel, CompiledCubin)]
        out = torch.full_like(pointwise(given, text), math.nan)
        tensors = {f"in{index}": one for index, one in enumerate(given)} | {"out": out}
        LoadedPlan(there, made.launches, workspace_bytes=0, device=0)({name: tensors[name] for name in made.buffers})
        exact = pointwise([one.double() for one in given], text).double()
        bound = torch.finfo(out.dtype).eps * exact.abs() + 6 * 8 * 2**-24 * 20
        assert bool(((out.double() - exact).abs() <= bound).all()), f"{text} of {[one.shape for one in inputs]}"
