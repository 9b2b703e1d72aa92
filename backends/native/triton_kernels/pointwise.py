"""The plan of a pointwise program: Triton code generated for it, as one kernel that reads each input once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.backends.native.pointwise import DTYPES, Operand, PointwiseStep, Reference, parse
from autotune.backends.native.triton_kernels.launch_plan import (
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
    power_of_two,
)
from autotune.errors import WorkError

FUNCTIONS = Path(__file__).with_name("pointwise_functions.py")

TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""Triton's names for pointers; torch computes float64, since its elementary functions are exact enough for it."""

BLOCK, WARPS = 1024, 4
MOST_MULTIPLICATIONS = 8
"""Whole exponents up to this are repeated multiplications, in fp32 exact within about as many roundings."""

LARGEST = 3.4028234663852886e38
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
CALLS = {
    "exp": "tl.exp", "log": "tl.log", "sqrt": "tl.sqrt", "abs": "tl.abs", "erf": "tl.erf", "tanh": "tanh",
    "sigmoid": "sigmoid", "relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "hardsigmoid": "hardsigmoid",
    "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
FORMS = {
    "neg": "-{0}", "rsqrt": "1.0 / tl.sqrt({0})", "reciprocal": "1.0 / {0}", "silu": "{0} * sigmoid({0})",
    "hardswish": "{0} * hardsigmoid({0})", "leaky_relu": "tl.where({0} > 0.0, {0}, {0} * {1})",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLayout:
    """An input's shape, strides in elements, and dtype as torch names it; it starts at the tensor's address."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.strides) or any(stride < 0 for stride in self.strides):
            raise ValueError(f"shape {self.shape} needs as many strides, none negative, found {self.strides}")


def plan(
    program: str, inputs: Sequence[InputLayout], shape: Sequence[int], *, programmatic_launch: bool = False
) -> LaunchPlan:
    """Return the plan of ``autotune_native.pointwise(inputs, program)``, whose answer is contiguous of ``shape``.

    With ``programmatic_launch`` a launch may begin before the launch before it has ended, from sm_90 on.

    The buffers are out, and in0, in1, … of the inputs that the program reads. Raises WorkError for a program with
    float64, a number that fp32 cannot represent, an empty answer, or inputs that do not broadcast to its shape.
    """
    parsed = parse(program)
    size = 1
    for length in shape:
        size *= length
    dtypes = {parsed.dtype, *(layout.dtype for layout in inputs)}
    if not dtypes <= set(TYPES) or not 0 < size < 2**31 * BLOCK or len(inputs) < parsed.inputs:
        raise _unsupported(f"{len(inputs)} inputs of {', '.join(sorted(dtypes))}, shape {tuple(shape)}")
    used = sorted({
        operand.index for step in parsed.steps for operand in step.operands
        if isinstance(operand, Reference) and operand.kind == "in"
    })  # fmt: skip
    wide = size >= 2**31 - BLOCK or any(_reach(inputs[i], shape) >= 2**31 for i in used)
    block = min(BLOCK, max(32 * WARPS, power_of_two(size)))
    lines = ["gdc_launch_dependents()", "gdc_wait()"] if programmatic_launch else []
    lines += [
        f"at = tl.program_id(0){'.to(tl.int64)' if wide else ''} * {block} + tl.arange(0, {block})",
        f"inside = at < {size}",
    ]
    for index in used:
        offset = _offset(inputs[index], tuple(shape))
        lines.append(f"in_{index} = tl.load(in{index} + {offset}, mask=inside, other=0.0).to(tl.float32)")
    lines += [f"step_{index} = {_expression(step, block)}" for index, step in enumerate(parsed.steps)]
    lines.append(f"tl.store(out + at, step_{len(parsed.steps) - 1}.to({_triton(parsed.dtype)}), mask=inside)")
    buffers = (*(f"in{index}" for index in used), "out")
    body = "\n    ".join(lines)
    kernel = f"\n\n@triton.jit\ndef pointwise({', '.join(buffers)}):\n    {body}\n"
    pointers = {**{f"in{index}": inputs[index].dtype for index in used}, "out": parsed.dtype}
    source = TritonSource(
        code=FUNCTIONS.read_text() + kernel, function="pointwise",
        parameters=tuple((name, f"*{TYPES[dtype]}") for name, dtype in pointers.items()), constants=(), warps=WARPS,
    )  # fmt: skip
    launch = Launch(kernel=0, grid=(blocks(size, block), 1, 1), arguments=at_names(buffers))
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=buffers)


def _offset(layout: InputLayout, shape: tuple[int, ...]) -> str:
    """Return the offset of an input's element for the answer's element ``at``; neighbouring dimensions are merged."""
    merged: list[tuple[int, int, int]] = []  # size, stride, and how many elements of the answer one step spans
    span = 1
    for length, stride in reversed(_aligned(layout, shape)):
        if merged and stride == merged[-1][1] * merged[-1][0]:
            merged[-1] = (merged[-1][0] * length, *merged[-1][1:])
        elif length > 1:
            merged.append((length, stride, span))
        span *= length
    terms = []
    for length, stride, step in merged:
        if stride:
            index = "at" if step == 1 else f"(at // {step})"
            index = index if length * step == span else f"({index} % {length})"
            terms.append(index if stride == 1 else f"{index} * {stride}")
    return " + ".join(terms) or "at * 0"


def _aligned(layout: InputLayout, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the answer's sizes with an input's strides along them, 0 if it is repeated."""
    missing = len(shape) - len(layout.shape)
    if missing < 0 or any(mine not in (1, length) for mine, length in zip(layout.shape, shape[missing:], strict=True)):
        raise _unsupported(f"an input of shape {layout.shape} for an answer of shape {shape}")
    strides = [0] * missing + [
        0 if mine == 1 else stride for mine, stride in zip(layout.shape, layout.strides, strict=True)
    ]
    return list(zip(shape, strides, strict=True))


def _reach(layout: InputLayout, shape: Sequence[int]) -> int:
    return sum((length - 1) * stride for length, stride in _aligned(layout, tuple(shape)))


def _expression(step: PointwiseStep, block: int) -> str:
    name, operands = step.name, step.operands
    if name == "cast":
        return f"{_value(operands[0], block)}.to({_triton(str(operands[1]))}).to(tl.float32)"
    if name == "pow":
        return _power(_value(operands[0], block), _number(operands[1]))
    if name == "clamp":
        answer = _value(operands[0], block)
        for function, bound in (("maximum", operands[1]), ("minimum", operands[2])):
            answer = answer if bound is None else f"{function}({answer}, {_value(bound, block)})"
        return answer
    values = [_value(operand, block) for operand in operands]
    if name in INFIX:
        return f" {INFIX[name]} ".join(values)
    return FORMS[name].format(*values) if name in FORMS else f"{CALLS[name]}({', '.join(values)})"


def _power(base: str, exponent: float) -> str:
    if exponent in (0.5, -0.5):
        return f"tl.sqrt({base})" if exponent > 0 else f"1.0 / tl.sqrt({base})"
    whole = exponent.is_integer()
    if whole and 0 < abs(exponent) <= MOST_MULTIPLICATIONS:
        product = " * ".join([base] * int(abs(exponent)))
        return product if exponent > 0 else f"1.0 / ({product})"
    if exponent == 0:
        return f"tl.full({base}.shape, 1.0, tl.float32)"
    return f"power({base}, {exponent!r}, {whole}, {whole and exponent % 2 == 1})"


def _value(operand: Operand, block: int) -> str:
    if isinstance(operand, Reference):
        return f"{operand.kind}_{operand.index}"
    return f"tl.full(({block},), {_number(operand)!r}, tl.float32)"


def _number(operand: Operand) -> float:
    number = float(operand) if isinstance(operand, int | float) else float("nan")
    if not abs(number) <= LARGEST:
        raise _unsupported(f"the number {operand!r}")
    return number


def _triton(dtype: str) -> str:
    if dtype not in DTYPES:
        raise _unsupported(f"a cast to {dtype}")
    return f"tl.{dtype}"


def _unsupported(found: str) -> WorkError:
    return WorkError(
        "a Triton kernel for a pointwise program", found=found,
        expected=f"inputs of {', '.join(TYPES)} that broadcast to an answer with elements, and numbers of float32",
        run="the program by torch, which computes any",
    )  # fmt: skip
