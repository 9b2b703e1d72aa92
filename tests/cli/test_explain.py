import io
import json

from rich.console import Console

from autotune.kernel_problem import GemmProblem
from autotune.report.explain import _kernel, explanation_view, problem_text


def test_explain_tells_of_one_plan_what_it_was_held_against(autotune, database):
    asked = ("explain", "resnet50", "--batch", "1", "--device", "h200", "--db", database)
    found = json.loads(autotune(*asked, "--json").stdout)
    assert (found["name"], found["batch"], found["latency_ms"]) == ("resnet50", 1, 1.0)
    assert found["graph"] is None and found["before"] is None
    text = autotune(*asked).stdout
    assert "not available: the finals took no trace of kernels here" in " ".join(text.split())


def test_explain_refuses_a_model_without_a_plan(autotune, database):
    result = autotune("explain", "nothing", "--db", database)
    assert result.exit_code != 0 and "no plan for nothing" in result.stderr


def kernel(median_us, library_us):
    problem = GemmProblem(m=128, n=3072, k=768, bias=True, activation="gelu")
    configuration = {"backend": "cutlass", "tile_m": 64}
    site = {
        "name": "gemm_3", "problem": problem.as_dict(),
        "kernel": {"configuration": configuration, "median_us": median_us},
        "library": {"configuration": {"backend": "cublaslt", "rank": 0}, "median_us": library_us},
    }  # fmt: skip
    return _kernel(site)


def test_a_native_plan_is_told_with_its_fusions_and_kernels():
    found = {
        "name": "bert", "batch": 1, "device": "nvidia-h200", "status": "promoted",
        "configuration": {"backend": "native", "precision": "fp16"},
        "latency_ms": 0.5, "baseline_latency_ms": 5.0, "speedup": 10.0,
        "before": {"kernels_per_call": 800.0, "sm_efficiency": 0.1}, "after": {"kernels_per_call": 100.0},
        "graph": {
            "nodes_before": 518, "nodes_after": 140, "fusions": {"attention": 12, "qkv": 0},
            "kernels": [kernel(5.0, 7.0), kernel(5.0, 7.0)],
        },
        "others": [], "trials": {"complete": 3}, "refused": [{"number": 1, "configuration": {}, "why": "x"}],
    }  # fmt: skip
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_view(found))
    text = " ".join(console.export_text().split())
    for part in (
        "kernels a call 800 to 100", "SM efficiency 10% to not available", "518 operators to 140", "attention 12",
        "128 × 3072 × 768 fp16, bias + gelu", "cutlass: tile_m=64", "4.00", "1 candidates were refused",
    ):  # fmt: skip
        assert part in text, part
    assert "qkv" not in text


def test_a_problem_in_words():
    assert problem_text(GemmProblem(m=1, n=2, k=3, residual=True)) == "1 × 2 × 3 fp16, residual"
