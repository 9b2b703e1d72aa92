"""The Triton kernels that can compute a GEMM with few rows, which mostly has to read B once."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.kernel_problem import BYTES, GemmProblem
from autotune.records.search_space import Constraint, Parameter, SearchSpace

NAME = "triton_gemm"

MOST_ROWS, MOST_GEMV_ROWS = 64, 4
LEAST_DOT = 16
"""The least side of a product of tensor cores that Triton compiles."""

SHARED_MEMORY_BYTES: Mapping[tuple[int, int], int] = {
    (7, 5): 64 * 1024, (8, 0): 163 * 1024, (8, 6): 99 * 1024, (8, 9): 99 * 1024, (9, 0): 227 * 1024,
    (10, 0): 227 * 1024, (12, 0): 99 * 1024,
}  # fmt: skip
"""The most shared memory of a block, by compute capability (CUDA C++ Programming Guide, technical specifications)."""

MOST_ACCUMULATORS, MOST_VALUES = 64, 128
"""The most accumulators of a dot's thread, and values of a gemv's thread including those of B. With Triton 3.9 for
sm_80 and sm_90, dots of 64 rows have up to 222 registers; with twice as many accumulators they spill up to 300 bytes.
160 values take 206 registers."""

ASYNC_BYTES = 4
"""The least bytes of an asynchronous copy; rows that are no multiple of it are read without copies ahead."""

VECTOR_BYTES = 16
PARAMETERS = (
    Parameter(name="form", choices=("dot", "gemv")),
    Parameter(name="block_n", choices=(32, 1, 2, 4, 8, 16, 64, 128)),
    Parameter(name="block_k", choices=(128, 32, 64, 256, 512, 1024)),
    Parameter(name="split_k", choices=(1, 2, 4, 8, 16)),
    Parameter(name="warps", choices=(4, 1, 2, 8)),
    Parameter(name="stages", choices=(3, 1, 2, 4, 5)),
)
Values = Mapping[str, Scalar]


class _Point(NamedTuple):
    form: str
    block_n: int
    block_k: int
    split_k: int
    warps: int
    stages: int


def _point(values: Values) -> _Point:
    numbers = (int(values[name]) for name in _Point._fields[1:])
    return _Point(str(values["form"]), *numbers)


def check_problem(problem: GemmProblem) -> None:
    """Raise :class:`~autotune.errors.SpaceError` if no kernel here computes a problem."""
    if problem.m > MOST_ROWS or problem.a_major != "k" or problem.b_major != "k" or problem.window is not None:
        rows = "rows read through a window" if problem.window else "rows"
        raise SpaceError(
            f"Triton kernels for {problem.canonical}",
            found=f"{problem.m} {rows}, A {problem.a_major}-major, B {problem.b_major}-major",
            expected=f"at most {MOST_ROWS} rows, both k-major",
        )


def space(device: Device, problem: GemmProblem) -> SearchSpace:
    """Return the legal points for a problem on a device; raises SpaceError if there are none."""
    check_problem(problem)
    shared = SHARED_MEMORY_BYTES.get(device.capability) if device.capability else None
    if shared is None or (device.capability == (7, 5) and "bf16" in (problem.dtype, problem.output)):
        capability = "no GPU" if device.capability is None else "sm_{}{}".format(*device.capability)
        raise SpaceError(
            f"Triton kernels for {problem.canonical} on {device.name}", found=capability,
            expected=f"one of {', '.join('sm_{}{}'.format(*one) for one in SHARED_MEMORY_BYTES)}; bf16 from sm_80",
        )  # fmt: skip
    return SearchSpace(backend=NAME, parameters=PARAMETERS, constraints=_constraints(problem, shared))


def first_candidates(device: Device, problem: GemmProblem, *, sm_count: int, count: int) -> tuple[Configuration, ...]:
    """Return the first candidates: every SM busy, few splits, and much of B in flight; each block once.

    Of equal candidates the one with earlier choices comes first, so the order is always the same.
    """
    if sm_count < 1 or count < 1:
        raise ValueError(f"sm_count and count must be at least 1, found {sm_count} and {count}")
    best: dict[tuple[str, int, int], tuple[tuple[float, ...], Configuration]] = {}
    for candidate in space(device, problem):
        point = _point(dict(candidate.values))
        grid = -(-problem.n // point.block_n) * point.split_k
        busy = grid / (-(-grid // sm_count) * sm_count)
        in_flight = point.block_n * point.block_k * BYTES[problem.dtype] * point.stages
        # In eighths: a single block decides nothing. Bytes in flight help up to an SM's share of bandwidth times
        # latency, about 32 KB on the GPUs of SHARED_MEMORY_BYTES with the fastest memory.
        rank = (
            -round(8 * busy), float(problem.m <= MOST_GEMV_ROWS and point.form == "dot"), float(point.split_k),
            -min(in_flight, 32 * 1024), float(point.stages),
        )  # fmt: skip
        key = (point.form, point.block_n, point.block_k)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, candidate)
    ranked = sorted(best.values(), key=lambda pair: pair[0])
    return tuple(candidate for _, candidate in ranked[:count])


def _constraints(problem: GemmProblem, shared_bytes: int) -> tuple[Constraint, ...]:
    return tuple(_rules(problem, shared_bytes))


def _rules(problem: GemmProblem, shared_bytes: int) -> Iterator[Constraint]:
    width = BYTES[problem.dtype]
    block_m = max(LEAST_DOT, 1 << (problem.m - 1).bit_length())

    def block_suits_form(values: Values) -> bool:
        at = _point(values)
        if at.form == "dot":
            return at.block_n >= LEAST_DOT and at.block_k <= 256 and at.warps >= 2
        return at.block_n <= 16 and problem.m <= MOST_GEMV_ROWS

    def values_stay_in_registers(values: Values) -> bool:
        at = _point(values)
        if at.form == "dot":
            return block_m * at.block_n <= MOST_ACCUMULATORS * 32 * at.warps
        return (problem.m + 1) * at.block_n * at.block_k <= MOST_VALUES * 32 * at.warps

    def every_thread_loads(values: Values) -> bool:
        at = _point(values)
        return at.block_n * at.block_k * width >= VECTOR_BYTES * 32 * at.warps

    def stages_fit(values: Values) -> bool:
        at = _point(values)
        rows = block_m if at.form == "dot" else problem.m
        return at.stages * (rows + at.block_n) * at.block_k * width <= shared_bytes

    def no_split_is_empty(values: Values) -> bool:
        at = _point(values)
        steps = -(-problem.k // (at.block_k * at.split_k))
        return (at.split_k - 1) * steps * at.block_k < problem.k

    def stages_are_used(values: Values) -> bool:
        at = _point(values)
        steps = -(-problem.k // (at.block_k * at.split_k))
        return at.stages == 1 or (at.stages <= steps and problem.alignment_b_bytes >= ASYNC_BYTES)

    def block_is_no_larger_than_needed(values: Values) -> bool:
        at = _point(values)
        least = LEAST_DOT if at.form == "dot" else 1
        return at.block_n <= max(least, 2 * problem.n - 1) and at.block_k <= max(32, 2 * problem.k - 1)

    yield Constraint(
        reason=f"dot takes blocks from {LEAST_DOT} columns, to 256 of k, from 2 warps; gemv to 16 columns, and at most "
        f"{MOST_GEMV_ROWS} rows of A",
        holds=block_suits_form,
    )
    yield Constraint(
        reason=f"more than {MOST_ACCUMULATORS} accumulators of a dot or {MOST_VALUES} values of a gemv a thread spill, "
        "or leave registers for few threads",
        holds=values_stay_in_registers,
    )
    yield Constraint(reason="every thread loads 16 bytes of B in each step", holds=every_thread_loads)
    yield Constraint(reason=f"the stages must fit in {shared_bytes} bytes of shared memory", holds=stages_fit)
    yield Constraint(reason="every split has a part of k", holds=no_split_is_empty)
    yield Constraint(
        reason=f"no more stages than steps over k, and one where rows are no multiple of {ASYNC_BYTES} bytes",
        holds=stages_are_used,
    )
    yield Constraint(reason="no block has twice the size of its dimension", holds=block_is_no_larger_than_needed)
