import io

import pytest
from rich.console import Console

from autotune.kernels.rates import DeviceRates
from autotune.kernels.report import TunedProblem
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from autotune.report.kernels import problem_words, roofline_us, trial_document, tuned_document, tuned_view

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), power_limit_w=700)
PROBLEM = GemmProblem(m=4096, n=3072, k=768, bias=True, activation="gelu")
RATES = DeviceRates(
    sm_count=132, clock_hz=1.98e9, flops_per_clock=4096, flops_per_s=790e12, memory_bytes_per_s=4.3e12,
    shared_bytes=233472, cache_bytes=60 * 2**20,
)  # fmt: skip


def trial(kind, *samples_us, failure=None, **values):
    return KernelTrial(
        problem=PROBLEM, device_class=H200.device_class, toolchain="t", configuration=Configuration.of(kind, values),
        state="failed" if failure else "complete", samples_us=samples_us, failure=failure,
    )  # fmt: skip


FAST, LIBRARY = trial("cutlass", 30.0, 31.0, 32.0, tile_m=64), trial("cublaslt", 40.0, rank=0)
SLOW, BROKEN = trial("torch", 80.0), trial("cutlass", failure=Failure(stage="check", kind="inaccurate", detail="off"))
TUNED = TunedProblem(problem=PROBLEM, weight=1.0, trials=(FAST, LIBRARY, SLOW, BROKEN), measured=3, compiled=2)


def test_figures_follow_from_samples_rates_and_the_best_library_call():
    figures = trial_document(FAST, TUNED, RATES)
    assert (figures["median_us"], figures["interval_us"], figures["samples"]) == (31.0, [30.0, 32.0], 3)
    assert figures["tflops"] == pytest.approx(2 * 4096 * 3072 * 768 / 31e-6 / 1e12)
    assert figures["roofline_share"] == pytest.approx(figures["tflops"] / 790)
    assert figures["library_ratio"] == pytest.approx(40 / 31)
    failed = trial_document(BROKEN, TUNED, RATES)
    assert failed["median_us"] is failed["tflops"] is failed["roofline_share"] is failed["library_ratio"] is None
    assert failed["failure"]["kind"] == "inaccurate"


def test_a_problem_says_what_was_saved():
    document = tuned_document(TUNED, RATES)
    assert document["saved"] == pytest.approx(1 - 31 / 40)
    assert (document["best_us"], document["library_us"], document["cached"]) == (31.0, 40.0, False)
    nothing = tuned_document(TunedProblem(problem=PROBLEM, weight=1.0, trials=(BROKEN,)), None)
    assert nothing["saved"] is nothing["best_us"] is nothing["library_us"] is nothing["roofline_us"] is None


def test_the_roofline_is_the_longer_of_arithmetic_and_memory():
    assert roofline_us(PROBLEM, RATES) == pytest.approx(PROBLEM.flops / 790e6)
    thin = GemmProblem(m=1, n=4096, k=4096)
    assert roofline_us(thin, RATES) == pytest.approx(thin.bytes / 4.3e6)
    assert roofline_us(GemmProblem(m=1, n=1, k=1, dtype="fp32", output="fp32"), RATES) is None


def test_the_table_shows_the_best_first_and_what_failed_below():
    console = Console(file=io.StringIO(), width=200)
    console.print(tuned_view(TUNED, H200, RATES))
    lines = console.file.getvalue().splitlines()
    order = [
        next(number for number, line in enumerate(lines) if word in line) for word in ("tile_m=64", "rank=0", "80")
    ]
    assert order == sorted(order)
    assert "1.29×" in lines[order[0]] and "31.00 [30.00 – 32.00]" in lines[order[0]]
    assert "inaccurate: off" in lines[-1]
    assert "3 timed now, 1 from the database" in lines[0]


def test_problems_are_named_by_what_sets_them_apart():
    assert problem_words(PROBLEM) == "4096×3072×768 fp16, bias, gelu"
    other = GemmProblem(m=1, n=2, k=3, dtype="bf16", output="fp32", a_major="mn", residual=True)
    assert problem_words(other) == "1×2×3 bf16 to fp32, A mn-major, residual"
    window = Window(height=56, width=56, channels=64, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    convolution = GemmProblem(m=784, n=128, k=576, bias=True, activation="relu", window=window)
    assert problem_words(convolution) == "784×128×576 fp16 (3×3 / 2×2 of 56×56), bias, relu"
