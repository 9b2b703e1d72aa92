"""Tests of the plans that a tuning database stores: a part of :mod:`autotune.testing.store_conformance`."""

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.database.store import Store
from autotune.errors import DeviceError
from autotune.records.objective import Metric, Objective
from autotune.testing.sample_records import (
    DEVICE,
    KEY,
    LOOSE,
    NEWER_TOOLCHAIN,
    OBJECTIVE,
    OTHER_DEVICE,
    PLAN,
    STRICT,
    TOOLCHAIN,
    begin,
    digest,
    stored,
    tried,
)


class PlanConformance:
    """The promises of every database about plans and artifacts."""

    def test_a_plan_is_stored_whole_and_replaced_by_its_key(self, store: Store, tmp_path: Path) -> None:
        """The artifact of the plan that it replaces is dropped."""
        first, second = (stored(store, tmp_path, content) for content in ("first", "second"))
        plan = replace(PLAN, artifact=first)
        store.plans.promote(plan)
        assert store.plans.get("p1") == plan and store.plans.get("p1").as_dict() == plan.as_dict()
        store.plans.promote(replace(PLAN, uid="p2", artifact=second, latency_ms=3.0, created=""))
        assert [plan.uid for plan in store.plans.list()] == ["p2"]
        assert store.plans.get("p2").created.startswith("2026-01-01T00:00:0")
        assert store.artifacts.digests() == [second]
        with pytest.raises(ValueError, match="no plan"):
            store.plans.get("p1")
        others = [
            replace(PLAN, uid="p3", objective=STRICT),
            replace(PLAN, uid="p4", serve_as="onnx"),
            replace(PLAN, uid="p5", weights=digest("x")),
            replace(PLAN, uid="p6", device=OTHER_DEVICE),
        ]
        for other in others:
            store.plans.promote(other)
        refused = [
            replace(PLAN, uid="p9", artifact="../x"),
            replace(PLAN, uid=""),
            replace(PLAN, uid="p9", created="yesterday"),
            replace(PLAN, uid="p9", created="2026-01-01T00:00:00"),
        ]
        for other in refused:
            with pytest.raises(ValueError, match=r"names no artifact|a uid has|isoformat|time zone"):
                store.plans.promote(other)
        assert {plan.uid for plan in store.plans.list()} == {"p2", "p3", "p4", "p5", "p6"}

    def test_related_plans_come_in_the_order_of_their_distance(self, store: Store) -> None:
        """Those of the device class first, among them those of the name, and newer ones before older ones."""
        days = iter(range(1, 20))

        def promote(uid: str, **changes: object) -> None:
            created = f"2026-01-{next(days):02}T00:00:00+00:00"
            store.plans.promote(replace(PLAN, uid=uid, structure=digest(uid), created=created, **changes))  # type: ignore[arg-type]

        promote("far", name="vit", device=OTHER_DEVICE)
        promote("same name elsewhere", device=OTHER_DEVICE)
        promote("old")
        promote("new", batch=32)
        promote("other name", name="vit")
        promote("other objective", objective=Objective(name="memory"))
        near = store.plans.related(PLAN.name, DEVICE.device_class, OBJECTIVE.name, 9)
        expected = ["new", "old", "other name", "same name elsewhere", "far"]
        assert [plan.uid for plan in near] == expected
        first = store.plans.related(PLAN.name, DEVICE.device_class, OBJECTIVE.name, 3)
        assert [plan.uid for plan in first] == expected[:3] and near[0].evidence == PLAN.evidence

    def test_a_looser_plan_never_serves_a_stricter_caller(self, store: Store) -> None:
        """A stricter one serves, if it is faster; and ``any`` is served by every format."""

        def served(objective: Objective, serve_as: str = "any") -> str | None:
            plan = store.plans.find(replace(KEY, objective=objective, serve_as=serve_as))
            return plan.uid if plan else None

        assert served(LOOSE) is None
        store.plans.promote(replace(PLAN, uid="loose", objective=LOOSE, latency_ms=0.5))
        assert (served(LOOSE), served(OBJECTIVE), served(STRICT)) == ("loose", None, None)
        store.plans.promote(replace(PLAN, uid="default", latency_ms=1.0))
        store.plans.promote(replace(PLAN, uid="strict", objective=STRICT, latency_ms=2.0))
        assert (served(LOOSE), served(OBJECTIVE), served(STRICT)) == ("loose", "default", "strict")
        store.plans.promote(replace(PLAN, uid="strict", objective=STRICT, latency_ms=0.9))
        assert (served(LOOSE), served(OBJECTIVE), served(STRICT)) == ("loose", "strict", "strict")
        assert served(Objective(metrics=(Metric(function="m:f", at_most=1.0),))) is None
        assert served(OBJECTIVE, "onnx") is None
        store.plans.promote(replace(PLAN, uid="onnx", serve_as="onnx", latency_ms=0.8))
        assert (served(OBJECTIVE, "onnx"), served(OBJECTIVE)) == ("onnx", "onnx")
        for other in (replace(KEY, device_class=OTHER_DEVICE.device_class), replace(KEY, structure=digest("other"))):
            assert store.plans.find(replace(other, objective=LOOSE)) is None

    def test_a_plan_for_these_weights_comes_before_a_faster_one_for_others(self, store: Store) -> None:
        """A model without a plan of its own gets the plan of its structure."""
        store.plans.promote(replace(PLAN, uid="other", weights=digest("other"), latency_ms=0.5))
        plan = store.plans.find(KEY, weights=PLAN.weights)
        assert plan is not None and plan.uid == "other"
        store.plans.promote(replace(PLAN, uid="own"))
        expected = {PLAN.weights: "own", digest("other"): "other", digest("third"): "other", None: "other"}
        for weights, uid in expected.items():
            plan = store.plans.find(KEY, weights=weights)
            assert plan is not None and plan.uid == uid

    def test_a_rebuilt_artifact_joins_its_plan(self, store: Store, tmp_path: Path) -> None:
        """With other weights it becomes a plan beside the first."""
        first, second, third = (stored(store, tmp_path, content) for content in "abc")
        store.plans.promote(replace(PLAN, artifact=first))
        changed = store.plans.replace_artifact("p1", second, PLAN.weights, NEWER_TOOLCHAIN)
        assert changed == replace(PLAN, artifact=second, toolchain=NEWER_TOOLCHAIN) == store.plans.get("p1")
        assert store.artifacts.digests() == sorted([second, third])
        copy = store.plans.replace_artifact("p1", third, digest("fine-tuned"), NEWER_TOOLCHAIN)
        assert copy.uid != "p1"
        assert copy == replace(changed, uid=copy.uid, artifact=third, weights=digest("fine-tuned"))
        assert {plan.uid for plan in store.plans.list()} == {"p1", copy.uid}
        assert store.plans.replace_artifact("p1", second, PLAN.weights, NEWER_TOOLCHAIN) == changed
        assert store.artifacts.digests() == sorted([second, third])

    def test_plans_of_one_model_in_two_forms_stand_beside_each_other(self, store: Store, tmp_path: Path) -> None:
        """A form that was not recorded is added to its plan in place."""
        first, second = (stored(store, tmp_path, content) for content in "ab")
        store.plans.promote(replace(PLAN, uid="old", artifact=first))
        renewed = store.plans.replace_artifact("old", second, PLAN.weights, TOOLCHAIN, form="one", fingerprint=2)
        assert renewed.uid == "old" and store.plans.list() == [renewed]
        store.plans.promote(replace(PLAN, uid="fast", form="two", latency_ms=0.5))
        for form, uid in {"one": "old", "two": "fast", "": "fast"}.items():
            plan = store.plans.find(replace(KEY, form=form), PLAN.weights)
            assert plan is not None and plan.uid == uid
        beside = store.plans.replace_artifact("fast", second, PLAN.weights, TOOLCHAIN, form="three")
        assert beside.uid not in ("old", "fast") and len(store.plans.list()) == 3

    def test_the_nearest_plans_of_a_miss_come_with_their_differences(self, store: Store) -> None:
        """Those of the structure, by either fingerprint, or of the name."""
        store.plans.promote(replace(PLAN, uid="loose", objective=LOOSE))
        store.plans.promote(replace(PLAN, uid="elsewhere", device=OTHER_DEVICE, objective=LOOSE))
        store.plans.promote(replace(PLAN, uid="former", structure=digest("former"), name="another"))
        store.plans.promote(replace(PLAN, uid="stranger", structure=digest("stranger"), name="stranger"))
        key = replace(KEY, serve_as="onnx")
        near = store.plans.nearest(key, "resnet50", digest("former"))
        assert [plan.uid for plan in near] == ["former", "loose", "elsewhere"]
        differences = list(near[2].key.differences(key))
        assert ("device class", DEVICE.device_class, OTHER_DEVICE.device_class) in differences
        assert ("constraint signal_error", "0.02", "0.1") in differences
        assert ("serving format", "onnx", "any") in differences

    def test_plans_are_listed_by_any_unambiguous_part_of_a_device(self, store: Store) -> None:
        """A part that fits several SKUs is refused."""
        nvl = replace(DEVICE, name="NVIDIA H200 NVL")
        limited = replace(DEVICE, power_limit_w=600)
        for uid, device in {"a": DEVICE, "b": OTHER_DEVICE, "c": nvl, "d": limited}.items():
            store.plans.promote(replace(PLAN, uid=uid, device=device))

        def listed(device: str) -> set[str]:
            return {plan.uid for plan in store.plans.list(device=device)}

        assert listed("h100") == listed("NVIDIA H100") == listed(OTHER_DEVICE.device_class) == {"b"}
        assert listed("nvidia-h200") == {"a", "d"} and listed("nvl") == {"c"}
        assert listed(DEVICE.device_class) == {"a"}
        assert listed("a100") == set() == listed("")
        for part in ("h200", "nvidia"):
            with pytest.raises(DeviceError, match="nvidia-h200, nvidia-h200-nvl"):
                store.plans.list(device=part)
        assert [plan.batch for plan in store.plans.list("resnet50", 1, "h100")] == [1]
        assert store.plans.list("resnet50", 32) == store.plans.list("absent") == []

    def test_losers_lose_their_artifacts_and_keep_their_rows(self, store: Store, tmp_path: Path) -> None:
        """An artifact that another trial or a plan needs stays."""
        study = begin(store)
        contents = ("won", "lost", "shared", "promoted")
        digests = {content: stored(store, tmp_path, content) for content in contents}
        trials = [tried(store, study, level, artifact=digests[name]) for level, name in enumerate(contents)]
        tried(store, begin(store, seed=1), 2, artifact=digests["shared"])
        store.plans.promote(replace(PLAN, artifact=digests["promoted"]))
        store.trials.drop_losers(study.uid, keep={trials[0].uid})
        assert store.trials.of_study(study.uid) == [trials[0], *(replace(t, artifact=None) for t in trials[1:])]
        assert store.artifacts.digests() == sorted([digests["won"], digests["shared"], digests["promoted"]])
        store.trials.keep_artifact(trials[2].uid, digests["shared"], kernels=digest("tuned"))
        assert store.trials.get(trials[2].uid) == replace(trials[2], kernels=digest("tuned"))
        for content in ("shared", "unnamed"):
            store.trials.drop_unnamed(stored(store, tmp_path, content))
        assert store.artifacts.digests() == sorted([digests["won"], digests["shared"], digests["promoted"]])
