"""Means over whole images by kernels, by Triton's interpreter against torch in float64, and compiled for sm_90."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.mean import plan, plan_of_tile
from autotune.backends.native.triton_kernels.mean_tile import AHEAD, MeanShape, MeanTile, estimated_us, tile_of
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.compiled import instructions, recorded, seconds
from tests.backends.native.triton_kernels.interpreted import interpret
from tests.backends.native.triton_kernels.random_shapes import SMS_OF_H200, in_batches

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAYERS = [(112, 32), (56, 96), (56, 144), (28, 144), (28, 240), (14, 240), (14, 480), (14, 672), (7, 672), (7, 1152),
          (7, 1280)]  # fmt: skip
"""Sides and channels of the images that EfficientNet-B0 takes means of."""


def square(side: int, channels: int, images: int = 1, **more: Any) -> MeanShape:
    return MeanShape(images=images, pixels=side * side, channels=channels, **{"dtype": "fp16", **more})


@st.composite
def shapes(draw: st.DrawFn) -> MeanShape:
    dtypes = st.sampled_from(["fp16", "bf16", "fp32"])
    return MeanShape(
        images=draw(st.integers(1, 3)), pixels=draw(st.one_of(st.integers(1, 70), st.integers(1, 5000))),
        channels=draw(st.sampled_from([1, 3, 5, 8, 12, 24, 72, 144])), dtype=draw(dtypes),
        output=draw(st.one_of(st.none(), dtypes)),
    )  # fmt: skip


def buffers(shape: MeanShape, device: str = "cpu") -> dict[str, Tensor]:
    """Images [images, pixels, channels], which are channels-last, with a mean that is not near 0."""
    torch.manual_seed(shape.pixels * shape.channels)
    x = torch.randn(shape.images, shape.pixels, shape.channels, device=device) + 0.25
    out = torch.full((shape.images, shape.channels), math.nan, device=device)
    return {"x": x.to(TYPES[shape.dtype]), "out": out.to(TYPES[shape.output or shape.dtype])}


def check(shape: MeanShape, operands: dict[str, Tensor]) -> None:
    """Compare an answer with float64: a sum of fp32 errs by its terms' sizes, the answer by a last place."""
    x, out = operands["x"].double(), operands["out"]
    exact, size = x.mean(1), x.abs().mean(1)
    info = torch.finfo(out.dtype)
    # by half of one on a GPU, but the interpreter rounds to bf16 towards 0
    place = info.eps if out.device.type == "cpu" else 0.5 * info.eps
    error, allowed = (out.double() - exact).abs(), 2**-24 * 64 * size + place * exact.abs()
    assert bool((error <= allowed + info.smallest_normal).all()), f"{shape}: {float((error / allowed).max())}"


@in_batches(shapes())
def test_random_shapes_equal_torchs(tmp_path: Path, drawn: list[MeanShape], sm_count: int) -> None:
    answers = interpret([(plan(shape, sm_count=sm_count), buffers(shape)) for shape in drawn], tmp_path)
    for shape, answer in zip(drawn, answers, strict=True):
        check(shape, answer)


DIVIDED = ((13, 40, None), (784, 5, "fp32"), (1000, 24, "bf16"))
"""Pixels, channels, the result's type; the last of 13 pixels lies among 8 without any, in parts of different sizes."""
BLOCKS = ((8, 32), (16, 16), (64, 4))
MOST_PARTS = 128  # more than are added at once


def check_divisions(folder: Path, divisions: list[tuple[tuple[int, int, str | None], tuple[int, int], int]]) -> None:
    cases = [
        (MeanShape(images=2, pixels=pixels, channels=channels, dtype="fp16", output=output),
         MeanTile(channels=width, rows=rows, warps=1, parts=parts))
        for (pixels, channels, output), (width, rows), parts in divisions
    ]  # fmt: skip
    answers = interpret([(plan_of_tile(shape, tile), buffers(shape)) for shape, tile in cases], folder)
    for (shape, _), answer in zip(cases, answers, strict=True):
        check(shape, answer)


def test_every_division_equals_torchs(tmp_path: Path) -> None:
    few = list(itertools.product(DIVIDED, BLOCKS, (1, 2, 8)))
    check_divisions(tmp_path, [*few, *zip(DIVIDED, BLOCKS, (MOST_PARTS,) * len(BLOCKS), strict=True)])


def test_every_division_into_the_most_parts_equals_torchs(tmp_path: Path) -> None:
    check_divisions(tmp_path, list(itertools.product(DIVIDED, BLOCKS, (MOST_PARTS,))))


def test_layers_of_a_network_equal_torchs(tmp_path: Path) -> None:
    layers = [square(112, 32), square(56, 144, dtype="fp32"), square(28, 240, 2, dtype="bf16"), square(7, 1152)]
    plans = [plan(shape, sm_count=SMS_OF_H200) for shape in layers]
    assert [len(each.launches) for each in plans] == [2, 2, 1, 1]
    answers = interpret([(each, buffers(shape)) for each, shape in zip(plans, layers, strict=True)], tmp_path)
    for shape, answer in zip(layers, answers, strict=True):
        check(shape, answer)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": "int8"}, "fp16"),
        ({"output": "int8"}, "fp16"),
        ({"images": 0}, "65535"),
        ({"pixels": 0}, "elements"),
        ({"images": 65000}, "elements"),
    ],
)
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(square(224, 64), **change)


