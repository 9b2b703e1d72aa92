"""The lean kernels' own code on a CPU, with emulated instructions of sm_90a, against the definition."""

from dataclasses import replace

import pytest
import torch

from autotune.backends.native.cuda_kernels.cuda_kind import HOPPER_GEMM
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.search_spaces import hopper_gemm
from autotune.search_spaces.split_gemm import SplitBuild
from tests.backends.native.cuda_kernels.emulating import EmulatedKernels, emulated
from tests.backends.native.kernel_problems import check, convolution, epilogues

TILES = (
    ("fp16", "fp16", (False, 64, 64, 64, 1, 3, 1, 1)),
    ("fp16", "fp16", (True, 8, 64, 128, 1, 3, 2, 1)),
    ("bf16", "fp32", (False, 128, 40, 64, 2, 1, 1, 1)),
    ("fp16", "fp16", (True, 56, 128, 64, 1, 1, 1, 1)),
    ("bf16", "bf16", (True, 24, 128, 64, 2, 1, 1, 1)),
    ("fp16", "fp16", (False, 64, 256, 64, 1, 1, 1, 4)),
    ("bf16", "bf16", (False, 128, 48, 64, 1, 2, 2, 2)),
)
"""Types, then swapped, tile_m, tile_n, tile_k, groups, residents, and the blocks along m and n that share."""

SIDES = ("swapped", "tile_m", "tile_n", "tile_k", "groups", "residents", "cluster_m", "cluster_n")

SHAPES = ((1, 8, 8, 1), (150, 104, 520, 1), (33, 100, 520, 3), (130, 72, 1032, 4), (16, 65, 264, 1), (70, 296, 640, 1))
"""m, n, k and splits."""

MOST_BLOCKS = 8
"""Of a cluster."""

CONVOLUTIONS = (
    (convolution(2, 24, Window(height=9, width=7, channels=64, kernel=(3, 3), padding=(1, 1))), 2),
    (convolution(1, 40, Window(height=12, width=12, channels=128, kernel=(1, 1), stride=(2, 2))), 1),
    (convolution(3, 9, Window(height=8, width=11, channels=128, kernel=(2, 5), stride=(1, 3), padding=(1, 0),
                              dilation=(3, 2))), 3),
    (convolution(2, 64, Window(height=9, width=13, channels=16, kernel=(4, 4), stride=(2, 1))), 1),
    (convolution(1, 24, Window(height=7, width=11, channels=32, kernel=(3, 2), stride=(1, 3), padding=(1, 0))), 2),
)  # fmt: skip


def source(number: int, *, window: bool) -> KernelSource:
    dtype, output, sides = TILES[number]
    tile = Configuration.of(hopper_gemm.NAME, dict(zip(SIDES, sides, strict=True)))
    build = SplitBuild(
        kind=hopper_gemm.NAME, architecture="sm_90a", dtype=dtype, output=output, window=window, tile=tile
    )  # fmt: skip
    return HOPPER_GEMM.source_of(build)


def together(number: int) -> int:
    return TILES[number][2][-2] * TILES[number][2][-1]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    sources = [source(number, window=window) for number in range(len(TILES)) for window in (False, True)]
    folder = tmp_path_factory.mktemp("emulated")
    return emulated(folder, "emulated_sm90.h", HOPPER_GEMM, "autotune::HopperOrder", sources)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_any_shape_by_any_number_of_splits(number: int, kernels: EmulatedKernels) -> None:
    dtype, output, _ = TILES[number]
    kinds = list(epilogues(GemmProblem(m=1, n=1, k=1, dtype=dtype, output=output)))  # type: ignore[arg-type]
    for turn, (m, n, k, most) in enumerate(SHAPES):
        splits = min(most, MOST_BLOCKS // together(number))
        problem = replace(kinds[(3 * number + 5 * turn) % len(kinds)], m=m, n=n, k=k)
        check(kernels.load(source(number, window=False), problem, splits), problem, turn)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_convolutions(number: int, kernels: EmulatedKernels) -> None:
    dtype, output, sides = TILES[number]
    depth = sides[3]
    for turn, (problem, most) in enumerate(CONVOLUTIONS):
        splits = min(most, MOST_BLOCKS // together(number))
        kinds = list(epilogues(replace(problem, dtype=dtype, output=output)))  # type: ignore[arg-type]
        one = kinds[(3 * number + 5 * turn) % len(kinds)]
        if one.k % depth == 0:
            check(kernels.load(source(number, window=True), one, splits), one, turn)


def test_splits_are_added_in_their_order(kernels: EmulatedKernels) -> None:
    problem = GemmProblem(m=40, n=64, k=1024)
    kernel = kernels.load(source(0, window=False), problem, 4)
    a, b = torch.randn(40, 1024).half(), torch.randn(64, 1024).half()
    first, again = torch.empty(2, 40, 64, dtype=torch.float16)
    kernel(a, b, None, None, first)
    kernel(a, b, None, None, again)
    assert torch.equal(first, again)
