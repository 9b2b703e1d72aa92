"""Plans of one name and how their tables distinguish them."""

from dataclasses import replace

import pytest
from rich.console import Console

from autotune.records.objective import Metric, Objective
from autotune.report.compare import compare_table, rows_by_device
from autotune.report.distinction import constraints, differing, named
from autotune.report.plans import plan_view, plans_table
from tests.database import records

PLAN = records.plan()
STRICT = Objective(signal_error=1e-3)
OTHERS = {
    "structure": {"structure": records.digest("other structure")},
    "weights": {"weights": records.digest("other weights")},
    "objective": {"objective": Objective(name="latency_p99")},
    "constraints": {"objective": STRICT},
    "served as": {"serve_as": "torchscript"},
}


def printed(renderable):
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return " ".join(console.export_text().replace("│", " ").replace("┃", " ").split())


def beside(part):
    return replace(PLAN, uid="p2", created="2026-02-01T00:00:00+00:00", latency_ms=0.5, **OTHERS[part])


@pytest.mark.parametrize("part", OTHERS)
def test_what_differs_between_plans_of_one_name_is_shown(part):
    plans = [PLAN, beside(part)]
    assert differing(plans) == (part,)
    text = printed(plans_table(plans, "here"))
    assert f"device {part} plan" in text
    for plan in plans:
        value = {
            "structure": plan.structure[:8],
            "weights": plan.weights[:8],
            "objective": plan.objective.name,
            "constraints": f"signal error ≤ {plan.objective.signal_error:g}",
            "served as": plan.serve_as,
        }[part]
        title = f"resnet50, batch 1, {part} {value}"
        assert value in text and title in printed(plan_view(plan, "here", artifact_here=True, parts=differing(plans)))


def test_plans_of_other_names_batches_and_devices_need_no_more_words():
    a100 = replace(records.DEVICE, name="NVIDIA A100")
    others = [
        records.plan("p2", records.workload(batch=32, weights="other")),
        records.plan("p3", records.workload("bert-base", weights="other")),
        records.plan("p4", replace(records.workload(), weights=records.digest("other")), device=a100),
    ]
    assert differing([PLAN, *others]) == () and named(PLAN, ()) == "resnet50, batch 1"
    assert "weights" not in printed(plans_table([PLAN, *others], "here"))


@pytest.mark.parametrize("part", [part for part in OTHERS if part != "weights"])
def test_compare_has_a_row_for_each_plan_that_answers_another_request(part):
    other = beside(part)
    rows = rows_by_device([PLAN, other])
    assert {row["plan"]["latency_ms"] for row in rows} == {1.0, 0.5}
    for plan in (PLAN, other):
        (row,) = (row for row in rows if row["plan"]["latency_ms"] == plan.latency_ms)
        assert (row["structure"], row["weights"], row["serve_as"]) == (plan.structure, plan.weights, plan.serve_as)
        assert row["objective"] == plan.objective.name and row["weights_known"] == 1
        assert Objective.from_dict({"name": row["objective"], **row["constraints"]}) == plan.objective
    text = printed(compare_table(rows))
    assert f"device class {part} baseline" in text or part == "objective"
    assert text.count("resnet50, batch 1") == (2 if part == "objective" else 1)


def test_compare_shows_the_newest_of_several_weights_and_says_how_many():
    rows = rows_by_device([PLAN, beside("weights")])
    (row,) = rows
    assert (row["weights"], row["weights_known"], row["plan"]["latency_ms"]) == (beside("weights").weights, 2, 0.5)
    assert f"{row['weights'][:8]} (newest of 2)" in printed(compare_table(rows))
    assert "newest of" not in printed(compare_table(rows_by_device([PLAN])))


def test_an_artifact_that_is_not_here_or_may_not_be_read_is_said():
    plan = replace(PLAN, artifact=records.digest("artifact"))
    for here, says in ((True, plan.artifact), (False, "not here: it is rebuilt"), (None, "this user may not read it")):
        assert says in printed(plan_view(plan, "here", artifact_here=here))
    assert "needs no artifact" in printed(plan_view(PLAN, "here", artifact_here=None))


def test_a_plan_that_fingerprint_1_recorded_is_shown_as_any_other():
    old = replace(PLAN, fingerprint=1, form="", kernels="")
    new = replace(PLAN, fingerprint=2, form=records.digest("form"))
    assert printed(plan_view(old, "here", artifact_here=None)) == printed(plan_view(new, "here", artifact_here=None))


def test_constraints_name_every_limit_that_was_set():
    objective = Objective(
        signal_error=0.01,
        signal_error_by_output=(("logits", 0.1),),
        integer_agreement=0.9,
        metrics=(Metric(function="gate.py:share", at_least=0.5),),
    )
    assert constraints(objective) == "signal error ≤ 0.01; logits ≤ 0.1; integers ≥ 0.9; share at least 0.5"
