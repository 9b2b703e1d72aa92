"""Kernels in words: a different word for whatever is a different kernel."""

from itertools import islice

import pytest

from autotune.backends.native.cublaslt import CUBLASLT
from autotune.backends.native.describe import describe, kernel_words
from autotune.backends.native.library import TORCH
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cluster_gemm, cutlass_gemm, hopper_gemm, triton_gemm

PROBLEM = GemmProblem(m=48, n=3072, k=768, bias=True, activation="gelu", residual=True)


def device(*capability):
    return Device(kind="cuda", name="Test GPU", uuid="gpu", capability=capability)


def cutlass(*capability):
    for tile in islice(cutlass_gemm.space(device(*capability), PROBLEM), 0, None, 23):
        yield from (one.configuration for one in cutlass_gemm.candidates(device(*capability), PROBLEM, tile))


@pytest.mark.parametrize(
    "candidates",
    [
        list(cutlass(9, 0)), list(cutlass(8, 0)), list(islice(triton_gemm.space(device(9, 0), PROBLEM), 0, None, 7)),
        *([way for tile in islice(kind.space(device(9, 0), PROBLEM), 0, None, 9)
           for way in kind.launches(device(9, 0), PROBLEM, tile)] for kind in (cluster_gemm.GEMM, hopper_gemm.GEMM)),
        CUBLASLT.ready(device(9, 0), PROBLEM), TORCH.ready(device(9, 0), PROBLEM),
    ],
    ids=["cutlass 3", "cutlass 2", "triton", "cluster", "hopper", "cublaslt", "torch"],
)  # fmt: skip
def test_no_two_candidates_are_described_alike(candidates):
    assert len(candidates) > 1
    assert len({kernel_words(one) for one in candidates}) == len(set(candidates))


def test_what_is_plain_is_left_out():
    values = {
        "tile_m": 128, "tile_n": 64, "tile_k": 64, "cluster_m": 2, "cluster_n": 1, "schedule": "pingpong",
        "scheduler": "persistent", "swizzle": 1, "raster": "heuristic", "decomposition": "data_parallel", "splits": 1,
        "reduction": "deterministic",
    }  # fmt: skip
    assert kernel_words(Configuration.of("cutlass", values)) == "CUTLASS 128×64×64, cluster 2×1, pingpong"
    split = values | {"scheduler": "stream_k", "decomposition": "split_k", "splits": 4, "cluster_m": 1}
    assert kernel_words(Configuration.of("cutlass", split)) == "CUTLASS 128×64×64, pingpong, split-K 4"
    assert kernel_words(Configuration.of("cublaslt", {"rank": 0})) == "cuBLASLt heuristic's choice 1"


def test_a_record_is_described_with_words_beside_its_kernels():
    kernel = {"configuration": {"backend": "cublaslt", "rank": 2}, "median_us": 4.0}
    site = {"name": "gemm", "operator": "gemm", "problem": PROBLEM.as_dict(), "kernel": kernel, "library": None}
    bare = {"name": "conv", "operator": "conv2d"}
    record = {"schema": 1, "sites": [site, bare]}
    assert describe(record) == {
        "schema": 1,
        "sites": [site | {"kernel": kernel | {"words": "cuBLASLt heuristic's choice 3"}}, bare],
    }
    assert "words" not in kernel
