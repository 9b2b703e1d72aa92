"""The lean kernels' own code on a CPU, with emulated instructions of sm_90a, against the definition."""

import ctypes
from dataclasses import replace

import pytest
import torch

from autotune.backends.native.cuda_kernels.cuda_kind import ELEMENTS
from autotune.records.kernel_problem import GemmProblem, Window
from tests.backends.native.cuda_kernels.emulating import Emulated, emulated
from tests.backends.native.kernel_problems import check, convolution, epilogues

TILES = (
    ("fp16", "fp16", "false, 64, 64, 64, 1, 3, 4, 1, 1"),
    ("fp16", "fp16", "true, 8, 64, 128, 1, 3, 3, 2, 1"),
    ("bf16", "fp32", "false, 128, 40, 64, 2, 1, 3, 1, 1"),
    ("fp16", "fp16", "true, 56, 128, 64, 1, 1, 5, 1, 1"),
    ("bf16", "bf16", "true, 24, 128, 64, 2, 1, 3, 1, 1"),
    ("fp16", "fp16", "false, 64, 256, 64, 1, 1, 2, 1, 4"),
    ("bf16", "bf16", "false, 128, 48, 64, 1, 2, 4, 2, 2"),
)
"""Types, then swapped, tile_m, tile_n, tile_k, groups, residents, stages and the blocks along m and n that share."""

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


def together(number: int) -> int:
    along_m, along_n = map(int, TILES[number][2].split(", ")[-2:])
    return along_m * along_n


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    lines = [
        f"AUTOTUNE_GEMM_HOPPER({kind}_{number}, {ELEMENTS[dtype]}, {ELEMENTS[output]}, {window}, {sides})"
        for number, (dtype, output, sides) in enumerate(TILES)
        for kind, window in (("tile", "false"), ("window", "true"))
    ]
    return emulated(tmp_path_factory.mktemp("emulated"), "emulated_sm90.h", "gemm_hopper.cuh", lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_any_shape_by_any_number_of_splits(number: int, library: ctypes.CDLL) -> None:
    dtype, output, _ = TILES[number]
    kinds = list(epilogues(GemmProblem(m=1, n=1, k=1, dtype=dtype, output=output)))  # type: ignore[arg-type]
    for turn, (m, n, k, most) in enumerate(SHAPES):
        splits = min(most, MOST_BLOCKS // together(number))
        problem = replace(kinds[(3 * number + 5 * turn) % len(kinds)], m=m, n=n, k=k)
        check(Emulated(getattr(library, f"tile_{number}_run"), problem, splits), problem, turn)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles_compute_convolutions(number: int, library: ctypes.CDLL) -> None:
    dtype, output, sides = TILES[number]
    depth = int(sides.split(", ")[3])
    for turn, (problem, most) in enumerate(CONVOLUTIONS):
        splits = min(most, MOST_BLOCKS // together(number))
        kinds = list(epilogues(replace(problem, dtype=dtype, output=output)))  # type: ignore[arg-type]
        one = kinds[(3 * number + 5 * turn) % len(kinds)]
        if one.k % depth == 0:
            check(Emulated(getattr(library, f"window_{number}_run"), one, splits), one, turn)


def test_splits_are_added_in_their_order(library: ctypes.CDLL) -> None:
    problem = GemmProblem(m=40, n=64, k=1024)
    kernel = Emulated(library.tile_0_run, problem, 4)
    a, b = torch.randn(40, 1024).half(), torch.randn(64, 1024).half()
    first, again = torch.empty(2, 40, 64, dtype=torch.float16)
    kernel(a, b, None, None, first)
    kernel(a, b, None, None, again)
    assert torch.equal(first, again)
