import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces.cluster_gemm import GEMM, MOST_ROWS, shared_bytes, space
from autotune.search_spaces.split_gemm import ARCHITECTURES


def gpu(major: int, minor: int = 0) -> Device:
    return Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(major, minor))


PROBLEMS = st.builds(
    GemmProblem, m=st.integers(1, 512), n=st.integers(1, 5000), k=st.integers(1, 1000).map(lambda units: 8 * units),
    bias=st.booleans(), dtype=st.sampled_from(["fp16", "bf16"]), output=st.sampled_from(["fp16", "bf16", "fp32"]),
)  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(problem=PROBLEMS, sm_count=st.sampled_from([40, 132]))
def test_any_problem_has_kernels_and_first_ones_among_them(problem: GemmProblem, sm_count: int) -> None:
    legal = set(space(gpu(9), problem))
    first = GEMM.first_candidates(gpu(9), problem, sm_count=sm_count, count=4)
    assert 0 < len(first) <= 4 and set(first) <= legal
    assert len({(tile["tile_m"], tile["tile_n"]) for tile in first}) == len(first)
    for tile in first:
        ways = list(GEMM.launches(gpu(9), problem, tile))
        assert ways[0]["splits"] == 1 and len(set(ways)) == len(ways)
        steps = -(-problem.k // int(tile["tile_k"]))
        for count in GEMM.splits(gpu(9), problem, tile):
            assert (count - 1) * -(-steps // count) < steps, "a block without a part of k"


def refusal(problem: GemmProblem, **values: int) -> str | None:
    point = {"tile_m": 64, "tile_n": 64, "tile_k": 64, "warps_m": 2, "warps_n": 2, "stages": 4, **values}
    return space(gpu(9), problem).refusal(Configuration.of("cluster_gemm", point))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, None),
        ({"tile_m": 16}, "16 by 16"),
        ({"warps_m": 4, "warps_n": 4}, "2 to 8 warps"),
        ({"warps_m": 1, "warps_n": 1}, "2 to 8 warps"),
        ({"tile_m": 128, "tile_n": 128, "warps_m": 1}, "leave no registers"),
        ({"tile_m": 128, "tile_n": 128, "tile_k": 128, "stages": 4}, "must fit"),
        ({"tile_m": 128, "tile_n": 128, "tile_k": 128, "stages": 3}, None),
        ({"stages": 8, "tile_k": 128}, "steps over k"),
    ],
)
def test_the_rules(values: dict[str, int], why: str | None) -> None:
    found = refusal(GemmProblem(m=128, n=768, k=768), **values)
    assert found is None if why is None else found is not None and why in found


def test_no_tile_has_twice_the_size_of_its_dimension() -> None:
    assert "twice" in str(refusal(GemmProblem(m=32, n=768, k=768)))
    assert refusal(GemmProblem(m=33, n=768, k=768)) is None


def test_the_sums_take_the_place_of_the_stages() -> None:
    tile = {"tile_m": 128, "tile_n": 128, "tile_k": 32, "stages": 2}
    assert shared_bytes(tile) == 128 * 132 * 4
    assert shared_bytes({**tile, "stages": 6}) == 6 * 256 * 32 * 2


def test_clusters_come_with_hopper() -> None:
    problem = GemmProblem(m=64, n=768, k=3072)
    tile = next(iter(space(gpu(8), problem)))
    assert list(GEMM.splits(gpu(8), problem, tile)) == [1]
    assert list(GEMM.splits(gpu(9), problem, tile)) == [1, 2, 3, 4, 6, 8]


@pytest.mark.parametrize(
    ("device", "change"),
    [
        (gpu(7, 5), {}),
        (gpu(12), {}),
        (Device(kind="cpu", name="CPU", uuid="cpu"), {}),
        (gpu(9), {"m": MOST_ROWS + 1}),
        (gpu(9), {"k": 1020}),
        (gpu(9), {"dtype": "fp32", "output": "fp32"}),
        (gpu(9), {"b_major": "mn"}),
    ],
)
def test_what_is_not_served_is_told(device: Device, change: dict[str, object]) -> None:
    with pytest.raises(SpaceError, match=r"sm_80(.|\n)*multiples of 16 bytes"):
        space(device, GemmProblem(**{"m": 64, "n": 64, "k": 1024, **change}))  # type: ignore[arg-type]


@pytest.mark.parametrize("capability", list(ARCHITECTURES))
def test_every_architecture_has_kernels(capability: tuple[int, int]) -> None:
    assert next(iter(space(gpu(*capability), GemmProblem(m=1, n=768, k=768))), None)
