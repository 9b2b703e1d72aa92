"""The cluster kernels' own code on a CPU, with emulated instructions, against the definition."""

from dataclasses import replace

import pytest
import torch

from autotune.backends.native.cuda_kernels.cuda_kind import CLUSTER_GEMM
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.search_spaces import cluster_gemm
from autotune.search_spaces.split_gemm import SplitBuild
from tests.backends.native.cuda_kernels.emulating import EmulatedKernels, emulated
from tests.backends.native.kernel_problems import check, convolution, epilogues

TILES = (
    ("fp16", "fp16", (64, 64, 64, 2, 2, 4)),
    ("fp16", "fp32", (16, 64, 32, 1, 4, 3)),
    ("bf16", "bf16", (32, 16, 128, 2, 1, 3)),
    ("fp16", "fp16", (128, 32, 64, 4, 2, 2)),
    ("bf16", "fp16", (32, 128, 32, 1, 2, 8)),
)
SHAPES = ((1, 8, 8, 1), (33, 100, 520, 1), (33, 100, 520, 3), (130, 72, 1032, 4), (16, 65, 264, 8))
"""m, n, k and splits."""

CONVOLUTIONS = (
    (convolution(2, 24, Window(height=9, width=7, channels=16, kernel=(3, 3), padding=(1, 1))), 2),
    (convolution(1, 40, Window(height=12, width=12, channels=72, kernel=(1, 1), stride=(2, 2))), 1),
    (convolution(3, 9, Window(height=8, width=11, channels=8, kernel=(2, 5), stride=(1, 3), padding=(1, 0),
                              dilation=(3, 2))), 3),
)  # fmt: skip


SIDES = ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages")


def source(number: int, *, window: bool) -> KernelSource:
    dtype, output, sides = TILES[number]
    tile = Configuration.of(cluster_gemm.NAME, dict(zip(SIDES, sides, strict=True)))
    build = SplitBuild(
        kind=cluster_gemm.NAME, architecture="sm_90a", dtype=dtype, output=output, window=window, tile=tile
    )  # fmt: skip
    return CLUSTER_GEMM.source_of(build)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    sources = [source(number, window=window) for number in range(len(TILES)) for window in (False, True)]
    folder = tmp_path_factory.mktemp("emulated")
    return emulated(folder, "emulated.h", CLUSTER_GEMM, "autotune::Order", sources)


@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_any_shape_by_any_number_of_splits(number: int, kernels: EmulatedKernels) -> None:
    dtype, output, _ = TILES[number]
    kinds = list(epilogues(GemmProblem(m=1, n=1, k=1, dtype=dtype, output=output)))  # type: ignore[arg-type]
    for turn, (m, n, k, splits) in enumerate(SHAPES):
        problem = replace(kinds[(3 * number + 5 * turn) % len(kinds)], m=m, n=n, k=k)
        check(kernels.load(source(number, window=False), problem, splits), problem, turn)


@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_convolutions(number: int, kernels: EmulatedKernels) -> None:
    dtype, output, _ = TILES[number]
    for turn, (problem, splits) in enumerate(CONVOLUTIONS):
        kinds = list(epilogues(replace(problem, dtype=dtype, output=output)))  # type: ignore[arg-type]
        one = kinds[(3 * number + 5 * turn) % len(kinds)]
        check(kernels.load(source(number, window=True), one, splits), one, turn)


def test_splits_are_added_in_their_order(kernels: EmulatedKernels) -> None:
    problem = GemmProblem(m=40, n=64, k=1024)
    kernel = kernels.load(source(0, window=False), problem, 4)
    a, b = torch.randn(40, 1024).half(), torch.randn(64, 1024).half()
    first, again = torch.empty(2, 40, 64, dtype=torch.float16)
    kernel(a, b, None, None, first)
    kernel(a, b, None, None, again)
    assert torch.equal(first, again)
