"""Plans of one name and how their tables distinguish them."""

from dataclasses import replace

import pytest
from rich.console import Console

from autotune.comparison.comparison import compare_plans
from autotune.comparison.selection import Selection
from autotune.records.objective import Metric, Objective
from autotune.report.comparison import comparison_tables
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


def compared(*plans):
    return compare_plans(plans, [], Selection())


@pytest.mark.parametrize("part", [part for part in OTHERS if part != "weights"])
def test_compare_has_a_row_for_each_plan_that_answers_another_request(part):
    other = beside(part)
    comparison = compared(PLAN, other)
    cells = {cell.plan.uid: (workload, cell) for workload, cell in comparison.cells()}
    assert set(cells) == {PLAN.uid, other.uid}
    for plan in (PLAN, other):
        workload, cell = cells[plan.uid]
        entry = cell.as_dict()["plan"]
        assert (entry["structure"], entry["weights"], entry["serve_as"]) == (
            plan.structure,
            plan.weights,
            plan.serve_as,
        )
        assert workload.objective == plan.objective.name and cell.weights_known == 1
        assert Objective.from_dict({"name": workload.objective, **entry["constraints"]}) == plan.objective
    text = printed(comparison_tables(comparison))
    assert f"device class {part} baseline" in text or part == "objective"
    assert text.count("resnet50, batch 1") == (2 if part == "objective" else 1)


def test_compare_shows_the_newest_of_several_weights_and_says_how_many():
    newest = beside("weights")
    comparison = compared(PLAN, newest)
    ((_, cell),) = comparison.cells()
    assert cell.plan is newest and cell.weights_known == 2
    assert f"{newest.weights[:8]} (newest of 2)" in printed(comparison_tables(comparison))
    assert "newest of" not in printed(comparison_tables(compared(PLAN)))


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
