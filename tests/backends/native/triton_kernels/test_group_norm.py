"""The kernel of group norms, by Triton's interpreter, against torch's in fp64."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from autotune.backends.native.operators import ACTIVATIONS as FUNCTIONS
from autotune.backends.native.triton_kernels.group_norm import ACTIVATIONS, GroupNormShape, plan
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.records.kernel_problem import OperandType
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.interpreted import interpret

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES = get_args(OperandType)


def drawn(seed: int, **more: Any) -> GroupNormShape:
    draw = random.Random(seed)
    dtype = draw.choice(DTYPES)
    vectors = [draw.choice([None, dtype, "fp32"]) for _ in range(2)]
    return GroupNormShape(
        images=draw.randint(1, 3), groups=draw.choice([1, 2, 4]), channels=draw.choice([1, 2, 3, 8, 10]),
        pixels=draw.choice([1, 7, 64, 100, 1024, 4500]), channels_last=draw.random() < 0.5, dtype=dtype,
        weight=vectors[0], bias=vectors[1], eps=draw.choice([1e-5, 1e-3]), activation=draw.choice(ACTIVATIONS), **more,
    )  # fmt: skip


def buffers(shape: GroupNormShape, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Random operands; x in the order of images, channels and pixels, in the memory of the shape."""
    torch.manual_seed(seed)
    all_channels = shape.groups * shape.channels
    x = torch.randn(shape.images, all_channels, shape.pixels) + 4 * torch.randn(shape.images, all_channels, 1)
    x = (x.transpose(1, 2).contiguous().transpose(1, 2) if shape.channels_last else x).to(TYPES[shape.dtype])
    operands = {"x": x, "out": torch.full_like(x, float("nan"))}
    for name, dtype in (("weight", shape.weight), ("bias", shape.bias)):
        if dtype is not None:
            operands[name] = torch.randn(all_channels).to(TYPES[dtype])
    return {name: tensor.to(device) for name, tensor in operands.items()}


def check(shape: GroupNormShape, answered: dict[str, Any]) -> None:
    """Within the roundings of fp32 statistics, of an activation no steeper than 1.2, and of the answer to its dtype."""
    x = answered["x"].double()
    weight, bias = (answered[name].double() if name in answered else None for name in ("weight", "bias"))
    normed = torch.group_norm(x, shape.groups, weight, bias, shape.eps)
    expected = FUNCTIONS[shape.activation](normed)
    grouped = x.reshape(shape.images, shape.groups, -1)
    # subtracting a mean loses what the mean's size costs, relative to the group's spread
    sizes = grouped.abs().amax(-1) / (grouped.var(-1, unbiased=False) + shape.eps).sqrt()
    sizes = sizes.repeat_interleave(shape.channels, 1)[:, :, None] * (1 if weight is None else weight.abs()[:, None])
    sizes = sizes + normed.abs() + (0 if bias is None else bias.abs()[:, None])
    bound = torch.finfo(TYPES[shape.dtype]).eps * expected.abs() + 1.2 * 32 * 2**-24 * sizes + 1e-7
    worst = ((answered["out"].double() - expected).abs() / bound).max()
    assert worst <= 1, f"{shape}: {worst} times the bound"


def test_random_shapes_equal_torchs(tmp_path: Path) -> None:
    shapes = [drawn(seed) for seed in range(40)]
    assert {(shape.channels_last, shape.activation) for shape in shapes} == {
        (last, name) for last in (False, True) for name in ACTIVATIONS
    }
    assert {shape.dtype for shape in shapes} == set(DTYPES)
    orders = [(plan(shape), buffers(shape, seed)) for seed, shape in enumerate(shapes)]
    for shape, answered in zip(shapes, interpret(orders, tmp_path), strict=True):
        check(shape, answered)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pixels": 0}, "elements"), ({"channels": 10_000}, "10000"), ({"pixels": 2**31}, "elements"),
        ({"activation": "gelu"}, "gelu"), ({"bias": "int8"}, "int8"),
    ],
)  # fmt: skip
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], why: str) -> None:
    right: dict[str, Any] = {
        "images": 1, "groups": 4, "channels": 8, "pixels": 64, "channels_last": True, "dtype": "fp16",
        "weight": None, "bias": None, "eps": 1e-5,
    }  # fmt: skip
    with pytest.raises(ValueError, match=why):
        GroupNormShape(**{**right, **change})


def test_it_compiles(tmp_path: Path) -> None:
    shapes = [drawn(seed, programmatic_launch=seed % 2 == 1) for seed in range(2)]
    sources = [plan(shape).sources[0] for shape in shapes]
    for kernel in TritonCache(tmp_path).compile(TritonCompiler(version="3.9.0", capability=(9, 0)), sources):
        assert isinstance(kernel, CompiledCubin), kernel


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_compiled_ones_equal_torchs(programmatic_launch: bool, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    shapes = [drawn(seed, programmatic_launch=programmatic_launch) for seed in range(12)]
    sources = [plan(shape).sources[0] for shape in shapes]
    compiled = TritonCache(tmp_path).compile(TritonCompiler.find(device), sources)
    for seed, (shape, kernel) in enumerate(zip(shapes, compiled, strict=True)):
        assert isinstance(kernel, CompiledCubin), kernel
        operands = buffers(shape, seed, device.torch_name)
        LoadedPlan([kernel], plan(shape).launches, workspace_bytes=0, device=device.index)(operands)
        check(shape, {name: tensor.cpu() for name, tensor in operands.items()})
