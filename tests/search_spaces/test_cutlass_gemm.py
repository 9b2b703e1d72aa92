import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cutlass_multistage, cutlass_sm90
from autotune.search_spaces.cutlass_gemm import build_of, candidates, first_candidates, space
from autotune.search_spaces.cutlass_launch import CutlassLaunch, effective_swizzle, launches


def gpu(major: int, minor: int = 0) -> Device:
    return Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(major, minor))


HOPPER = gpu(9)
PROBLEM = GemmProblem(m=4096, n=3072, k=768, bias=True, activation="gelu")


def tile(
    m: int, n: int, k: int = 64, *, schedule: str = "cooperative", cluster: tuple[int, int] = (1, 1), **other: Scalar
) -> Configuration:
    values: dict[str, Scalar] = {"tile_m": m, "tile_n": n, "tile_k": k, "schedule": schedule}
    values |= {"cluster_m": cluster[0], "cluster_n": cluster[1], "scheduler": "persistent"}
    return Configuration.of("cutlass", {**values, **other})


def refusals(point: Configuration, problem: GemmProblem = PROBLEM) -> list[str]:
    """What the rules say to a tile, whether or not the space offers its sizes."""
    rules = cutlass_sm90.constraints(problem, cutlass_sm90.SHARED_MEMORY_BYTES)
    return [rule.reason for rule in rules if not rule.holds(dict(point.values))]


# Rules that were found by compiling with nvcc 13.0 and CUTLASS 4.2, each in a tile that differs from a legal one by it.
@pytest.mark.parametrize(
    ("point", "why"),
    [
        (tile(128, 128), None),
        (tile(64, 128), "multiples of 128"),
        (tile(192, 128), "multiples of 128"),
        (tile(192, 128, schedule="pingpong"), None),
        *((tile(128, n), "multiple of 16") for n in (24, 40)),
        *((tile(128, n), None) for n in (16, 48, 80, 96, 112)),
        *((tile(128, 128, k), None) for k in (32, 48, 96, 128)),
        (tile(256, 192), None),
        (tile(256, 256), "spill"),
        (tile(128, 256, schedule="pingpong"), "spill"),
        (tile(128, 128, cluster=(3, 1)), "a cluster has"),
        (tile(128, 128, cluster=(1, 3)), "a cluster has"),
        (tile(64, 128, schedule="pingpong", scheduler="stream_k"), "pingpong cannot go with stream-K"),
        (tile(256, 128, cluster=(2, 1), scheduler="stream_k"), None),
    ],
)
def test_the_rules_say_what_the_compiler_said(point: Configuration, why: str | None) -> None:
    found = refusals(point)
    assert found == [] if why is None else len(found) == 1 and why in found[0]


