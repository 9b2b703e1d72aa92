"""Depthwise convolutions by kernels, by Triton's interpreter against torch in float64, and compiled for sm_90."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.cuda_kernels.cubin_cache import MOST_SPILLED_BYTES
from autotune.backends.native.operators import ACTIVATIONS
from autotune.backends.native.triton_kernels import depthwise_tile
from autotune.backends.native.triton_kernels.depthwise import plan
from autotune.backends.native.triton_kernels.depthwise_tile import DepthwiseShape, tile_of
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.compiled import instructions, recorded, seconds
from tests.backends.native.triton_kernels.interpreted import interpret
from tests.backends.native.triton_kernels.random_shapes import SMS_OF_H200, in_batches

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def square(channels: int, image: int, kernel: int, stride: int, images: int = 1, **more: Any) -> DepthwiseShape:
    """A layer of a network: a square image, padded to keep its size at stride 1."""
    before = kernel // 2
    places = (image + 2 * before - kernel) // stride + 1
    return DepthwiseShape(
        images=images, channels=channels, image=(image, image), places=(places, places), kernel=(kernel, kernel),
        stride=(stride, stride), before=(before, before), **{"dtype": "fp16", "output": "fp16", "bias": True, **more},
    )  # fmt: skip


LAYERS = {
    (1, "MobileNetV2"): [square(32, 112, 3, 1), square(96, 112, 3, 2), square(384, 14, 3, 1), square(960, 7, 3, 1)],
    (1, "EfficientNet-B0"): [
        square(144, 56, 5, 2), square(240, 28, 5, 1), square(672, 14, 5, 2), square(1152, 7, 5, 1),
    ],
    (32, "both"): [square(32, 112, 3, 1, 32), square(96, 112, 3, 2, 32), square(1152, 7, 5, 1, 32)],
    (32, "ConvNeXt-T"): [square(192, 28, 7, 1, 32)],
}  # fmt: skip


@st.composite
def shapes(draw: st.DrawFn) -> DepthwiseShape:
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.one_of(st.sampled_from([(3, 3), (5, 5), (9, 8)]), st.tuples(st.integers(1, 5), st.integers(1, 7))))
    dilation, stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)])), draw(pairs)
    dtype = draw(st.sampled_from(["fp16", "bf16", "fp32"]))
    return DepthwiseShape(
        images=draw(st.integers(1, 3)), channels=draw(st.sampled_from([1, 3, 8, 16, 24, 40, 72])),
        image=(draw(st.integers(5, 17)), draw(st.integers(5, 17))),
        places=(draw(st.integers(1, 12)), draw(st.integers(1, 12))),
        kernel=kernel, stride=stride, before=(draw(st.integers(0, 3)), draw(st.integers(0, 3))), dilation=dilation,
        channels_last=draw(st.sampled_from([True, True, False])), dtype=draw(st.sampled_from([dtype, "fp32"])),
        output=dtype, bias=draw(st.booleans()), residual=draw(st.booleans()),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
    )  # fmt: skip


def buffers(shape: DepthwiseShape, device: str = "cpu") -> dict[str, Tensor]:
    torch.manual_seed(shape.channels * shape.image[0])
    output = TYPES[shape.output]
    memory = torch.channels_last if shape.channels_last else torch.contiguous_format

    def images(*sides: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape.images, shape.channels, *sides).to(device, dtype).contiguous(memory_format=memory)

    operands = {
        "x": images(*shape.image, dtype=TYPES[shape.dtype]),
        "weight": torch.randn(math.prod(shape.kernel), shape.channels).to(device, output),
        "out": torch.full_like(images(*shape.places, dtype=output), math.nan),
    }
    if shape.bias:
        operands["bias"] = torch.randn(shape.channels, device=device)
    if shape.residual:
        operands["residual"] = images(*shape.places, dtype=output)
    return operands


def check(shape: DepthwiseShape, operands: dict[str, Tensor]) -> None:
    """Compare an answer with float64; a sum of fp32 errs by its terms' sizes, the answer by half a last place."""
    x, weight = (operands[name].double() for name in ("x", "weight"))
    filters = weight.t().reshape(shape.channels, 1, *shape.kernel)
    reach = [
        (count - 1) * step + (taps - 1) * gap + 1
        for count, step, taps, gap in zip(shape.places, shape.stride, shape.kernel, shape.dilation, strict=True)
    ]
    (above, left), (height, width) = shape.before, shape.image
    sides = (left, reach[1] - left - width, above, reach[0] - above - height)

    def convolved(x: Tensor, filters: Tensor) -> Tensor:
        padded = functional.pad(x, sides)
        return functional.conv2d(padded, filters, None, shape.stride, 0, shape.dilation, shape.channels)

    total, size = convolved(x, filters), convolved(x.abs(), filters.abs())
    for name, addend in (("bias", operands.get("bias")), ("residual", operands.get("residual"))):
        if addend is not None:
            wide = addend.double()[:, None, None] if name == "bias" else addend.double()
            total, size = total + wide, size + wide.abs()
    exact = ACTIVATIONS[shape.activation](total)
    info = torch.finfo(TYPES[shape.output])
    # no activation is steeper than 1.5, and each is computed within some roundings of its sizes
    allowed = 2**-24 * (1.5 * (math.prod(shape.kernel) + 3) + 16) * (size + 1) + info.eps * exact.abs()
    error = (operands["out"].double() - exact).abs()
    assert bool((error <= allowed + info.smallest_normal).all()), f"{shape}: {float((error / allowed).max())}"


