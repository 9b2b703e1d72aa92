import itertools

import pytest

from autotune.errors import WorkError
from autotune.kernels.timing import GUARD, KernelTimer, TimingLimits, error_bound, needed_bytes
from autotune.measure.conditions import unregistered_conditions
from autotune.records.kernel_problem import GemmProblem
from tests.toy_kernels import BACKEND, ToyKernel


def problem(**values):
    return GemmProblem(**{"m": 16, "n": 24, "k": 32, "dtype": "fp32", "output": "fp32", **values})


def bed(cpu, asked, *, warm=False, **limits):
    limits = TimingLimits(sampling_s=0.02, **limits)
    return KernelTimer(cpu, asked, BACKEND.kernels.compute, seed=1, limits=limits, warm=warm)


def judged(cpu, asked, kernel):
    stages = []
    result = bed(cpu, asked, warm=True).judge_and_time(kernel, None, stages.append)  # how fast it is matters to none
    assert stages == (["check", "measure"] if result.failure is None else ["check"])
    return result


class Rounding(ToyKernel):
    """Computes in fp32 from operands that were rounded first, as TF32 does, or without its last product."""

    def __init__(self, bits=None, dropped=0):
        super().__init__("none")
        self._bits, self._dropped = bits, dropped

    def __call__(self, a, b, bias, residual, out):
        import torch

        a, b = a.float(), b.float()
        if self._bits is not None:
            a, b = (
                torch.ldexp(torch.round(torch.ldexp(x, self._bits - e)), e - self._bits) for x, e in exponents(a, b)
            )
        if self._dropped:
            a, b = a[:, : -self._dropped], b[:, : -self._dropped]
        out.copy_(BACKEND.kernels.compute(None, a, b, bias, residual))


def exponents(*tensors):
    import torch

    for tensor in tensors:
        yield tensor, torch.frexp(tensor)[1]


SIZES = ((1, 1, 1), (3, 5, 7), (17, 33, 64), (64, 96, 768), (8, 64, 8192))


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_torch_itself_is_accurate_with_every_operand(cpu, m, n, k, dtype):
    for bias, residual in itertools.product((False, True), repeat=2):
        asked = problem(m=m, n=n, k=k, dtype=dtype, output=dtype, bias=bias, residual=residual)
        result = judged(cpu, asked, ToyKernel("none"))
        assert result.failure is None, result.failure
        assert result.error <= error_bound(asked)
        assert len(result.samples_us) >= 3


@pytest.mark.parametrize(("m", "n", "k"), [(17, 33, 64), (64, 96, 768), (32, 256, 8192)])
def test_an_fp32_problem_computed_in_tf32_is_refused(cpu, m, n, k):
    result = judged(cpu, problem(m=m, n=n, k=k), Rounding(bits=11))
    assert result.failure is not None and result.failure.kind == "inaccurate"
    assert result.failure.figure == result.error > error_bound(problem(k=k))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("k", [64, 768, 8192])
def test_a_kernel_that_leaves_out_the_end_of_k_is_refused(cpu, dtype, k):
    result = judged(cpu, problem(m=64, n=256, k=k, dtype=dtype, output=dtype), Rounding(dropped=8))
    assert result.failure is not None and result.failure.kind == "inaccurate"


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("inaccurate", "inaccurate", "rounding explains"),
        ("second_call", "inaccurate", "rounding explains"),
        ("non_finite", "non_finite", "not finite"),
        ("unwritten", "non_finite", "not written"),
        ("outside", "error", "outside"),
    ],
)
def test_what_a_kernel_does_wrong_is_found(cpu, fault, kind, says):
    result = judged(cpu, problem(), ToyKernel(fault))
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind) == ("check", kind)
    assert says in result.failure.detail
    assert result.samples_us == () and "samples_us" not in result.as_dict()


def test_a_hopeless_kernel_is_given_up_and_what_it_was_timed_stays(cpu):
    result = bed(cpu, problem(), first_samples=4).judge_and_time(ToyKernel("slow"), 100.0, lambda stage: None)
    assert len(result.samples_us) in range(1, 5)
    assert "slower" in result.conditions["stopped"] or result.conditions["stopped"] == "time limit"


def test_conditions_say_how_it_was_timed(cpu):
    conditions = bed(cpu, problem()).judge_and_time(ToyKernel("none"), None, lambda stage: None).conditions
    assert (conditions["clock"], conditions["l2"], conditions["seed"]) == ("wall", "steady", 1)
    assert set(conditions["readings"]) == {"gpu", "host"}
    assert unregistered_conditions(conditions) == []


def test_operands_are_the_same_for_a_seed_lie_as_the_problem_says_and_are_nowhere_zero(cpu):
    import torch

    asked = problem(a_major="mn", b_major="mn", bias=True, residual=True, dtype="fp16", output="fp16")
    one, other = bed(cpu, asked)._operands, bed(cpu, asked)._operands
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    a, b, bias, residual = one
    assert (a.shape, b.shape, bias.shape, residual.shape) == ((16, 32), (24, 32), (24,), (16, 24))
    assert a.t().is_contiguous() and b.t().is_contiguous()
    assert (a.dtype, bias.dtype, residual.dtype) == (torch.float16, torch.float32, torch.float16)
    assert all(float(tensor.count_nonzero()) > 0.99 * tensor.numel() for tensor in one)


def test_a_reference_that_is_not_finite_judges_nothing(cpu):
    with pytest.raises(WorkError, match="not finite"):
        KernelTimer(cpu, problem(), lambda asked, a, *rest: a / 0, seed=0, limits=TimingLimits())


def test_bounds_grow_with_the_roundings_and_not_with_what_cannot_happen():
    assert error_bound(problem(k=64)) < error_bound(problem(k=64, dtype="fp16", output="fp16"))
    assert error_bound(problem(dtype="fp16", output="fp32")) < error_bound(problem(dtype="fp16", output="fp16"))
    half = [error_bound(problem(k=k, dtype="fp16", output="fp16")) for k in (64, 1024, 8192)]
    assert half == sorted(half, reverse=True)


def test_memory_is_counted_in_every_tensor():
    asked = problem(m=1, n=1, k=1)
    assert needed_bytes(asked) == 2 * (4 + 16) + 3 * 4 + 32
    assert GUARD > 0


@pytest.mark.parametrize("wrong", [{"sampling_s": 0.0}, {"least_samples": 2}, {"first_samples": 0}])
def test_limits_that_time_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 3 samples"):
        TimingLimits(**wrong)


@pytest.mark.gpu
def test_on_a_gpu_a_kernel_is_timed_by_the_devices_clock_on_a_cold_cache():
    from autotune.runtime import discovery

    asked = problem(m=128, n=768, k=768, dtype="fp16", output="fp16", bias=True)
    result = bed(discovery.find("cuda"), asked).judge_and_time(ToyKernel("none"), None, lambda stage: None)
    assert result.failure is None, result.failure
    assert (result.conditions["clock"], result.conditions["l2"]) == ("device", "cold")
    assert result.conditions["queued"], "launches of the host are in the times"
