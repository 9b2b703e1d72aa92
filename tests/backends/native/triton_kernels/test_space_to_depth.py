"""The kernel that makes blocks of pixels channels, by Triton's interpreter, against the operator by torch."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.backends.native import operators
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.space_to_depth import BlockShape, plan
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.interpreted import interpret

TYPES = {"fp16": torch.float16, "fp32": torch.float32}
SHAPE: dict[str, Any] = {
    "shape": (1, 3, 8, 8), "strides": (192, 64, 8, 1), "dtype": "fp32", "output": "fp16", "block": (2, 2),
    "before": (2, 2), "size": (5, 5), "channels": 16,
}  # fmt: skip


def drawn(seed: int, *, programmatic_launch: bool = False) -> tuple[BlockShape, Tensor]:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    sizes = draw.choice([1, 3]), draw.randint(1, 4), draw.randint(5, 17), draw.randint(5, 17)
    dtype, output = draw.choice(["fp16", "fp32"]), draw.choice(["fp16", "fp32"])
    x = torch.randn(sizes).to(TYPES[dtype])
    x = x.to(memory_format=torch.channels_last) if draw.random() < 0.5 else x
    block = draw.choice([(2, 2), (2, 4), (3, 2)])
    least = block[0] * block[1] * sizes[1]
    shape = BlockShape(
        shape=sizes, strides=tuple(x.stride()), dtype=dtype, output=output,  # type: ignore[arg-type]
        block=block, before=(draw.randint(0, 4), draw.randint(0, 4)), size=(draw.randint(2, 12), draw.randint(2, 12)),
        channels=draw.choice([least, least + 3]), programmatic_launch=programmatic_launch,
    )  # fmt: skip
    return shape, x


def buffers(shape: BlockShape, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    right = operators.space_to_depth(
        x, shape.block, shape.before, shape.size, shape.channels, TYPES[shape.output]
    ).to(memory_format=torch.channels_last)  # fmt: skip
    out = torch.full_like(right, math.nan)
    return {"x": x, "out": out}, right


def test_random_images_equal_torchs(tmp_path: Path) -> None:
    cases = [drawn(seed) for seed in range(16)]
    asked = [(plan(shape), *buffers(shape, x)) for shape, x in cases]
    answers = interpret([(one, given) for one, given, _ in asked], tmp_path)
    for (_, _, right), found in zip(asked, answers, strict=True):
        torch.testing.assert_close(found["out"], right, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": "int8"}, "fp16"),
        ({"shape": (70000, 3, 8, 8)}, "65535"),
        ({"size": (0, 5)}, "positive"),
        ({"before": (-1, 0)}, "negative"),
        ({"channels": 11}, "each element of a block"),
        ({"size": (20000, 20000)}, "elements"),
    ],
)
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], why: str) -> None:
    BlockShape(**SHAPE)
    with pytest.raises(ValueError, match=why):
        BlockShape(**{**SHAPE, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_compiled_ones_equal_torchs(programmatic_launch: bool, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    cases = [drawn(seed, programmatic_launch=programmatic_launch) for seed in range(8)]
    plans = [plan(shape) for shape, _ in cases]
    made = TritonCache(tmp_path).compile(TritonCompiler.find(device), [one.sources[0] for one in plans])
    for (shape, x), one, kernel in zip(cases, plans, made, strict=True):
        assert isinstance(kernel, CompiledCubin)
        given, right = buffers(shape, x.to(device.torch_name))
        LoadedPlan([kernel], one.launches, workspace_bytes=0, device=device.index)(given)
        torch.testing.assert_close(given["out"], right, rtol=0, atol=0)
