"""Every build has a source, different builds have different ones, and nvcc takes a sample of them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.backends.native.cutlass.loaded_kernel import GemmSize, LoadedCutlassKernel
from autotune.backends.native.cutlass.nvcc_compiler import CompiledCudaKernel, NvccCache, NvccCompiler
from autotune.backends.native.cutlass.source import MULTISTAGE, SM90, SM90_STREAM_K, source_of
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import Activation, GemmProblem
from autotune.search_spaces.cutlass_gemm import ACTIVATIONS, ARCHITECTURES, CutlassBuild, build_of, space
from autotune.search_spaces.cutlass_launch import CutlassLaunch

HEADS = {
    path: re.findall(r"template <(class Element,[^;]*?)>\nstruct", path.read_text())[0] for path in (SM90, MULTISTAGE)
}
HEADS[SM90_STREAM_K] = HEADS[SM90]


def gpu(capability: tuple[int, int]) -> Device:
    return Device(kind="cuda", name="Test GPU", uuid="gpu", capability=capability)


def arguments(text: str) -> list[str]:
    """Split at the commas that stand in no brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "<(") - (letter in ">)")
        parts = [*parts, ""] if letter == "," and depth == 0 else [*parts[:-1], parts[-1] + letter]
    assert depth == 0, text
    return [part.strip() for part in parts]


@st.composite
def builds(draw: st.DrawFn) -> CutlassBuild:
    capability = draw(st.sampled_from(list(ARCHITECTURES)))
    step = 8 if capability == (9, 0) else draw(st.sampled_from([2, 4, 8]))
    types = st.sampled_from(["fp16"] if capability == (7, 5) else ["fp16", "bf16"])
    dtype = draw(types)
    activation = cast("Activation", draw(st.sampled_from(ACTIVATIONS)))
    problem = GemmProblem(
        m=draw(st.integers(1, 5000)), n=step * draw(st.integers(1, 500)), k=step * draw(st.integers(1, 500)),
        dtype=dtype, output=draw(st.sampled_from([dtype, "fp32"])),
        bias=activation != "none" or draw(st.booleans()), activation=activation, residual=draw(st.booleans()),
    )  # fmt: skip
    tiles = list(space(gpu(capability), problem))
    return build_of(gpu(capability), problem, tiles[draw(st.integers(0, len(tiles) - 1))])


@settings(max_examples=60, deadline=None)
@given(build=builds())
def test_every_legal_build_has_a_line_with_an_argument_for_each_parameter(build: CutlassBuild) -> None:
    source = source_of(build)
    line = re.fullmatch(r"AUTOTUNE_GEMM\((.*)\)", source.code)
    assert line is not None and "None" not in source.code
    name, *given = arguments(line[1])
    assert name == "{name}"
    assert len(given) == len(arguments(HEADS[source.header]))
    sides = [str(build.tile[side]) for side in ("tile_m", "tile_n", "tile_k")]
    assert next(re.findall(r"\d+", text) for text in given if "Shape<" in text) == sides


@settings(max_examples=30, deadline=None)
@given(build=builds(), data=st.data())
def test_what_the_code_follows_from_is_in_the_line(build: CutlassBuild, data: st.DataObject) -> None:
    other = {
        "activation": data.draw(st.sampled_from([name for name in ACTIVATIONS if name != build.activation])),
        "output": "fp32" if build.output != "fp32" else build.dtype,
    }
    for name, value in other.items():
        assert source_of(replace(build, **{name: value})) != source_of(build), name
    tile = data.draw(st.sampled_from([name for name, _ in build.tile.values if name.startswith("tile_")]))
    larger = {**dict(build.tile.values), tile: 2 * int(build.tile[tile])}
    assert source_of(replace(build, tile=Configuration.of("cutlass", larger))) != source_of(build)
    assert source_of(replace(build, bias=not build.bias)) == source_of(build), "a null bias needs no other kernel"


def compiled(build: CutlassBuild, folder: Path) -> LoadedCutlassKernel:
    """Compile a build, or say why this machine cannot."""
    try:
        compiler = NvccCompiler.find(build.architecture.removeprefix("sm_"))
    except WorkError as error:
        pytest.skip(f"{error.found}: {error.run}")
    (kernel,) = NvccCache(folder).compile(compiler, [source_of(build)])
    assert isinstance(kernel, CompiledCudaKernel), kernel
    return LoadedCutlassKernel(kernel)


def test_nvcc_takes_a_pingpong_kernel_with_everything(tmp_path: Path) -> None:
    problem = GemmProblem(m=128, n=64, k=64, dtype="bf16", bias=True, activation="silu", residual=True, output="bf16")
    tile = {"tile_m": 64, "tile_n": 32, "tile_k": 64, "cluster_m": 2, "cluster_n": 1}
    point = Configuration.of("cutlass", {**tile, "schedule": "pingpong", "scheduler": "persistent"})
    kernel = compiled(build_of(gpu((9, 0)), problem, point), tmp_path)
    assert kernel.workspace_bytes(GemmSize(m=128, n=64, k=64), CutlassLaunch(), sm_count=132) == 0


def test_nvcc_takes_a_stream_k_kernel(tmp_path: Path) -> None:
    problem = GemmProblem(m=256, n=512, k=128)
    tile = {"tile_m": 128, "tile_n": 64, "tile_k": 64, "cluster_m": 1, "cluster_n": 1}
    point = Configuration.of("cutlass", {**tile, "schedule": "cooperative", "scheduler": "stream_k"})
    kernel = compiled(build_of(gpu((9, 0)), problem, point), tmp_path)
    launch = CutlassLaunch(decomposition="split_k", splits=2)
    assert kernel.workspace_bytes(GemmSize(m=256, n=512, k=128), launch, sm_count=132) > 0


def test_nvcc_takes_a_multistage_kernel_for_rows_of_two_elements(tmp_path: Path) -> None:
    problem = GemmProblem(m=5, n=62, k=34, bias=True, activation="gelu_tanh", residual=True)
    tile = {"tile_m": 64, "tile_n": 64, "tile_k": 32, "warp_m": 32, "warp_n": 32, "stages": 4}
    kernel = compiled(build_of(gpu((8, 0)), problem, Configuration.of("cutlass", tile)), tmp_path)
    assert kernel.workspace_bytes(GemmSize(m=5, n=62, k=34), CutlassLaunch(), sm_count=108) == 0
