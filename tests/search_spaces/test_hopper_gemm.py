from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.search_spaces.hopper_gemm import GEMM, in_boxes, space, stages

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(9, 0))
IMAGES = Window(
    height=14, width=14, channels=64, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
)  # fmt: skip
PROBLEMS = st.builds(
    GemmProblem, m=st.integers(1, 5000), n=st.integers(1, 5000), k=st.integers(1, 1000).map(lambda units: 8 * units),
    bias=st.booleans(), dtype=st.sampled_from(["fp16", "bf16"]), output=st.sampled_from(["fp16", "bf16", "fp32"]),
)  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(problem=PROBLEMS, sm_count=st.sampled_from([40, 132]))
def test_any_problem_has_kernels_and_first_ones_among_them(problem: GemmProblem, sm_count: int) -> None:
    legal = space(HOPPER, problem)
    first = GEMM.first_candidates(HOPPER, problem, sm_count=sm_count, count=4)
    assert 0 < len(first) <= 4 and not any(map(legal.refusal, first))
    for tile in first:
        for way in GEMM.launches(HOPPER, problem, tile):
            assert int(way["splits"]) * int(way["cluster_m"]) * int(way["cluster_n"]) <= 8


@settings(max_examples=20, deadline=None)
@given(problem=PROBLEMS, start=st.integers(0, 400))
def test_what_is_legal_fits_a_multiprocessor(problem: GemmProblem, start: int) -> None:
    for tile in islice(space(HOPPER, problem), start, start + 20):
        ctas_per_sm, groups = int(tile["residents"]), int(tile["groups"])
        rows, columns = int(tile["tile_m"]), int(tile["tile_n"])
        stage = (rows + columns) * int(tile["tile_k"]) * 2
        assert stages(tile) >= 2
        assert ctas_per_sm * (stages(tile) * (stage + 16) + 1024 + 1024) <= 228 * 1024
        sums = rows * columns // (128 * groups)
        assert ctas_per_sm * (128 * groups + 32) * (sums + 32) <= 65536
        assert not (columns if tile["swapped"] else rows) % (64 * groups)


def refusal(problem: GemmProblem, **values: Scalar) -> str | None:
    point: dict[str, Scalar] = {
        "swapped": False, "tile_m": 128, "tile_n": 128, "tile_k": 64, "groups": 1, "residents": 1, "cluster_m": 1,
        "cluster_n": 1, **values,
    }  # fmt: skip
    return space(HOPPER, problem).refusal(Configuration.of("hopper_gemm", point))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, None),
        ({"groups": 2}, None),
        ({"tile_n": 256}, "more than 128 accumulators"),
        ({"tile_n": 256, "groups": 2}, None),
        ({"tile_n": 256, "groups": 2, "residents": 2}, "leave no registers"),
        ({"tile_m": 64, "groups": 2}, "64 rows at a time"),
        ({"swapped": True, "tile_m": 160}, "more than 128 accumulators"),
        ({"swapped": True, "tile_n": 96}, "64 rows at a time"),
        ({"tile_k": 128, "residents": 3, "tile_m": 64, "tile_n": 256}, "leave no registers"),
        ({"tile_k": 128, "residents": 3, "tile_m": 64, "tile_n": 160}, "two stages"),
        ({"cluster_m": 4, "cluster_n": 4}, "at most 8 blocks"),
        ({"cluster_m": 2, "tile_n": 48}, None),
        ({"cluster_m": 4, "tile_n": 48}, "whole groups of 8 rows"),
    ],
)
def test_the_rules(values: dict[str, Scalar], why: str | None) -> None:
    found = refusal(GemmProblem(m=640, n=768, k=768), **values)
    assert found is None if why is None else found is not None and why in found


def test_no_tile_has_twice_the_size_of_its_dimension_and_no_cluster_more_blocks_than_tiles() -> None:
    assert "twice" in str(refusal(GemmProblem(m=64, n=768, k=768)))
    assert refusal(GemmProblem(m=65, n=768, k=768)) is None
    assert "without a tile" in str(refusal(GemmProblem(m=128, n=768, k=768), cluster_m=2))
    assert refusal(GemmProblem(m=129, n=768, k=768), cluster_m=2) is None


def test_few_rows_are_the_columns_of_the_instructions() -> None:
    tiles = list(space(HOPPER, GemmProblem(m=8, n=4096, k=4096)))
    assert {8} < {tile["tile_m"] for tile in tiles}
    assert all(tile["swapped"] for tile in tiles if tile["tile_m"] == 8)


def test_rows_are_divided_evenly() -> None:
    """197 rows: in 2 tiles of 104, in 3 of 72, in 4 of 56."""
    sizes = next(one for one in space(HOPPER, GemmProblem(m=197, n=768, k=768)).parameters if one.name == "tile_m")
    assert {104, 72, 56} < set(sizes.choices)


def test_steps_are_whole_in_a_convolution() -> None:
    problem = GemmProblem(m=196, n=64, k=576, window=IMAGES, bias=True)
    assert refusal(problem, tile_m=64, tile_n=64) is None
    assert "whole in a convolution" in str(refusal(problem, tile_m=64, tile_n=64, tile_k=128))


@pytest.mark.parametrize(
    ("change", "served"),
    [
        ({"channels": 64, "padding": (1, 1)}, True),
        ({"channels": 16, "kernel": (4, 4)}, True),
        ({"channels": 32, "kernel": (3, 2), "padding": (1, 0)}, True),
        ({"channels": 16, "kernel": (4, 4), "padding": (0, 1)}, False),
        ({"channels": 16, "kernel": (4, 4), "dilation": (1, 2)}, False),
        ({"channels": 16, "kernel": (4, 3)}, False),
    ],
)
def test_a_copy_brings_whole_channels_or_whole_rows_of_a_kernel(change: dict[str, Any], served: bool) -> None:
    assert in_boxes(replace(IMAGES, **{"padding": (0, 0), "kernel": (3, 3), **change})) is served


@pytest.mark.parametrize(
    ("device", "change"),
    [
        (Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(8, 0)), {}),
        (Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(10, 0)), {}),
        (Device(kind="cpu", name="CPU", uuid="cpu"), {}),
        (HOPPER, {"k": 1020}),
        (HOPPER, {"dtype": "fp32", "output": "fp32"}),
        (HOPPER, {"b_major": "mn"}),
    ],
)
def test_what_is_not_served_is_told(device: Device, change: dict[str, object]) -> None:
    with pytest.raises(SpaceError, match=r"sm_90a(.|\n)*multiples of 16 bytes"):
        space(device, GemmProblem(**{"m": 64, "n": 64, "k": 1024, **change}))  # type: ignore[arg-type]