def test_clusters_are_the_ten_portable_ones() -> None:
    found = {(point["cluster_m"], point["cluster_n"]) for point in space(HOPPER, PROBLEM)}
    assert found == {(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (2, 4), (4, 2), (1, 8), (8, 1)}


# Stages as they stand in the names of kernels that nvcc 13.0 compiled with CUTLASS 4.2, and the sums by hand.
@pytest.mark.parametrize(
    ("point", "residual", "epilogue", "stages"),
    [
        # 4 tiles of 64×32, 96 biases: 16768 → 16896, barriers → 17408; a stage is 27648 + 16.
        (tile(192, 96, 48, schedule="pingpong", cluster=(1, 2)), True, 17408, 7),
        # 2 tiles of 128×16, 48 biases: 8384 → 8448, barriers of 3 → 8704; a stage is 22528 + 16.
        (tile(128, 48, cluster=(2, 1)), False, 8704, 9),
        # 4 tiles of 128×32, 128 biases: 33280, barriers → 33792; a stage is 49152 + 16.
        (tile(256, 128, cluster=(2, 1), scheduler="stream_k"), True, 33792, 4),
    ],
)
def test_stages_are_those_of_compiled_kernels(point: Configuration, residual: bool, epilogue: int, stages: int) -> None:
    problem = GemmProblem(m=4096, n=3072, k=768, bias=True, activation="gelu", residual=residual)
    values = dict(point.values)
    assert cutlass_sm90.epilogue_bytes(problem, values) == epilogue
    assert cutlass_sm90.stages(problem, values) == stages


def test_shared_memory_is_a_parameter() -> None:
    assert len(list(space(HOPPER, PROBLEM, shared_memory_bytes=100_000))) < len(list(space(HOPPER, PROBLEM)))
    with pytest.raises(SpaceError, match="1000 bytes of shared memory"):
        space(HOPPER, PROBLEM, shared_memory_bytes=1000)


aligned = st.integers(1, 1024).map(lambda count: 8 * count)
problems = st.builds(GemmProblem, m=st.integers(1, 9000), n=aligned, k=aligned, residual=st.booleans())
any_problems = problems | st.builds(GemmProblem, m=st.integers(1, 9000), n=st.integers(1, 9000), k=st.integers(1, 4500))


@settings(max_examples=10, deadline=None)
@given(problem=any_problems)
def test_every_build_satisfies_every_rule(problem: GemmProblem) -> None:
    if problem.n % 8 or problem.k % 8:
        with pytest.raises(SpaceError, match="multiples of 16 bytes"):
            space(HOPPER, problem)
        return
    found = list(space(HOPPER, problem))
    for point in found:
        values = dict(point.values)
        assert int(point["tile_m"]) % (64 if point["schedule"] == "pingpong" else 128) == 0
        assert int(point["tile_n"]) % 16 == 0
        assert cutlass_sm90.stages(problem, values) >= 2
        assert not refusals(point, problem)
    assert {point["schedule"] for point in found} == {"cooperative", "pingpong"}


@settings(max_examples=5, deadline=None)
@given(problem=problems)
def test_generation_is_deterministic_finite_and_not_empty(problem: GemmProblem) -> None:
    builds = list(space(HOPPER, problem))
    assert builds == list(space(HOPPER, problem))
    assert len({build.digest for build in builds}) == len(builds) > 0


tiles = st.sampled_from(list(itertools.islice(space(HOPPER, PROBLEM), 0, None, 97)))


@settings(deadline=None)
@given(problem=problems, point=tiles)
def test_launches_are_distinct_and_effective(problem: GemmProblem, point: Configuration) -> None:
    found = list(candidates(HOPPER, problem, point))
    assert len({candidate.configuration.digest for candidate in found}) == len(found) > 0
    assert len({candidate.build.key for candidate in found}) == 1
    along_k = -(-problem.k // int(point["tile_k"]))
    for candidate in found:
        launch = candidate.launch
        assert effective_swizzle(problem, point, launch.swizzle) == launch.swizzle
        assert launch.splits <= along_k or launch.splits == 1
        assert (launch.decomposition == "data_parallel") is (point["scheduler"] == "persistent")


@pytest.mark.parametrize(
    ("rows", "swizzles"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 4}), (5, {1, 2, 4}), (6, {1, 2, 4, 8})]
)
def test_swizzle_follows_the_shorter_side(rows: int, swizzles: set[int]) -> None:
    problem = GemmProblem(m=128 * rows, n=128 * 50, k=512)
    assert {launch.swizzle for launch in launches(problem, tile(128, 128))} == swizzles


def test_raster_offers_only_the_direction_that_the_heuristic_leaves() -> None:
    def rasters(m: int, n: int) -> set[str]:
        return {launch.raster for launch in launches(GemmProblem(m=m, n=n, k=512), tile(128, 128))}

    assert rasters(256, 2560) == {"heuristic", "along_n"}
    assert rasters(2560, 256) == rasters(256, 256) == {"heuristic", "along_m"}
    assert rasters(128, 2560) == {"heuristic"}


def test_one_tile_along_k_cannot_be_split() -> None:
    point = tile(128, 128, scheduler="stream_k")
    found = {launch.decomposition for launch in launches(GemmProblem(m=512, n=512, k=64), point)}
    assert found == {"heuristic", "stream_k"}
    assert {launch.splits for launch in launches(GemmProblem(m=512, n=512, k=300), point)} == {1, 2, 4}


@pytest.mark.parametrize("values", [{"swizzle": 3}, {"splits": 2}, {"splits": 0}, {"decomposition": "split_k"}])
def test_what_is_no_launch_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be one of|at least 2 splits"):
        CutlassLaunch(**values)  # type: ignore[arg-type]


