"""The estimate against times measured on an H200: six CUTLASS tiles with bias and GELU, of twelve that were timed.

Known of each shape are the best of the twelve and the time of the worst. The constants were fitted to these shapes.
"""

import pytest

from autotune.configuration import Configuration
from autotune.kernel_problem import GemmProblem
from autotune.search.kernel_cost import KernelCost
from tests.search.kernel_simulator import RATES


def tile(m: int, n: int, k: int, schedule: str, cluster_m: int = 1, **more: str | int) -> Configuration:
    values = {"tile_m": m, "tile_n": n, "tile_k": k, "cluster_m": cluster_m, "cluster_n": 1, "schedule": schedule}
    return Configuration.of("cutlass", {**values, "scheduler": "persistent", **more})


TILES = {
    "64x64x128": tile(64, 64, 128, "pingpong"),
    "64x16x128": tile(64, 16, 128, "pingpong"),
    "64x128x64": tile(64, 128, 64, "pingpong"),
    "64x256x64": tile(64, 256, 64, "pingpong", cluster_m=2),
    "256x128x64": tile(256, 128, 64, "cooperative"),
    "128x256x64": tile(128, 256, 64, "cooperative"),
}
MEASURED = [
    ((128, 3072, 768), "64x64x128", 5.34, 13.7),
    ((128, 768, 3072), "64x16x128", 7.08, 33.8),
    ((197, 3072, 768), "64x128x64", 6.87, 16.9),
    ((4096, 3072, 768), "64x256x64", 38.1, 151.0),
    ((4096, 768, 3072), "64x128x64", 32.0, 94.0),
    ((6304, 3072, 768), "256x128x64", 62.5, 250.0),
    ((8192, 8192, 8192), "128x256x64", 1775.0, 12158.0),
]


def problem(m: int, n: int, k: int) -> GemmProblem:
    return GemmProblem(m=m, n=n, k=k, bias=True, activation="gelu")


def estimate_us(of: GemmProblem, candidate: Configuration) -> float:
    found = KernelCost(RATES, of).estimate(candidate)
    assert found is not None
    return found.us


@pytest.mark.parametrize(("shape", "best", "best_us", "worst_us"), MEASURED)
def test_the_best_measured_tile_is_estimated_right_and_among_the_best(shape, best, best_us, worst_us) -> None:
    times_us = {name: estimate_us(problem(*shape), each) for name, each in TILES.items()}
    assert times_us[best] == pytest.approx(best_us, rel=0.25)
    assert times_us[best] <= 1.15 * min(times_us.values())
    assert max(times_us.values()) <= 1.3 * worst_us


def test_a_small_m_wants_a_tile_that_fills_the_device() -> None:
    times_us = {name: estimate_us(problem(128, 768, 3072), each) for name, each in TILES.items()}
    assert min(times_us, key=lambda name: times_us[name]) == "64x16x128"


def test_a_last_wave_costs_a_whole_one() -> None:
    full, over = problem(128 * 11, 256 * 12, 4096), problem(128 * 11, 256 * 12 + 8, 4096)
    assert estimate_us(over, TILES["128x256x64"]) > 1.5 * estimate_us(full, TILES["128x256x64"])


def test_splitting_k_pays_where_few_blocks_have_a_long_way_only() -> None:
    def gain(of: GemmProblem) -> float:
        build = {"scheduler": "stream_k", "decomposition": "split_k"}
        whole = tile(128, 128, 64, "cooperative", splits=1, **{**build, "decomposition": "data_parallel"})
        return estimate_us(of, tile(128, 128, 64, "cooperative", splits=4, **build)) / estimate_us(of, whole)

    assert gain(problem(128, 1024, 16384)) < 0.5
    assert gain(problem(4096, 8192, 768)) > 1.05


def test_a_step_of_a_kernel_with_other_names_for_its_tile_counts_too() -> None:
    triton = Configuration.of("triton_gemm", {"block_n": 32, "block_k": 128, "split_k": 1, "stages": 4, "warps": 4})
    split = Configuration.of("triton_gemm", {"block_n": 32, "block_k": 128, "split_k": 4, "stages": 4, "warps": 4})
    small = problem(16, 1024, 16384)
    assert estimate_us(small, split) < estimate_us(small, triton)
    assert KernelCost(RATES, small).estimate(Configuration.of("cublaslt", {"rank": 0})) is None
