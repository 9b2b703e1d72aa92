"""The kernel of pooling, by Triton's interpreter, against torch's own."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan
from autotune.backends.native.triton_kernels.pooling import PoolShape, max_pool
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.records.kernel_problem import Window
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.interpreted import interpret

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def drawn(seed: int, *, programmatic_launch: bool = False) -> tuple[PoolShape, Tensor]:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kernel = draw.choice([(3, 3), (2, 2), (1, 3), (5, 2)])
    padding = tuple(draw.randint(0, side // 2) for side in kernel)
    window = Window(
        height=draw.randint(9, 20), width=draw.randint(9, 20), channels=draw.choice([1, 5, 16, 64]), kernel=kernel,
        stride=draw.choice([(1, 1), (2, 2), (2, 1)]), padding=padding,  # type: ignore[arg-type]
        dilation=draw.choice([(1, 1), (2, 1)]),
    )  # fmt: skip
    dtype = draw.choice(["fp16", "fp32"])
    x = torch.randn(draw.randint(1, 3), window.channels, window.height, window.width).to(TYPES[dtype])
    x[0, 0, 4, 4] = math.nan
    output = draw.choice([None, "fp16", "fp32"])
    shape = PoolShape(
        images=len(x), window=window, dtype=dtype, output=output, programmatic_launch=programmatic_launch,  # type: ignore[arg-type]
    )  # fmt: skip
    return shape, x.to(memory_format=torch.channels_last)


def written(shape: PoolShape) -> torch.dtype:
    return TYPES[shape.output or shape.dtype]


def largest(shape: PoolShape, x: Tensor) -> Tensor:
    window = shape.window
    return functional.max_pool2d(x.float(), window.kernel, window.stride, window.padding, window.dilation).to(
        written(shape)
    )


def order(shape: PoolShape, x: Tensor) -> tuple[LaunchPlan, dict[str, Any], Tensor]:
    """The plan, its buffers and what is right."""
    right = largest(shape, x)
    out = torch.full(right.shape, math.nan, dtype=written(shape)).to(memory_format=torch.channels_last)
    return max_pool(shape), {"x": x, "out": out}, right


def check(out: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(out, right, rtol=0, atol=0, equal_nan=True)


def test_random_windows_equal_torchs(tmp_path: Path) -> None:
    asked = [order(*drawn(seed)) for seed in range(12)]
    answers = interpret([(plan, buffers) for plan, buffers, _ in asked], tmp_path)
    for (_, _, right), found in zip(asked, answers, strict=True):
        check(found["out"], right)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": "int8"}, "fp16"),
        ({"output": "int8"}, "fp16"),
        ({"images": 0}, "65535"),
        ({"images": 65000}, "elements"),
        ({"kernel": 9}, "64"),
    ],
)
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], why: str) -> None:
    kernel = change.pop("kernel", 3)
    window = Window(height=224, width=224, channels=64, kernel=(kernel, kernel))
    right: dict[str, Any] = {"images": 2, "window": window, "dtype": "fp16"}
    with pytest.raises(ValueError, match=why):
        PoolShape(**{**right, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_compiled_ones_equal_torchs(programmatic_launch: bool, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    asked = [order(*drawn(seed, programmatic_launch=programmatic_launch)) for seed in range(12)]
    sources = [source for plan, _, _ in asked for source in plan.sources]
    for (plan, buffers, right), made in zip(
        asked, TritonCache(tmp_path).compile(TritonCompiler.find(device), sources), strict=True
    ):
        assert isinstance(made, CompiledCubin)
        there = {name: tensor.to(device.torch_name) for name, tensor in buffers.items()}
        LoadedPlan([made], plan.launches, workspace_bytes=0, device=device.index)(there)
        check(there["out"].cpu(), right)