@in_batches(shapes())
def test_random_shapes_equal_torchs(tmp_path: Path, drawn: list[DepthwiseShape], sm_count: int) -> None:
    answers = interpret([(plan(shape, sm_count=sm_count), buffers(shape)) for shape in drawn], tmp_path)
    for shape, answer in zip(drawn, answers, strict=True):
        check(shape, answer)


def test_every_patch_and_memory_equals_torchs(tmp_path: Path) -> None:
    cases = [
        (replace(square(channels, 13, kernel, stride, 2, residual=True), activation=name, channels_last=is_last), sms)
        for (kernel, stride), channels, name in zip(
            [(3, 1), (3, 2), (5, 1), (5, 2), (9, 1), (1, 1)], [24, 16, 8, 40, 16, 72], sorted(ACTIVATIONS), strict=False
        )
        for is_last, sms in ((True, 1), (True, SMS_OF_H200), (False, 1))
    ]
    patches = {tile_of(shape, sm_count=sms).patch for shape, sms in cases}
    assert patches == {(1, 1), (2, 2)}, "each patch must be computed at least once"
    cases.append((square(16, 12, 3, 1, residual=True), 2))
    assert tile_of(cases[-1][0], sm_count=2).patch == (1, 1)
    row: dict[str, Any] = {"image": (1, 40), "places": (1, 40), "kernel": (1, 31), "before": (0, 15)}
    cases.append((replace(square(6, 40, 31, 1, 2, channels_last=False), **row), 1))
    answers = interpret([(plan(shape, sm_count=sms), buffers(shape)) for shape, sms in cases], tmp_path)
    for (shape, _), answer in zip(cases, answers, strict=True):
        check(shape, answer)


def test_every_activation_has_a_formula() -> None:
    for name in ACTIVATIONS:
        plan(replace(square(8, 8, 3, 1), activation=name), sm_count=SMS_OF_H200)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="elu"):
        replace(square(8, 8, 3, 1), activation="elu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": "int8"}, "fp16"),
        ({"images": 70000}, "65535"),
        ({"places": (0, 5)}, "positive"),
        ({"before": (-1, 0)}, "negative"),
        ({"image": (2**14, 2**14)}, "elements"),
    ],
)
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(square(32, 8, 3, 1), **change)


@pytest.mark.parametrize(("images", "network"), LAYERS)
def test_each_sm_has_a_block(images: int, network: str) -> None:
    for shape in LAYERS[images, network]:
        (launch,) = plan(shape, sm_count=SMS_OF_H200).launches
        assert math.prod(launch.grid) >= SMS_OF_H200, shape
        tile = tile_of(shape, sm_count=SMS_OF_H200)
        assert (tile.patch == (2, 2)) == (images == 32)
        # every place is computed by one thread
        assert launch.grid[0] * tile.channels * math.prod(tile.places) >= shape.channels * math.prod(shape.places)


def test_a_patch_has_inputs_in_common() -> None:
    apart = square(64, 128, 2, 2, 32)
    assert tile_of(apart, sm_count=SMS_OF_H200).patch == (1, 1), "windows that lie side by side share nothing"
    assert tile_of(replace(apart, kernel=(9, 9)), sm_count=SMS_OF_H200).patch == (1, 1), "a loop computes one pixel"
    assert tile_of(square(64, 128, 3, 1, 32), sm_count=SMS_OF_H200).patch == (2, 2)


def test_channels_are_read_by_whole_accesses() -> None:
    assert [depthwise_tile._block_channels(square(channels, 8, 3, 1)) for channels in (5, 24, 96, 144, 960)] == [
        8, 32, 32, 16, 64,
    ]  # fmt: skip
    assert depthwise_tile._block_channels(square(96, 8, 3, 1, dtype="fp32", output="fp32")) == 32
    assert depthwise_tile._block_channels(square(96, 8, 3, 1, channels_last=False)) == 1


def compiled(layers: list[DepthwiseShape], folder: Path) -> Iterator[CompiledCubin]:
    sources = [plan(shape, sm_count=SMS_OF_H200).sources[0] for shape in layers]
    for kernel in TritonCache(folder).compile(TritonCompiler(version="3.9.0", capability=(9, 0)), sources):
        assert isinstance(kernel, CompiledCubin), kernel
        yield kernel


