"""Which of the known kernels a place in the graph gets."""

from pathlib import Path

import pytest

from autotune.backends.native.packing import chosen
from autotune.backends.native.sites import Site
from autotune.kernel import KnownKernel, KnownKernels
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

PROBLEM = GemmProblem(m=128, n=768, k=768)
SITE = Site(index=0, name="gemm", operator="gemm", problem=PROBLEM, place="layer.0")


def known(kind: str, median_us: float, **values: int) -> KnownKernel:
    return KnownKernel(configuration=Configuration.of(kind, values), median_us=median_us)


CALL = known("cublaslt", 5.0, rank=0)
OURS, ROOMY, FULL = (
    known("cutlass", 5.1),
    known("hopper_gemm", 5.4, residents=2),
    known("hopper_gemm", 5.2, residents=1),
)


def choice(kernels: str | None, *near: KnownKernel) -> KnownKernel | None:
    values = {} if kernels is None else {"kernels": kernels}
    all_known = KnownKernels(
        folder=Path(), best={PROBLEM.digest: CALL}, library={PROBLEM.digest: CALL}, near={PROBLEM.digest: near}
    )
    return chosen(SITE, Configuration.of("native", values), all_known)


@pytest.mark.parametrize(
    ("kernels", "near", "expected"),
    [
        (None, (OURS,), None),
        ("torch", (OURS,), None),
        ("tuned", (OURS, FULL, ROOMY), CALL),
        ("overlapped", (OURS, FULL, ROOMY), ROOMY),
        ("overlapped", (OURS, FULL), OURS),
        ("overlapped", (), CALL),
    ],
)
def test_the_fastest_alone_is_taken_or_one_of_ours_that_leaves_room(kernels, near, expected) -> None:
    assert choice(kernels, *near) == expected


def test_where_nothing_is_known_torch_computes() -> None:
    configuration = Configuration.of("native", {"kernels": "overlapped"})
    assert chosen(SITE, configuration, None) is None
    assert chosen(SITE, configuration, KnownKernels(folder=Path())) is None
