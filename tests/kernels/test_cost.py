"""The estimate against times measured on an H200 with cold caches: CUTLASS tiles, and lean ones, with bias.

Of each shape the times are those of the best of 219 builds, of one in the middle and of one near the end, plainly
launched; of lean tiles, those of the best and of the slowest of the 30 or more that were timed. The constants were
fitted to all builds of these shapes.
"""

from typing import get_args

import pytest

from autotune.kernels.cost import KernelCost
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import Activation, GemmProblem
from tests.kernels.kernel_simulator import RATES


def tile(m: int, n: int, k: int, schedule: str, clusters: tuple[int, int] = (1, 1), **more: str | int) -> Configuration:
    values = {"tile_m": m, "tile_n": n, "tile_k": k, "cluster_m": clusters[0], "cluster_n": clusters[1]}
    return Configuration.of("cutlass", {**values, "schedule": schedule, "scheduler": "persistent", **more})


STREAM_K = {"scheduler": "stream_k"}
WIDE = tile(128, 256, 64, "cooperative")
MEASURED = [
    (
        (25088, 64, 256),
        (tile(64, 64, 64, "pingpong"), 9.38),
        (tile(256, 192, 32, "cooperative", **STREAM_K), 13.96),
        (tile(128, 96, 128, "cooperative", (2, 4), **STREAM_K), 24.0),
    ),
    (
        (4096, 3072, 768),
        (tile(128, 192, 64, "pingpong", (2, 1)), 31.19),
        (tile(192, 96, 48, "pingpong", (1, 4)), 49.73),
        (tile(256, 112, 96, "cooperative", (4, 2), **STREAM_K), 80.95),
    ),
    (
        (4096, 768, 3072),
        (tile(128, 192, 32, "pingpong", (1, 2)), 30.75),
        (tile(128, 96, 48, "cooperative", (1, 8), **STREAM_K), 54.14),
        (tile(128, 64, 48, "cooperative", (2, 1), **STREAM_K), 86.2),
    ),
    (
        (197, 768, 3072),
        (tile(64, 32, 128, "pingpong", (1, 8)), 9.42),
        (tile(128, 48, 32, "cooperative", (4, 1)), 20.68),
        (tile(256, 32, 128, "cooperative", (8, 1)), 81.39),
    ),
    (
        (1576, 2304, 768),
        (tile(128, 256, 32, "cooperative"), 14.38),
        (tile(256, 192, 96, "cooperative", (1, 8), **STREAM_K), 23.57),
        (tile(128, 32, 48, "pingpong", (1, 8)), 34.39),
    ),
    (
        (32, 4096, 11008),
        (tile(64, 64, 64, "pingpong"), 36.82),
        (tile(128, 256, 128, "cooperative", (2, 2), **STREAM_K), 83.85),
        (tile(256, 32, 64, "cooperative", (8, 1), **STREAM_K), 1141.15),
    ),
]


def lean(m: int, n: int, k: int, *, swapped: bool = False, splits: int = 1, **more: int) -> Configuration:
    tile = {"tile_m": m, "tile_n": n, "tile_k": k, "cluster_m": 1, "cluster_n": 1, "groups": 1, "residents": 1}
    return Configuration.of("hopper_gemm", {**tile, "swapped": swapped, "splits": splits, **more})


LEAN_MEASURED = [
    (
        GemmProblem(m=128, n=2304, k=768, bias=True),
        (lean(64, 48, 128), 5.46),
        (lean(64, 96, 64, splits=2, cluster_n=4), 7.80),
    ),
    (
        GemmProblem(m=1, n=11008, k=4096, bias=True, activation="silu"),
        (lean(8, 128, 128, swapped=True), 25.53),
        (lean(8, 192, 64, swapped=True, splits=6), 35.39),
    ),
    (
        GemmProblem(m=25088, n=128, k=512, bias=True, activation="relu"),
        (lean(192, 128, 64, swapped=True, groups=2), 12.50),
        (lean(128, 64, 128, swapped=True, cluster_m=2), 20.34),
    ),
    (
        GemmProblem(m=6272, n=512, k=128, bias=True, activation="relu", residual=True),
        (lean(192, 64, 64, swapped=True, residents=2), 8.02),
        (lean(128, 256, 128, groups=2, cluster_n=2), 12.98),
    ),
]