def test_it_reads_16_bytes_at_once_and_spills_nothing(tmp_path: Path) -> None:
    layers = [square(96, 112, 3, 2, 32), square(240, 28, 5, 1), square(1152, 7, 5, 1, 32, residual=True)]
    for shape, kernel in zip(layers, compiled(layers, tmp_path), strict=True):
        assert kernel.read()[0].shared_bytes == 0
        code = instructions(kernel, "-sass")
        accesses = set(re.findall(r"\b(?:LDG|STG)\.\S+", code))
        assert accesses == {"LDG.E.128", "STG.E.128"}, f"{shape}: {accesses}"
        assert not re.search(r"\b(?:LDL|STL)\b", code), f"{shape} spills"
        usage = re.search(r"REG:(\d+) STACK:(\d+)", instructions(kernel, "-res-usage"))
        assert usage is not None and int(usage[1]) <= 168 and int(usage[2]) == 0


def test_other_types_layouts_and_large_windows_compile(tmp_path: Path) -> None:
    first = square(72, 14, 3, 1, residual=True, activation="gelu_tanh")
    layers = [
        replace(first, dtype="fp32", output="bf16"), replace(first, channels_last=False, programmatic_launch=True),
        square(24, 32, 31, 1, activation="hardswish", programmatic_launch=True),
    ]  # fmt: skip
    kernels = list(compiled(layers, tmp_path))
    assert [kernel.read()[0].programmatic_launch for kernel in kernels] == [False, True, True]


def test_no_type_spills_more_than_other_kernels_may(tmp_path: Path) -> None:
    for layer in (square(240, 28, 5, 1), square(96, 112, 3, 2, 32), square(192, 28, 7, 1, 32)):
        layers = [replace(layer, dtype="bf16", output="bf16", activation="silu", residual=True),
                  replace(layer, dtype="fp32", output="fp32", activation="gelu", channels_last=False)]  # fmt: skip
        for shape, kernel in zip(layers, compiled(layers, tmp_path), strict=True):
            usage = re.search(r"STACK:(\d+)", instructions(kernel, "-res-usage"))
            assert usage is not None and int(usage[1]) <= MOST_SPILLED_BYTES, shape


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_compiled_ones_equal_torchs(programmatic_launch: bool, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    drawn = [
        replace(layer, dtype=dtype, output=dtype, activation=name, residual=name == "silu", channels_last=is_last,
                programmatic_launch=programmatic_launch)
        for layers in LAYERS.values() for layer in layers[:2]
        for dtype, name, is_last in (("fp16", "relu6", True), ("bf16", "silu", True), ("fp32", "gelu", False))
    ]  # fmt: skip
    plans = [plan(shape, sm_count=SMS_OF_H200) for shape in drawn]
    kernels = TritonCache(tmp_path).compile(TritonCompiler.find(device), [one.sources[0] for one in plans])
    for shape, one, kernel in zip(drawn, plans, kernels, strict=True):
        assert isinstance(kernel, CompiledCubin), kernel
        operands = buffers(shape, device.torch_name)
        loaded = LoadedPlan([kernel], one.launches, workspace_bytes=0, device=device.index)
        # Triton 3.9's ptxas gives a 5×5 window in bf16, one pixel a thread, 80 registers and spills 16 to 64 bytes
        assert loaded.resource_usage["spilled_bytes"] <= MOST_SPILLED_BYTES
        loaded(operands)
        check(shape, operands)


@pytest.mark.gpu
@pytest.mark.parametrize(("images", "network"), LAYERS)
def test_it_is_faster_than_torchs_call(images: int, network: str, tmp_path: Path) -> None:
    """Compares with torch's convolution and activation, each in a CUDA graph, by ratios of neighbouring timings."""
    device = discovery.find("cuda")
    ratios = []
    for shape in [replace(layer, activation="relu6") for layer in LAYERS[images, network]]:
        operands = buffers(shape, device.torch_name)
        one = plan(shape, sm_count=SMS_OF_H200)
        (kernel,) = TritonCache(tmp_path).compile(TritonCompiler.find(device), one.sources)
        assert isinstance(kernel, CompiledCubin), kernel
        loaded = LoadedPlan([kernel], one.launches, workspace_bytes=0, device=device.index)
        filters = operands["weight"].t().reshape(shape.channels, 1, *shape.kernel).contiguous()
        bias = operands["bias"].half()

        def torchs(x: Tensor = operands["x"], filters: Tensor = filters, bias: Tensor = bias,
                   shape: DepthwiseShape = shape) -> None:  # fmt: skip
            functional.conv2d(x, filters, bias, shape.stride, shape.before, 1, shape.channels).clamp_(0, 6)

        graphs = [recorded(torchs), recorded(lambda loaded=loaded, operands=operands: loaded(operands))]
        ratios += sorted(seconds(graphs[1]) / seconds(graphs[0]) for _ in range(9))[4:5]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1, ratios
