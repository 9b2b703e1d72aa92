import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces.triton_gemm import SHARED_MEMORY_BYTES, first_candidates, space


def gpu(major: int, minor: int = 0) -> Device:
    return Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(major, minor))


PROBLEMS = st.builds(
    GemmProblem, m=st.integers(1, 64), n=st.integers(1, 5000), k=st.integers(1, 9000), bias=st.booleans(),
    dtype=st.sampled_from(["fp16", "bf16", "fp32"]), output=st.sampled_from(["fp16", "bf16", "fp32"]),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(problem=PROBLEMS, sm_count=st.sampled_from([40, 132]))
def test_any_problem_has_kernels_and_first_ones_among_them(problem: GemmProblem, sm_count: int) -> None:
    legal = set(space(gpu(9), problem))
    first = first_candidates(gpu(9), problem, sm_count=sm_count, count=8)
    assert 0 < len(first) <= 8 and set(first) <= legal and len(set(first)) == len(first)
    assert first == first_candidates(gpu(9), problem, sm_count=sm_count, count=8)
    forms = {candidate["form"] for candidate in legal}
    assert ("gemv" in forms) <= (problem.m <= 4)


def refusal(problem: GemmProblem, capability: tuple[int, int] = (9, 0), **values: int | str) -> str | None:
    point = {"form": "dot", "block_n": 32, "block_k": 128, "split_k": 1, "warps": 4, "stages": 3, **values}
    return space(gpu(*capability), problem).refusal(Configuration.of("triton_gemm", point))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, None),
        ({"form": "gemv", "block_n": 4}, "at most 4 rows"),
        ({"block_n": 8}, "blocks from 16"),
        ({"block_k": 512}, "to 256 of k"),
        ({"warps": 1}, "from 2 warps"),
        ({"block_n": 128, "block_k": 256, "stages": 5}, "must fit"),
        ({"split_k": 16}, "part of k"),
        ({"split_k": 4, "stages": 5}, "no more stages"),
        ({"block_n": 128, "warps": 4}, None),
        ({"block_n": 128, "warps": 2}, "spill"),
        ({"block_n": 16, "block_k": 32, "warps": 8}, "16 bytes"),
    ],
)
def test_the_rules(values: dict[str, int | str], why: str | None) -> None:
    problem = GemmProblem(m=64, n=768, k=1536)
    if values.get("split_k") == 16:
        problem = GemmProblem(m=64, n=768, k=1152)
    found = refusal(problem, **values)
    assert found is None if why is None else found is not None and why in found


def test_a_block_is_not_far_larger_than_its_problem() -> None:
    assert "twice the size" in str(refusal(GemmProblem(m=8, n=16, k=1024)))
    assert refusal(GemmProblem(m=8, n=17, k=1024)) is None


def test_rows_that_are_not_copied_ahead_have_one_stage() -> None:
    problem = GemmProblem(m=8, n=768, k=1025)
    assert "one where rows" in str(refusal(problem)) and refusal(problem, stages=1) is None


def test_a_gemv_keeps_its_values_in_registers() -> None:
    problem = GemmProblem(m=4, n=4096, k=4096)
    assert "spill" in str(refusal(problem, form="gemv", block_n=4, block_k=1024))
    assert refusal(problem, form="gemv", block_n=4, block_k=1024, warps=8) is None


def test_shared_memory_is_the_devices_own() -> None:
    problem = GemmProblem(m=64, n=1024, k=4096)
    assert refusal(problem, (8, 6), block_n=64, stages=4) is not None
    assert refusal(problem, (8, 0), block_n=64, stages=4) is None


def test_what_is_not_served_is_told() -> None:
    with pytest.raises(SpaceError, match="at most 64 rows"):
        space(gpu(9), GemmProblem(m=65, n=64, k=64))
    with pytest.raises(SpaceError, match="sm_30"):
        space(gpu(3), GemmProblem(m=1, n=64, k=64))
    with pytest.raises(SpaceError, match="bf16 from sm_80"):
        space(gpu(7, 5), GemmProblem(m=1, n=64, k=64, dtype="bf16"))
    with pytest.raises(SpaceError, match="no GPU"):
        space(Device(kind="cpu", name="CPU", uuid="cpu"), GemmProblem(m=1, n=64, k=64))
    with pytest.raises(ValueError, match="found 0 and 4"):
        first_candidates(gpu(9), GemmProblem(m=1, n=64, k=64), sm_count=0, count=4)


@pytest.mark.parametrize("capability", list(SHARED_MEMORY_BYTES))
def test_every_device_has_kernels(capability: tuple[int, int]) -> None:
    problems = [GemmProblem(m=m, n=768, k=768) for m in (1, 16, 64)]
    assert all(next(iter(space(gpu(*capability), problem)), None) for problem in problems)
