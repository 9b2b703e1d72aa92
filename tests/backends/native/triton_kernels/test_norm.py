"""Norm kernels, by Triton's interpreter, against the operators' meaning in fp64."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from autotune.backends.native import operators
from autotune.backends.native.triton_kernels.norm import LARGEST_COLUMNS, NormKind, NormShape, plan
from autotune.records.kernel_problem import OperandType
from tests.backends.native.triton_kernels.interpreted import interpret

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KINDS, DTYPES = get_args(NormKind), get_args(OperandType)


def drawn(seed: int) -> NormShape:
    draw = random.Random(seed)
    dtype = draw.choice(DTYPES)
    columns = draw.choice([1, 2, 31, 64, 100, 768, 1000, 1024, 4097, draw.randint(1, 3000)])
    vectors = [draw.choice([None, dtype, "fp32"]) for _ in range(2)]
    residual = draw.random() < 0.5
    return NormShape(
        rows=draw.choice([1, 3, 17, draw.randint(1, 60)]), columns=columns, dtype=dtype, weight=vectors[0],
        bias=vectors[1], eps=draw.choice([1e-5, 1e-12, 1e-3]), kind=draw.choice(KINDS), residual=residual,
        total=residual and draw.random() < 0.7, output=draw.choice([None, *DTYPES]),
    )  # fmt: skip


def buffers(shape: NormShape, seed: int, device: str = "cpu") -> dict[str, Any]:
    torch.manual_seed(seed)
    size = (shape.rows, shape.columns)
    made: dict[str, Any] = {"x": (torch.randn(size) * 3 + torch.randn(size[0], 1) * 5).to(TYPES[shape.dtype])}
    for name, dtype in (("weight", shape.weight), ("bias", shape.bias)):
        if dtype is not None:
            made[name] = torch.randn(shape.columns).to(TYPES[dtype])
    if shape.residual:
        made["residual"] = torch.randn(size).to(TYPES[shape.dtype])
    if shape.total:
        made["total"] = torch.full(size, float("nan"), dtype=TYPES[shape.dtype])
    made["out"] = torch.full(size, float("nan"), dtype=TYPES[shape.output or shape.dtype])
    return {name: tensor.to(device) for name, tensor in made.items()}


def check(shape: NormShape, found: dict[str, Any]) -> None:
    """Within the roundings of fp32 statistics, and of the answer to its own dtype."""
    x = found["x"]
    if shape.residual and not shape.total:
        x = x.float() + found["residual"].float()
    elif shape.residual:
        x, total = x + found["residual"], found["total"]
        # Triton's interpreter cuts fp32 off to bf16 where a GPU rounds, which can be the neighbouring number.
        rounded = torch.full_like(x, torch.finfo(x.dtype).eps if x.dtype == torch.bfloat16 and not x.is_cuda else 0)
        assert bool(((total.double() - x.double()).abs() <= rounded.double() * x.double().abs()).all()), shape
        x = total
    weight, bias = (found[name].double() if name in found else None for name in ("weight", "bias"))
    wide = x.double()
    expected = operators.norm(wide, weight, bias, shape.eps, shape.kind)
    # Subtracting a mean loses what the mean's size costs, relative to the row's spread.
    spread = (wide.var(-1, unbiased=False, keepdim=True) + shape.eps).sqrt() if shape.kind == "layer" else 1.0
    sizes = wide.abs().amax(-1, keepdim=True) / spread if shape.kind == "layer" else expected.abs()
    scale = (sizes if weight is None else sizes * weight.abs()) + expected.abs() + (0 if bias is None else bias.abs())
    bound = torch.finfo(TYPES[shape.output or shape.dtype]).eps * expected.abs() + 16 * 2**-24 * scale + 1e-7
    worst = ((found["out"].double() - expected).abs() / bound).max()
    assert worst <= 1, f"{shape}: {worst} times the bound"


def test_random_shapes_equal_the_operators(tmp_path: Path) -> None:
    shapes = [drawn(seed) for seed in range(40)]
    assert {shape.kind for shape in shapes} == set(KINDS) and {shape.dtype for shape in shapes} == set(DTYPES)
    longest = NormShape(
        rows=2, columns=LARGEST_COLUMNS, dtype="fp16", weight="fp16", bias="fp16", eps=1e-5, kind="layer",
        residual=True, total=True,
    )  # fmt: skip
    shapes.append(longest)
    for shape, found in zip(
        shapes, interpret([(plan(s), buffers(s, seed)) for seed, s in enumerate(shapes)], tmp_path), strict=True
    ):
        check(shape, found)


@pytest.mark.parametrize(
    "wrong", [{"columns": LARGEST_COLUMNS + 1}, {"rows": 0}, {"kind": "batch"}, {"bias": "int8"}, {"total": True}]
)
def test_what_no_kernel_computes_is_refused(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"rows": 4, "columns": 8, "dtype": "fp16", "weight": None, "bias": None, "eps": 1e-5}
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        NormShape(**{**right, "kind": "rms", **wrong})


def test_one_kernel_serves_any_number_of_long_rows() -> None:
    def of(rows: int) -> NormShape:
        return NormShape(rows=rows, columns=768, dtype="fp16", weight="fp16", bias=None, eps=1e-6, kind="rms")

    assert plan(of(8)).sources == plan(of(4096)).sources
    assert plan(of(8)).launches != plan(of(4096)).launches
