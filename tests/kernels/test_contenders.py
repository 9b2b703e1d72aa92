import pytest

from autotune.kernels.contenders import contenders, deciding_final, ranked
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal, KernelFinalist
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

PROBLEM = GemmProblem(m=8, n=16, k=32)


class Toolchains:
    """The kind of a library has another toolchain than ours."""

    def of(self, kind):
        return "of libraries" if kind == "cublaslt" else "of ours"


def kernel(number, kind="hopper_gemm"):
    return Configuration.of(kind, {"number": number})


def trial(number, us=None, kind="hopper_gemm"):
    failure = None if us else Failure(stage="check", kind="inaccurate", detail="it")
    return KernelTrial(
        problem=PROBLEM, device_class="d", toolchain=Toolchains().of(kind), configuration=kernel(number, kind),
        state="complete" if us else "failed", samples_us=(us,) if us else (), failure=failure,
    )  # fmt: skip


def final(*figures, toolchains=None):
    """A final of kernels with their times."""
    toolchains = toolchains or Toolchains()
    return KernelFinal(
        problem=PROBLEM, device_class="d",
        finalists=tuple(
            KernelFinalist(configuration=one, toolchain=toolchains.of(one.backend), rounds_us=((us,), (us,)))
            for one, us in figures
        ),
    )  # fmt: skip


def configurations(trials):
    return [trial.configuration for trial in trials]


LIBRARY = kernel(0, "cublaslt")


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([], ()),
        ([trial(1)], ()),
        ([trial(1, 10.0), trial(2, 10.6)], (kernel(1),)),
        ([trial(1, 10.4), trial(2, 10.0), trial(3)], (kernel(2), kernel(1))),
        ([trial(n, 10.0 + n / 100) for n in range(1, 9)], tuple(kernel(n) for n in range(1, 5))),
        (
            [*(trial(n, 10.0 + n / 100) for n in range(1, 9)), trial(0, 10.4, "cublaslt"), trial(5, 10.45, "torch")],
            (*(kernel(n) for n in range(1, 4)), LIBRARY),
        ),
        (
            [*(trial(n, 10.0 + n / 100) for n in range(1, 9)), trial(0, 10.6, "cublaslt")],
            tuple(kernel(n) for n in range(1, 5)),
        ),
        ([trial(0, 10.0, "cublaslt"), trial(1, 10.1, "torch")], (LIBRARY, kernel(1, "torch"))),
        ([trial(1, 10.0), trial(1, 10.2)], (kernel(1),)),  # two machines have timed it
    ],
)
def test_the_best_few_contend_and_the_best_library_call_within_reach(trials, expected):
    assert contenders(trials) == expected
    assert contenders(reversed(trials)) == expected


TRIALS = [trial(1, 10.0), trial(2, 10.2), trial(0, 10.4, "cublaslt"), trial(3, 11.0), trial(4, 12.0)]
OF_ALL = final((kernel(1), 5.3), (kernel(2), 5.2), (LIBRARY, 5.1))


def test_the_newest_final_with_all_contenders_decides():
    larger = final((kernel(1), 5.0), (kernel(2), 5.2), (LIBRARY, 5.1), (kernel(4), 9.0))
    smaller = final((kernel(1), 5.0), (kernel(2), 5.2))
    assert deciding_final(TRIALS, [smaller, larger, OF_ALL], Toolchains()) == larger
    assert deciding_final(TRIALS, [smaller], Toolchains()) is None
    assert deciding_final([*TRIALS, trial(9, 9.9)], [larger], Toolchains()) is None, "a new kernel is among the best"
    assert deciding_final([*TRIALS, trial(9, 10.9)], [larger], Toolchains()) == larger
    assert deciding_final([], [larger], Toolchains()) is None


def test_a_final_under_another_toolchain_decides_nothing():
    class Others(Toolchains):
        def of(self, kind):
            return "newer" if kind == "cublaslt" else super().of(kind)

    assert deciding_final(TRIALS, [OF_ALL], Others()) is None
    assert deciding_final(TRIALS, [OF_ALL, final((kernel(1), 1.0), (kernel(2), 2.0))], Others()) is None
    newer = final((kernel(1), 5.3), (kernel(2), 5.2), (LIBRARY, 5.1), toolchains=Others())
    assert deciding_final(TRIALS, [OF_ALL, newer], Others()) == newer


def test_finalists_are_ranked_by_their_rounds_and_before_all_others():
    assert configurations(ranked(TRIALS, None)) == [kernel(1), kernel(2), LIBRARY, kernel(3), kernel(4)]
    assert configurations(ranked(TRIALS, OF_ALL)) == [LIBRARY, kernel(2), kernel(1), kernel(3), kernel(4)]
    slow = final((kernel(1), 500.0), (kernel(2), 400.0), (LIBRARY, 300.0), (kernel(4), 600.0))
    assert configurations(ranked(TRIALS, slow)) == [LIBRARY, kernel(2), kernel(1), kernel(4), kernel(3)]
    twice = [*TRIALS, trial(1, 10.3), trial(3, 11.5)]
    assert configurations(ranked(twice, OF_ALL)) == [LIBRARY, kernel(2), kernel(1), kernel(3), kernel(3), kernel(4)]
    absent = final((kernel(1), 5.0), (kernel(2), 5.2), (LIBRARY, 5.1), (kernel(99), 1.0))
    assert configurations(ranked(TRIALS, absent))[0] == kernel(1), "a finalist without a trial here is left out"
