import io
from dataclasses import replace

import pytest
from rich.console import Console

from autotune.database.kernel_trials import KernelProblemRow
from autotune.kernels.rates import DeviceRates
from autotune.kernels.report import TunedProblem
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_final import KernelFinal, KernelFinalist
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from autotune.report.kernels import (
    problem_words,
    problems_document,
    problems_table,
    roofline_us,
    trial_document,
    tuned_document,
    tuned_view,
)

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


FINAL = KernelFinal(
    problem=PROBLEM, device_class=H200.device_class,
    finalists=(
        KernelFinalist(configuration=FAST.configuration, toolchain="t", rounds_us=((35.0,), (36.0,), (37.0,))),
        KernelFinalist(configuration=LIBRARY.configuration, toolchain="t", rounds_us=((34.0,), (33.0,), (34.0,))),
    ),
)  # fmt: skip
DECIDED = replace(TUNED, trials=(LIBRARY, FAST, SLOW, BROKEN), final=FINAL)


def test_figures_of_a_final_stand_beside_those_of_the_search():
    document = tuned_document(DECIDED, RATES)
    assert (document["best_us"], document["library_us"]) == (31.0, 40.0) and document["saved"] == TUNED.saved
    final = document["final"]
    assert (final["best"], final["best_us"], final["library_us"]) == (LIBRARY.configuration.as_dict(), 34.0, 34.0)
    assert final["saved"] == 0.0 and final["rounds"] == 3
    assert [one["median_us"] for one in final["finalists"]] == [34.0, 36.0]
    assert final["finalists"][1]["interval_us"] == [35.0, 37.0]
    assert [one["final_us"] for one in document["candidates"]] == [34.0, 36.0, None, None]
    assert DECIDED.best == DECIDED.library == LIBRARY
    undecided = tuned_document(TUNED, RATES)
    assert undecided["final"] is None and {one["final_us"] for one in undecided["candidates"]} == {None}


def shown(renderable):
    console = Console(file=io.StringIO(), width=220)
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_has_a_column_of_the_final_if_there_is_one():
    text = shown(tuned_view(DECIDED, H200, RATES))
    assert "34.00 [33.00 – 34.00]" in text and "40.00" in text and text.index("rank=0") < text.index("tile_m=64")
    assert "final" not in shown(tuned_view(TUNED, H200, RATES))


def test_the_list_shows_the_kernel_that_a_build_gets_and_what_chose_it():
    row = KernelProblemRow(
        problem=PROBLEM, device_class=H200.device_class, trials=4, failed=1, best=FAST, library_us=40.0
    )
    by_search = shown(problems_table([row]))
    assert "tile_m=64" in by_search and "31.00" in by_search and "search" in by_search and "22.5%" in by_search
    by_final = shown(problems_table([replace(row, final=FINAL)]))
    assert "rank=0" in by_final and "34.00" in by_final and "final" in by_final and "0.0%" in by_final
    (document,) = problems_document([replace(row, final=FINAL)])
    assert document["best_us"] == 31.0 and document["final"]["best_us"] == 34.0
    assert problems_document([row])[0]["final"] is None
    nothing = replace(row, best=None, library_us=None)
    assert "–" in shown(problems_table([nothing])) and problems_document([nothing])[0]["best_us"] is None
    ours = replace(
        FINAL,
        finalists=(
            FINAL.finalists[0],
            replace(FINAL.finalists[1], configuration=trial("cutlass", 1.0, tile_m=128).configuration),
        ),
    )
    assert "22.5%" in shown(problems_table([replace(row, final=ours)])), "no call was near: that of the search"


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