@pytest.mark.parametrize(("side", "channels"), LAYERS)
@pytest.mark.parametrize("images", [1, 32])
def test_no_block_reads_in_many_steps(side: int, channels: int, images: int) -> None:
    shape = square(side, channels, images)
    tile = tile_of(shape, sm_count=SMS_OF_H200)
    steps = side * side / (tile.parts * tile.rows * AHEAD)
    # a GPU that is full gains nothing from more blocks
    assert steps <= 4 or images * channels / tile.channels >= SMS_OF_H200
    # every access is of 16 bytes, and a warp's threads read whole sectors
    assert tile.channels * 2 >= 32 and tile.rows * tile.channels == 32 * tile.warps * 8
    # the pixels of small images are not worth a second launch
    assert tile.parts == 1 or side > 28


def test_a_full_gpu_needs_no_second_launch() -> None:
    assert tile_of(square(112, 64), sm_count=SMS_OF_H200).parts > 1
    assert tile_of(square(112, 64, 256), sm_count=SMS_OF_H200).parts == 1
    assert tile_of(square(112, 64), sm_count=1).parts == 1


def test_estimates_count_steps_launches_and_bytes() -> None:
    shape = square(112, 32)
    whole = MeanTile(channels=32, rows=32, warps=4, parts=1)
    parts = replace(whole, parts=64)
    assert estimated_us(shape, parts, sm_count=SMS_OF_H200) < estimated_us(shape, whole, sm_count=SMS_OF_H200) / 4
    assert estimated_us(shape, parts, sm_count=1) > estimated_us(shape, parts, sm_count=SMS_OF_H200)
    doubled = replace(shape, images=2 * SMS_OF_H200), replace(shape, images=4 * SMS_OF_H200)
    less, more = (estimated_us(each, whole, sm_count=SMS_OF_H200) for each in doubled)
    assert less < more <= 2 * less


def test_it_reads_16_bytes_at_once_and_spills_nothing(tmp_path: Path) -> None:
    layers = [square(side, channels, images, programmatic_launch=True)
              for side, channels, images in ((112, 32, 1), (56, 144, 32), (14, 672, 1), (112, 32, 32))]  # fmt: skip
    layers += [replace(layers[1], dtype="fp32"), replace(layers[0], dtype="bf16", output="fp32")]
    sources = [source for shape in layers for source in plan(shape, sm_count=SMS_OF_H200).sources]
    compiler = TritonCompiler(version="3.9.0", capability=(9, 0))
    for source, kernel in zip(sources, TritonCache(tmp_path).compile(compiler, sources), strict=True):
        assert isinstance(kernel, CompiledCubin), kernel
        assert kernel.read()[0].programmatic_launch
        assert set(re.findall(r"\bLDG\.\S+", instructions(kernel, "-sass"))) == {"LDG.E.128"}, source
        usage = re.search(r"REG:(\d+) STACK:(\d+)", instructions(kernel, "-res-usage"))
        # with 64 registers 32 warps run on an SM at once
        assert usage is not None and int(usage[1]) <= 64 and int(usage[2]) == 0, source


def loaded(shape: MeanShape, folder: Path) -> LoadedPlan:
    device = discovery.find("cuda")
    made = plan(shape, sm_count=SMS_OF_H200)
    kernels = TritonCache(folder).compile(TritonCompiler.find(device), made.sources)
    compiled = [kernel for kernel in kernels if isinstance(kernel, CompiledCubin)]
    assert len(compiled) == len(kernels), kernels
    return LoadedPlan(compiled, made.launches, workspace_bytes=made.workspace_bytes, device=device.index)


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_compiled_ones_equal_torchs(programmatic_launch: bool, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    layers = [square(side, channels, images, dtype=dtype) for side, channels in LAYERS
              for images, dtype in ((1, "fp16"), (3, "bf16"), (2, "fp32"))]  # fmt: skip
    layers += [square(112, 5, 2), square(61, 12, dtype="bf16", output="fp32"), square(40, 1, 3, output="bf16")]
    for shape in layers:
        call = loaded(replace(shape, programmatic_launch=programmatic_launch), tmp_path)
        operands = buffers(shape, device.torch_name)
        call(operands)
        check(shape, operands)
        first = operands["out"].clone()
        call(operands)
        assert torch.equal(first, operands["out"]), "a sum must not depend on the order of the blocks"


@pytest.mark.gpu
@pytest.mark.parametrize("images", [1, 32])
def test_it_is_faster_than_torchs_call(images: int, tmp_path: Path) -> None:
    """Compares with torch's mean, each in a CUDA graph, by ratios of neighbouring timings."""
    device = discovery.find("cuda")
    ratios = []
    for side, channels in LAYERS:
        shape = square(side, channels, images)
        operands, call = buffers(shape, device.torch_name), loaded(shape, tmp_path)
        x = operands["x"].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        assert x.is_contiguous(memory_format=torch.channels_last)
        torchs = recorded(lambda x=x: x.mean((2, 3), keepdim=True))
        own = recorded(lambda call=call, operands=operands: call(operands))
        ratios += sorted(seconds(own) / seconds(torchs) for _ in range(9))[4:5]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1, ratios
