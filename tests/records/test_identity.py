"""What makes two studies, trials, plans and artifacts the same, and what does not."""

from dataclasses import fields, replace

import pytest

from autotune.records.device import Toolchain
from autotune.records.identity import ArtifactKey, Conditions, Identity, PlanKey
from autotune.records.objective import Metric, Objective

CONDITIONS = Conditions(form="f", inputs="i", toolchain="t", measuring="m")
IDENTITY = Identity(
    name="net", structure="s", weights="w", device_class="d", objective=Objective(), serve_as="any", space="sp", seed=0,
    conditions=CONDITIONS,
)  # fmt: skip
KEY = IDENTITY.plan


def changed(name):
    """The identity with one field of its own, or of its conditions, changed."""
    others = {"objective": Objective(signal_error=0.01), "seed": 1, "tune_kernels": False, "fingerprint": 3}
    if name in {field.name for field in fields(Conditions)}:
        return replace(IDENTITY, conditions=replace(CONDITIONS, **{name: others.get(name, "other")}))
    return replace(IDENTITY, **{name: others.get(name, "other")})


OWN = [field.name for field in fields(Identity) if field.name != "conditions"]
ALL = [*OWN, *(field.name for field in fields(Conditions))]


@pytest.mark.parametrize("name", ALL)
def test_every_part_makes_another_study(name):
    assert changed(name).study != IDENTITY.study
    assert replace(IDENTITY).study == IDENTITY.study


@pytest.mark.parametrize("name", ALL)
def test_a_plan_is_rebuilt_for_other_weights_toolchains_and_forms_and_for_nothing_else(name):
    assert (changed(name).family == IDENTITY.family) == (name in ("weights", "toolchain", "form"))


@pytest.mark.parametrize("name", ALL)
def test_a_trial_is_judged_and_timed_under_inputs_gate_and_measuring(name):
    assert (changed(name).trial != IDENTITY.trial) == (name in ("inputs", "objective", "measuring", "fingerprint"))


def test_the_name_of_an_objective_is_no_part_of_what_a_trial_was_judged_by():
    assert replace(IDENTITY, objective=Objective(name="memory")).trial == IDENTITY.trial
    metric = Metric(function="a.py:f", at_most=1.0, code="c1")
    gated = replace(IDENTITY, objective=Objective(metrics=(metric,)))
    recoded = replace(IDENTITY, objective=Objective(metrics=(replace(metric, code="c2"),)))
    assert len({IDENTITY.trial, gated.trial, recoded.trial}) == 3 and gated.study != recoded.study


def test_what_fingerprint_1_recorded_keeps_its_study_and_lends_no_trial():
    old = replace(IDENTITY, conditions=None)
    assert old.study != IDENTITY.study and old.trial is None and old.plan.form == ""


@pytest.mark.parametrize("name", ALL)
def test_a_plan_is_looked_up_by_structure_form_device_class_objective_and_format_alone(name):
    same = changed(name).plan == KEY
    assert same == (name not in ("structure", "form", "device_class", "objective", "serve_as"))


@pytest.mark.parametrize(
    ("change", "serves", "parts"),
    [
        ({}, True, []),
        ({"form": "other"}, True, []),
        ({"structure": "other"}, False, ["structure"]),
        ({"device_class": "other"}, False, ["device class"]),
        ({"objective": Objective(signal_error=0.01)}, True, []),
        ({"objective": Objective(signal_error=0.05)}, False, ["constraint signal_error"]),
        ({"objective": Objective(name="memory")}, False, ["objective"]),
        ({"objective": Objective(integer_agreement=0.5)}, False, ["constraint integer_agreement"]),
        ({"objective": Objective(signal_error_by_output=(("a", 0.5),))}, False, ["constraint signal_error of a"]),
        ({"serve_as": "onnx"}, True, []),
    ],
)
def test_a_stricter_plan_serves_a_looser_caller_and_what_keeps_one_from_serving_is_named(change, serves, parts):
    stored = replace(KEY, **change)
    assert stored.serves(KEY) is serves
    assert [part for part, _, _ in stored.differences(KEY)] == parts


def test_a_format_that_is_asked_for_has_to_be_the_plans():
    asked = replace(KEY, serve_as="onnx")
    assert not KEY.serves(asked) and list(KEY.differences(asked)) == [("serving format", "onnx", "any")]


@pytest.mark.parametrize(
    ("stored", "covers"),
    [
        (Metric(function="elsewhere/a.py:f", at_most=1.0, code="c"), True),
        (Metric(function="a.py:f", at_most=0.5, code="c"), True),
        (Metric(function="a.py:f", at_most=2.0, code="c"), False),
        (Metric(function="a.py:f", at_least=1.0, code="c"), False),
        (Metric(function="a.py:g", at_most=1.0, code="c"), False),
        (Metric(function="a.py:f", at_most=1.0, code="other"), False),
        (Metric(function="a.py:f", at_most=1.0), False),
    ],
)
def test_a_metric_is_the_same_by_its_code_and_as_strict_by_its_bound(stored, covers):
    asked = Objective(metrics=(Metric(function="a.py:f", at_most=1.0, code="c"),))
    plan = replace(KEY, objective=Objective(metrics=(stored,)))
    assert plan.serves(replace(KEY, objective=asked)) is covers
    assert plan.serves(KEY), "one who asks for no metric is served by a plan that has passed one"


def test_an_artifact_serves_weights_toolchain_and_kernels_that_it_was_built_from():
    one = ArtifactKey(weights="w", toolchain=Toolchain.of({"torch": "2.13", "triton": "3.6"}), kernels="k")
    assert list(one.differences(one)) == []
    other = ArtifactKey(weights="v", toolchain=Toolchain.of({"torch": "2.14"}))
    assert list(one.differences(other)) == [
        ("weights", "v", "w"), ("toolchain torch", "2.14", "2.13"), ("toolchain triton", "none", "3.6"),
        ("kernels", "none", "k"),
    ]  # fmt: skip


def test_conditions_survive_a_trip_through_json():
    assert Conditions.from_dict(CONDITIONS.as_dict()) == CONDITIONS and Conditions.from_dict({}) is None
    assert isinstance(KEY, PlanKey)