def test_one_build_serves_every_shape_and_no_other_epilogue() -> None:
    point = tile(128, 128)
    shapes = [GemmProblem(m=m, n=n, k=k, bias=True) for m, n, k in [(1, 8, 8), (197, 3072, 768), (8192, 8192, 8192)]]
    assert len({build_of(HOPPER, shape, point).key for shape in shapes}) == 1
    others = [GemmProblem(m=1, n=8, k=8), GemmProblem(m=1, n=8, k=8, bias=True, dtype="bf16")]
    assert len({build_of(HOPPER, problem, point).key for problem in (shapes[0], *others)}) == 3
    assert build_of(HOPPER, shapes[0], point).key != build_of(HOPPER, shapes[0], tile(128, 64)).key


def test_the_first_candidates_take_the_fewest_waves_and_then_the_largest_tile() -> None:
    first = first_candidates(HOPPER, PROBLEM, sm_count=132, count=8)
    assert first == first_candidates(HOPPER, PROBLEM, sm_count=132, count=8)
    sizes = [(int(c.build.tile["tile_m"]), int(c.build.tile["tile_n"])) for c in first]
    assert len(set(sizes)) == 8
    # 16 × 16 blocks of 256×192 are 256 on 132 multiprocessors: two waves.
    assert sizes[0] == (256, 192)
    waves = [-(-(-(-4096 // m) * -(-3072 // n)) // 132) for m, n in sizes]
    assert waves == sorted(waves)
    assert len(first_candidates(HOPPER, GemmProblem(m=1, n=8, k=8), sm_count=132, count=3)) == 3
    with pytest.raises(ValueError, match="at least 1"):
        first_candidates(HOPPER, PROBLEM, sm_count=0, count=8)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9)])
def test_older_parts_have_stages_that_fit(capability: tuple[int, int]) -> None:
    limit = cutlass_multistage.SHARED_MEMORY_BYTES["sm_{}{}".format(*capability)]
    found = list(space(gpu(*capability), PROBLEM))
    sizes = {(p["tile_m"], p["tile_n"]) for p in found}
    assert {(64, 64), (256, 128)} <= sizes and (256, 256) not in sizes
    for point in found:
        m, n, k, stages = (int(point[name]) for name in ("tile_m", "tile_n", "tile_k", "stages"))
        assert stages * (m + n) * k * 2 <= limit
        assert m * n // (int(point["warp_m"]) * int(point["warp_n"])) > 1
    assert {p["stages"] for p in found} <= ({2} if capability == (7, 5) else set(range(3, 11)))
    assert [c.launch for c in candidates(gpu(*capability), PROBLEM, found[0])] == [CutlassLaunch()]
    with pytest.raises(SpaceError, match="multiples of two elements"):
        space(gpu(*capability), GemmProblem(m=8, n=7, k=8))


# Compiled with nvcc 13.0 and CUTLASS 4.2 for sm_80, those of 32 along k that are refused for sm_75 as well.
@pytest.mark.parametrize(
    ("m", "n", "k", "legal"),
    [(256, 128, 32, False), (256, 64, 32, False), (128, 128, 32, True), (64, 128, 32, True), (256, 128, 64, True)],
)
def test_every_warp_of_a_multistage_kernel_loads(m: int, n: int, k: int, legal: bool) -> None:
    values = {"tile_m": m, "tile_n": n, "tile_k": k, "warp_m": 32, "warp_n": 32, "stages": 3}
    refusal = space(gpu(8), PROBLEM).refusal(Configuration.of("cutlass", values))
    assert refusal is None if legal else refusal is not None and "rows of A and of B to load" in refusal


@pytest.mark.parametrize(
    ("device", "problem", "message"),
    [
        (gpu(10), PROBLEM, r"sm_100\n.*sm_75, sm_80, sm_86, sm_89, sm_90a"),
        (gpu(7), PROBLEM, "found: sm_70"),
        (Device(kind="cpu", name="Test CPU", uuid="cpu-test"), PROBLEM, "found: no GPU"),
        (gpu(7, 5), GemmProblem(m=8, n=8, k=8, dtype="bf16"), "operands of fp16"),
        (HOPPER, GemmProblem(m=8, n=8, k=8, dtype="fp32"), "operands of fp16 or bf16"),
        (HOPPER, GemmProblem(m=8, n=8, k=8, a_major="mn"), "both k-major"),
        (HOPPER, GemmProblem(m=8, n=8, k=8, bias=True, activation="relu6"), "found: the activation relu6"),
    ],
)
def test_what_has_no_tiles_is_refused(device: Device, problem: GemmProblem, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space(device, problem)