def problem(m: int, n: int, k: int) -> GemmProblem:
    return GemmProblem(m=m, n=n, k=k, bias=True)


def estimate_us(of: GemmProblem, candidate: Configuration) -> float:
    found = KernelCost(RATES, of).estimate(candidate)
    assert found is not None
    return found.us


@pytest.mark.parametrize(("shape", "best", "middle", "late"), MEASURED)
def test_the_best_measured_tile_is_estimated_right_and_the_others_in_their_order(shape, best, middle, late) -> None:
    best_us, middle_us, late_us = (estimate_us(problem(*shape), each) for each, _ in (best, middle, late))
    assert best_us == pytest.approx(best[1], rel=0.25)
    assert best_us < 0.8 * middle_us < 0.8 * late_us


@pytest.mark.parametrize(("of", "best", "slow"), LEAN_MEASURED)
def test_the_best_measured_lean_tile_is_estimated_right_and_before_a_slow_one(of, best, slow) -> None:
    best_us, slow_us = estimate_us(of, best[0]), estimate_us(of, slow[0])
    assert best_us == pytest.approx(best[1], rel=0.25)
    assert slow_us > best_us


def test_columns_in_stripes_of_sixteen_and_narrow_copies_cost_more_than_they_compute() -> None:
    large = problem(4096, 768, 3072)
    assert estimate_us(large, tile(128, 112, 64, "pingpong")) > 1.4 * estimate_us(large, tile(128, 128, 64, "pingpong"))
    assert estimate_us(large, tile(128, 128, 48, "pingpong")) > 1.2 * estimate_us(large, tile(128, 128, 32, "pingpong"))


def test_two_stages_leave_the_latency_of_a_copy_to_be_waited_for() -> None:
    def us(stages: int) -> float:
        values = {"tile_m": 32, "tile_n": 32, "tile_k": 128, "warps_m": 2, "warps_n": 2, "stages": stages, "splits": 1}
        return estimate_us(problem(32, 1024, 8192), Configuration.of("cluster_gemm", values))

    assert us(2) > 1.5 * us(3) > 1.5 * us(4)


def test_blocks_of_small_tiles_share_a_multiprocessor() -> None:
    values = {"tile_m": 32, "tile_n": 32, "tile_k": 128, "warps_m": 2, "warps_n": 2, "stages": 4, "splits": 1}
    small = Configuration.of("cluster_gemm", values)
    assert estimate_us(problem(32 * 132, 32 * 4, 4096), small) < 3 * estimate_us(problem(32 * 132, 32, 4096), small)


def test_an_activation_costs_time() -> None:
    plain, gelu = (GemmProblem(m=4096, n=3072, k=768, bias=True, activation=each) for each in ("none", "gelu"))
    assert estimate_us(gelu, WIDE) > estimate_us(plain, WIDE)


def test_a_small_m_wants_a_tile_that_fills_the_device() -> None:
    tiles = [tile(64, 16, 128, "pingpong"), tile(64, 128, 64, "pingpong"), tile(256, 128, 64, "cooperative"), WIDE]
    times_us = [estimate_us(problem(128, 768, 3072), each) for each in tiles]
    assert min(times_us) == times_us[0] < 0.6 * times_us[1]


def test_a_last_wave_costs_a_whole_one() -> None:
    full, over = problem(128 * 11, 256 * 12, 4096), problem(128 * 11, 256 * 12 + 8, 4096)
    assert estimate_us(over, WIDE) > 1.5 * estimate_us(full, WIDE)


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


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_has_an_estimate(activation: str) -> None:
    plain, activated = (
        GemmProblem(m=512, n=1024, k=1024, bias=True, activation=name)  # type: ignore[arg-type]
        for name in ("none", activation)
    )
    candidate = tile(128, 128, 64, "pingpong")
    assert estimate_us(activated, candidate) >= estimate_us(plain, candidate)
