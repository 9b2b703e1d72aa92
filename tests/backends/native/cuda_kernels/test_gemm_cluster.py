"""The cluster kernels' own code on a CPU, with emulated instructions, against the definition."""

import ctypes
from dataclasses import replace

import pytest
import torch

from autotune.backends.native.cuda_kernels.cuda_kind import ELEMENTS
from autotune.records.kernel_problem import GemmProblem, Window
from tests.backends.native.cuda_kernels.emulating import Emulated, emulated
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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    lines = [
        f"AUTOTUNE_GEMM_CLUSTER({kind}_{number}, {ELEMENTS[dtype]}, {ELEMENTS[output]}, {window}, "
        f"{', '.join(map(str, sides))})"
        for number, (dtype, output, sides) in enumerate(TILES)
        for kind, window in (("tile", "false"), ("window", "true"))
    ]
    return emulated(tmp_path_factory.mktemp("emulated"), "emulated.h", "gemm_cluster.cuh", lines)


@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_any_shape_by_any_number_of_splits(number: int, library: ctypes.CDLL) -> None:
    dtype, output, _ = TILES[number]
    kinds = list(epilogues(GemmProblem(m=1, n=1, k=1, dtype=dtype, output=output)))  # type: ignore[arg-type]
    for turn, (m, n, k, splits) in enumerate(SHAPES):
        problem = replace(kinds[(3 * number + 5 * turn) % len(kinds)], m=m, n=n, k=k)
        check(Emulated(getattr(library, f"tile_{number}_run"), problem, splits), problem, turn)


@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_convolutions(number: int, library: ctypes.CDLL) -> None:
    dtype, output, _ = TILES[number]
    for turn, (problem, splits) in enumerate(CONVOLUTIONS):
        kinds = list(epilogues(replace(problem, dtype=dtype, output=output)))  # type: ignore[arg-type]
        one = kinds[(3 * number + 5 * turn) % len(kinds)]
        check(Emulated(getattr(library, f"window_{number}_run"), one, splits), one, turn)


def test_splits_are_added_in_their_order(library: ctypes.CDLL) -> None:
    problem = GemmProblem(m=40, n=64, k=1024)
    kernel = Emulated(library.tile_0_run, problem, 4)
    a, b = torch.randn(40, 1024).half(), torch.randn(64, 1024).half()
    first, again = torch.empty(2, 40, 64, dtype=torch.float16)
    kernel(a, b, None, None, first)
    kernel(a, b, None, None, again)
    assert torch.equal(first, again)
