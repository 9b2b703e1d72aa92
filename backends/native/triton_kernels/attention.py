"""The plan of scaled dot product attention, with or without a mask, by one kernel."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autotune.backends.native.triton_kernels.launch_plan import (
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
    power_of_two,
)

MOST_DEPTH, LEAST_DEPTH = 128, 16
"""Elements of a head: a larger tile leaves no registers, and for a smaller one there is no instruction."""

BLOCK_ROWS, WARPS = 64, 4
"""Queries of a program: the fewest that one instruction of four warps takes."""

NARROW, SHORT, LONG = 32, 64, 128
"""Keys of a step: if the last step would be mostly empty and the work takes the time, if keys are few, and else."""

MANY = 1024
"""Programs from which on an attention spends its time on its work, and less on waiting for the first bytes."""

STAGES = 3
MOST_HEADS = 65535
"""The most heads of all batches together: CUDA's limit of a grid."""

CODE = Path(__file__).with_name("attention_kernels.py")
Strides = tuple[int, ...]
HalfType = Literal["fp16", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Attention of ``batch`` × ``heads``: ``rows`` queries, ``columns`` keys and values, ``depth`` elements of each.

    Strides are of batch, head and row in elements; elements of a row lie side by side. A mask has strides of batch,
    head, row and column (0 if it is repeated), and is ``bool``: true if a key is seen, or of the type of the
    queries, which is added to the scores.
    """

    batch: int
    heads: int
    rows: int
    columns: int
    depth: int
    dtype: HalfType
    scale: float
    q: Strides
    k: Strides
    v: Strides
    mask: Strides | None = None
    mask_dtype: Literal["bool", "fp16", "bf16", "fp32"] = "bool"
    causal: bool = False
    programmatic_launch: bool = False

    def __post_init__(self) -> None:
        sizes = (self.batch, self.heads, self.rows, self.columns)
        if min(sizes) < 1 or not LEAST_DEPTH <= self.depth <= MOST_DEPTH or self.batch * self.heads > MOST_HEADS:
            raise ValueError(
                f"attention has {LEAST_DEPTH} to {MOST_DEPTH} elements a head, at most {MOST_HEADS} heads in all, and "
                f"no empty side, found {self}"
            )
        if self.dtype not in ("fp16", "bf16") or not 0 < self.scale < math.inf:
            raise ValueError(f"attention is of fp16 or bf16, with a positive scale, found {self}")
        strides = [self.q, self.k, self.v, *([] if self.mask is None else [self.mask])]
        if [len(stride) for stride in strides] != [3, 3, 3, 4][: len(strides)] or min(map(min, strides)) < 0:
            raise ValueError(f"strides are of batch, head, row, of a mask of columns too, none negative, found {self}")
        if self.causal and (self.mask is not None or self.rows != self.columns):
            raise ValueError(f"a causal attention has as many queries as keys, and no mask besides, found {self}")


def plan(shape: AttentionShape) -> LaunchPlan:
    """Return the plan; its buffers are q, k, v, out (batch, row, head, depth in this order) and an optional mask."""
    types = {"bool": "i1", "fp16": "fp16", "bf16": "bf16", "fp32": "fp32"}
    mask = {} if shape.mask is None else {"mask": f"*{types[shape.mask_dtype]}"}
    passed = {**{name: f"*{shape.dtype}" for name in "qkv"}, **mask, "out": f"*{shape.dtype}"}
    strides = {
        f"{name}_{side}": stride
        for name, given in (("Q", shape.q), ("K", shape.k), ("V", shape.v), ("M", shape.mask or (0, 0, 0, 0)))
        for side, stride in zip(("BATCH", "HEAD", "ROW", "COLUMN"), given, strict=False)
    }
    columns = _step(shape)
    constants = {
        "HEADS": shape.heads, "ROWS": shape.rows, "COLUMNS": shape.columns, "DEPTH": shape.depth,
        "BLOCK_DEPTH": power_of_two(shape.depth), "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": columns, **strides,
        "HIDES": shape.mask_dtype == "bool", "CAUSAL": shape.causal, "STAGES": STAGES,
        "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    source = TritonSource(
        code=CODE.read_text(), function="attention",
        parameters=(*passed.items(), ("scale_log2", "fp32")),
        constants=(*(() if mask else (("mask", None),)), *constants.items()), warps=WARPS, stages=STAGES,
    )  # fmt: skip
    launch = Launch(
        kernel=0, grid=(blocks(shape.rows, BLOCK_ROWS), shape.batch * shape.heads, 1),
        arguments=(*at_names(tuple(passed)), ("scale_log2", shape.scale * math.log2(math.e))),
    )  # fmt: skip
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=tuple(passed))


def _step(shape: AttentionShape) -> int:
    """Return the number of keys of a step."""
    longest = SHORT if shape.columns <= SHORT or shape.depth > SHORT else LONG
    if blocks(shape.rows, BLOCK_ROWS) * shape.batch * shape.heads < MANY:
        return longest
    sizes = [size for size in (LONG, SHORT, NARROW) if size <= longest]
    return min(sizes, key=lambda size: blocks(shape.columns, size) * size)
