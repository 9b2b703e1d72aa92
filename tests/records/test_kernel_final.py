import json
from dataclasses import replace

import pytest

from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal, KernelFinalist
from autotune.records.kernel_problem import GemmProblem

PROBLEM = GemmProblem(m=8, n=16, k=32)
ONE, TWO, THREE = (Configuration.of("hopper_gemm", {"tile_m": size}) for size in (64, 128, 256))


def finalist(configuration, *rounds_us):
    return KernelFinalist(configuration=configuration, toolchain="t", rounds_us=rounds_us)


def final(*finalists):
    return KernelFinal(problem=PROBLEM, device_class="d", finalists=finalists, conditions={"l2": "cold"})


STEADY = finalist(ONE, (5.0, 5.0, 5.2), (5.0, 5.0, 5.0), (5.0, 5.0, 5.0))
DISTURBED = finalist(TWO, (4.0, 4.1, 4.0), (90.0, 91.0, 92.0), (4.0, 4.0, 4.0))


def test_the_median_is_that_of_the_rounds_medians():
    assert DISTURBED.round_medians_us == (4.0, 91.0, 4.0) and DISTURBED.median_us == 4.0
    assert [one.configuration for one in final(STEADY, DISTURBED).ranked] == [TWO, ONE]
    assert final(STEADY, DISTURBED).ratio(ONE, TWO) == pytest.approx(5 / 4)
    assert final(STEADY, DISTURBED).ratio(ONE, THREE) is None is final(STEADY, DISTURBED).of(THREE)
    assert final(STEADY, DISTURBED).rounds == 3


def test_of_two_that_are_equally_fast_the_first_is_always_the_same():
    equal = replace(STEADY, configuration=THREE)
    assert final(STEADY, equal).ranked == final(equal, STEADY).ranked


def test_it_is_read_as_it_was_written_and_named_by_its_content():
    written = final(STEADY, DISTURBED)
    read = KernelFinal.from_dict(json.loads(json.dumps(written.as_dict())))
    assert read == written and read.digest == written.digest
    others = [final(DISTURBED, STEADY), replace(written, device_class="e"), replace(written, conditions={})]
    assert len({written.digest, *(other.digest for other in others)}) == 4
    with pytest.raises(ValueError, match="later version"):
        KernelFinal.from_dict({**written.as_dict(), "schema": 2})


@pytest.mark.parametrize("finalists", [(), (STEADY,), (STEADY, STEADY), (STEADY, DISTURBED, DISTURBED)])
def test_a_final_has_two_kernels_or_more_each_once(finalists):
    with pytest.raises(ValueError, match="two kernels or more"):
        final(*finalists)


def test_rounds_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="same number of rounds"):
        final(STEADY, finalist(TWO, (1.0,)))
    for rounds_us in ((), ((),), ((1.0,), ())):
        with pytest.raises(ValueError, match="every round"):
            finalist(ONE, *rounds_us)
    for sample in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number"):
            finalist(ONE, (1.0, sample))
