import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertModel

from autotune.backends.native.backend import BACKEND
from autotune.backends.native.describe import describe
from autotune.database.store import Store
from autotune.model import source
from autotune.model.capture import capture
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.report.explain import UNKNOWN, explanation, graph_document
from autotune.report.explain_view import MOST_OTHERS, MOST_ROWS, explanation_view
from autotune.runtime import discovery
from tests.database import records

ROOT = Path(__file__).parents[2]
TILE = {
    "backend": "cutlass", "tile_m": 64, "tile_n": 128, "tile_k": 64, "cluster_m": 1, "cluster_n": 1,
    "schedule": "pingpong", "scheduler": "persistent", "swizzle": 1, "raster": "heuristic",
    "decomposition": "data_parallel", "splits": 1, "reduction": "deterministic",
}  # fmt: skip
UP = GemmProblem(m=128, n=3072, k=768, bias=True, activation="gelu")
DOWN = GemmProblem(m=128, n=768, k=3072, bias=True, residual=True)


def shown(found, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(explanation_view(found))
    return console.export_text()


def site(problem, layer, part, *, us=None, library_us=None, **more):
    place = f"encoder.layer.{layer}.{part}"
    found = {"name": f"gemm_{layer}_{part}", "operator": "gemm", "place": place, "problem": problem.as_dict()}
    if us is not None:
        found["kernel"] = {"configuration": TILE, "median_us": us}
    if library_us is not None:
        found["library"] = {"configuration": {"backend": "cublaslt", "rank": 0}, "median_us": library_us}
    return found | more


def graph(*sites, **changes):
    record = {"nodes_before": 518, "nodes_after": 140, "fusions": {}, "places": {}, "sites": sites}
    return graph_document(describe(record | changes))


def plan_with(tmp_path, **changes):
    with Store.open(str(tmp_path / "autotune.db"), create=True) as store:
        return explanation(records.plan(**changes), store)


def recorded_finals():
    """The finals of a study on an H200, as they were committed."""
    path = ROOT / "studies" / "bert-base" / "results" / "nvidia-h200-b32.json"
    return json.loads(path.read_text())["finals"]


def test_gemms_come_by_what_they_save_in_a_call():
    found = graph(
        site(DOWN, 0, "output.dense", us=8.0, library_us=8.5),
        *(site(UP, layer, "intermediate.dense", us=6.0, library_us=8.0) for layer in range(3)),
        site(UP, 7, "odd", us=6.0),
    )
    up, down = found["kernels"]
    assert (up["times"], up["saved_us"], up["saved_share"], up["saved_us_per_call"]) == (4, 2.0, 0.25, 8.0)
    assert (down["times"], down["saved_us_per_call"]) == (1, 0.5)
    assert up["kernel"] == "CUTLASS 64×128×64, pingpong" and up["library"] == "cuBLASLt heuristic's choice 1"
    assert up["places"][0] == "encoder.layer.0.intermediate.dense" and len(up["sites"]) == 4
    assert found["saved_us_per_call"] == 8.5


def test_what_triton_computes_is_counted():
    norms = [{"name": f"norm_{n}", "operator": "add_norm", "plans": [{"file": "a.plan.json"}]} for n in range(25)]
    found = graph(*norms, {"name": "p", "operator": "pointwise", "plans": [{"file": "b.plan.json"}]})
    assert found["written"] == {"add_norm": 25, "pointwise": 1} and found["left"] == []


def test_without_a_library_call_nothing_is_said_to_be_saved():
    found = graph(site(UP, 0, "intermediate.dense", us=6.0))
    assert found["kernels"][0]["saved_us"] is None and found["saved_us_per_call"] is None


def test_what_torch_computes_is_grouped_by_its_reason():
    norms = [
        {"name": f"norm_{n}", "operator": "add_norm", "place": f"encoder.layer.{n}", "why": "no Triton here"}
        for n in range(2)
    ]
    found = graph(site(UP, 0, "intermediate.dense"), *norms, {"name": "c", "operator": "conv2d", "place": "stem"})
    assert found["left"] == [
        {
            "what": "add_norm", "why": "no Triton here", "times": 2,
            "places": ["encoder.layer.0", "encoder.layer.1"],
        },
        {
            "what": "128×3072×768 fp16, bias, gelu", "why": UNKNOWN, "times": 1,
            "places": ["encoder.layer.0.intermediate.dense"],
        },
    ]  # fmt: skip


def test_figures_before_and_after_are_those_of_the_finals_traces(tmp_path):
    finals = recorded_finals()
    baseline = next(one for one in finals if one["is_baseline"])
    other = next(one for one in finals if one["backend"] == "inductor" and one["utilisation"]["available"])
    assert baseline is not other
    configuration = Configuration.from_dict(other["configuration"])
    found = plan_with(tmp_path, configuration=configuration, evidence={"finalists": finals})
    for which, finalist in (("before", baseline), ("after", other)):
        trace, counted = finalist["utilisation"]["trace"], finalist["utilisation"]["gpm"]
        assert found[which]["kernels_per_call"] == trace["kernels_per_call"]
        assert found[which]["sm_efficiency"] == trace["sm_efficiency"]
        assert found[which]["heaviest"] == trace["heaviest"]
        assert found[which].get("sm_util") == counted.get("sm_util")
    assert found["not_measured"] is None
    traces = [one["utilisation"]["trace"] for one in (baseline, other)]
    text = " ".join(shown(found).split())
    assert "kernels a call {:.0f} to {:.0f}".format(*(trace["kernels_per_call"] for trace in traces)) in text
    assert "SM efficiency {:.0%} to {:.0%}".format(*(trace["sm_efficiency"] for trace in traces)) in text
    assert traces[1]["heaviest"][0]["name"] in text
    assert f"and {len(finals) - 1 - MOST_OTHERS} more" in text


@pytest.mark.parametrize(
    ("utilisation", "why"),
    [
        (None, "the finals took no trace of kernels"),
        ({"available": False, "reason": "a CPU runs no kernels"}, "a CPU runs no kernels"),
        (
            {
                "available": True, "trace": {"available": False, "reason": "no profiler"},
                "gpm": {"available": False, "reason": "no counters"},
            },
            "no profiler",
        ),
    ],
)  # fmt: skip
def test_figures_that_are_not_there_are_said_to_be_not_measured(tmp_path, utilisation, why):
    finalist = {
        "configuration": records.configuration().as_dict(), "is_baseline": True, "latency_ms": 1.0,
        "interval_ms": [0.9, 1.1], "utilisation": utilisation,
    }  # fmt: skip
    found = plan_with(tmp_path, evidence={"finalists": [finalist]})
    assert found["before"] is None and found["after"] is None
    assert f"not measured: {why}" in shown(found)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A small BERT, built by the native backend with every fusion that it has a use for."""
    folder, artifact = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("artifact")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
    torch.manual_seed(0)
    inputs = {"input_ids": torch.arange(8).reshape(1, 8)}
    found = capture("bert", 1, BertModel(BertConfig(num_hidden_layers=3, **sizes)).eval(), inputs)
    source.write(folder, found, inputs, factory=None, seed=0)
    values = {"precision": "fp32", "qkv": True, "norm": True, "gemm_epilogue": True, "attention": True}
    configuration = Configuration.of("native", values)
    BACKEND.build(source.CapturedModel(folder), configuration, discovery.find("cpu"), artifact)
    return configuration, artifact


def test_a_stored_native_plan_is_told_with_its_places(native, tmp_path):
    configuration, artifact = native
    with Store.open(str(tmp_path / "autotune.db"), create=True) as store:
        with store.artifacts.kept(artifact) as digest:
            found = explanation(records.plan(configuration=configuration, artifact=digest), store)
        away = explanation(records.plan(configuration=configuration, artifact="0" * 64), store)
    json.dumps(found)
    stored = found["graph"]
    assert stored["fusions"]["qkv"] == 3 == len(stored["places"]["qkv"])
    assert {name: len(places) for name, places in stored["places"].items()} == stored["fusions"]
    # the joined product, attention's own, both of the MLP, and the pooler's; on a CPU nothing is tuned
    assert sum(one["times"] for one in stored["left"] if one["why"] == UNKNOWN) == 4 * 3 + 1
    text = shown(found)
    for part in ("encoder.layer.{0..2}.attention.self ×3", "encoder.layer.{0..2}.intermediate.dense ×3", UNKNOWN):
        assert part in text, part
    assert away["graph"] is None and "the artifact is not here" in shown(away)


def test_an_artifact_from_before_places_were_recorded_is_told_all_the_same(native):
    record = dict(BACKEND.explain_artifact(native[1]))
    del record["places"]
    record["sites"] = [{key: value for key, value in one.items() if key != "place"} for one in record["sites"]]
    found = graph_document(record)
    assert found["fusions"]["qkv"] == 3 and found["places"] == {}
    assert all(one["places"] == [] for one in found["left"])


def test_a_large_plan_stays_on_one_screen(tmp_path):
    problems = [GemmProblem(m=128, n=n, k=768) for n in range(64, 64 * 21, 64)]
    sites = [site(one, n, "out", us=5.0, library_us=6.0 + n) for n, one in enumerate(problems)]
    names = ("conv_bn", "qkv", "attention", "norm", "gemm_epilogue", "conv_act", "back_to_back_gemm", "pointwise")
    places = {name: [f"encoder.layer.{n}.{name}" for n in range(12)] for name in names}
    fusions = {name: 12 for name in names}
    found = plan_with(tmp_path, evidence={"finalists": recorded_finals()})
    found["graph"] = graph(*sites, fusions=fusions, places=places)
    text = shown(found, width=110)
    assert len(text.splitlines()) < 60
    assert f"and {len(problems) - MOST_ROWS} more: --json has them all" in text
    assert text.index("layer.19.out") < text.index("layer.18.out")  # what saves most comes first
    assert max(map(len, text.splitlines())) <= 110
