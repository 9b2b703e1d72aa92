"""The plan of a norm, or of a residual addition and a norm, by one kernel."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from autotune.backends.native.triton_kernels.launch_plan import (
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
    power_of_two,
    present,
)
from autotune.records.kernel_problem import OperandType

NormKind = Literal["layer", "rms"]

LARGEST_COLUMNS = 16384
"""The columns of a row of fp32 that 16 warps hold in 32 registers per thread."""

ELEMENTS_A_PROGRAM = 1024
"""Short rows share a program, so that each of 4 warps' threads has 8 elements: one vectorised access of fp16."""

ELEMENTS_A_THREAD = 8
CODE = Path(__file__).with_name("norm_kernels.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormShape:
    """``norm`` of :mod:`autotune.backends.native.operators`, or ``add_norm`` if there is a residual.

    ``x``, residual, sum and answer are contiguous, ``rows`` × ``columns``, of ``dtype``, the answer of ``output`` if
    there is one; ``weight`` and ``bias`` are the dtypes of vectors of length ``columns``, or ``None`` if absent.
    Statistics are fp32.
    """

    rows: int
    columns: int
    dtype: OperandType
    weight: OperandType | None
    bias: OperandType | None
    eps: float
    kind: NormKind
    output: OperandType | None = None
    residual: bool = False
    total: bool = False
    """True if the sum with the residual is an output too; then the norm reads the sum after it was rounded."""
    programmatic_launch: bool = False
    """True if its launch may begin before the launch before it has ended, from sm_90 on."""

    def __post_init__(self) -> None:
        if not 1 <= self.columns <= LARGEST_COLUMNS or not 1 <= self.rows < 2**31:
            raise ValueError(
                f"a norm has 1 to {LARGEST_COLUMNS} columns and at least 1 row, found {self.columns} and {self.rows}"
            )
        if self.total and not self.residual:
            raise ValueError(f"a sum is of x and a residual, found {self}")
        if self.kind not in get_args(NormKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(NormKind))}, found {self.kind!r}")
        for dtype in (self.dtype, self.weight, self.bias, self.output):
            if dtype is not None and dtype not in get_args(OperandType):
                raise ValueError(f"a dtype must be one of {', '.join(get_args(OperandType))}, found {dtype!r}")


def plan(shape: NormShape) -> LaunchPlan:
    """Return the plan; its buffers are x, out, and if they are there weight, bias, residual and total."""
    block_columns = power_of_two(shape.columns)
    # A program per row, unless rows are so short that a few warps would not have enough work.
    block_rows = min(max(1, ELEMENTS_A_PROGRAM // block_columns), power_of_two(shape.rows))
    warps = min(16, max(1, power_of_two(block_rows * block_columns // (32 * ELEMENTS_A_THREAD))))
    optional = {
        "residual": shape.dtype if shape.residual else None, "weight": shape.weight, "bias": shape.bias,
        "total": shape.dtype if shape.total else None,
    }  # fmt: skip
    passed, absent = present({"x": shape.dtype, **optional, "out": shape.output or shape.dtype})
    constants = {
        "COLUMNS": shape.columns, "BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns,
        "LAYER": shape.kind == "layer", "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    source = TritonSource(
        code=CODE.read_text(),
        function="norm",
        parameters=(*passed, ("rows", "i32"), ("eps", "fp32")),
        constants=(*absent, *constants.items()),
        warps=warps,
    )
    buffers = tuple(name for name, _ in passed)
    launch = Launch(
        kernel=0,
        grid=(blocks(shape.rows, block_rows), 1, 1),
        arguments=(*at_names(buffers), ("rows", shape.rows), ("eps", shape.eps)),
    )
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=buffers)
