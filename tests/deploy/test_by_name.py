"""Plans that are loaded by the name of their study, without the model's code."""

import dataclasses
import re
import shutil

import pytest
import torch

import autotune
from autotune.database.store import Store
from autotune.deploy import model
from autotune.errors import ModelError, PlanNotFoundError, RequestError


@pytest.fixture
def place(tuned_net, tmp_path):
    """A copy of the folder, whose plans a test may change."""
    shutil.copytree(tuned_net.folder, tmp_path / "place", symlinks=True)
    return tmp_path / "place" / "autotune.db"


def changed(path, **values):
    """Store the plan under another uid, with other values."""
    with Store.open(str(path)) as store:
        (plan,) = store.plans.list(name="net", batch=3)
        store.plans.promote(dataclasses.replace(plan, uid="b" * 32, **values))


def test_a_process_without_the_models_code_loads_it_and_gets_its_answers(tuned_net, tmp_path):
    loads = f"autotune.load('net', batch=3, device='cpu', db={tuned_net.database!r})"
    tuned_net.check_elsewhere(loads, tmp_path, absent=["net_of_a_user"])


def test_a_call_means_the_same_as_a_call_of_the_model(tuned_net):
    inputs, answers = tuned_net.inputs, tuned_net.answers
    fast = autotune.load("net", device="cpu", db=tuned_net.database)
    with pytest.raises(ModelError, match=r"no scale.*\n.*x, scale"):
        fast(torch.randn(3, 16))
    with pytest.raises(ModelError, match="shift, which the plan was made without"):
        fast(inputs["x"], inputs["scale"])  # the second parameter of the forward, which is not the second input
    with pytest.raises(ModelError, match="training"):
        fast(**inputs, training=True)
    torch.testing.assert_close(fast(**inputs).second, answers[0], rtol=1e-4, atol=1e-5)
    fast.close()


def test_an_artifact_of_an_earlier_version_takes_its_inputs_by_name_alone(tuned_net, monkeypatch):
    read = model.read_record
    monkeypatch.setattr(model, "read_record", lambda folder: dataclasses.replace(read(folder), signature=None))
    inputs, answers = tuned_net.inputs, tuned_net.answers
    fast = autotune.load("net", device="cpu", db=tuned_net.database)
    torch.testing.assert_close(fast(**inputs).second, answers[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="keywords: x, scale"):
        fast(inputs["x"], inputs["scale"])  # the second parameter of the forward is another one
    fast.close()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": "nett"}, PlanNotFoundError, ("nett", "plans of net")),
        ({"model": "net", "batch": 4}, PlanNotFoundError, ("batch 4", "at batch 3")),
        ({"model": ""}, PlanNotFoundError, ("no stored plan of ''", "plans of net")),
        ({"model": "net", "batch": "3"}, RequestError, ("batch='3'", "a whole number")),
        ({"model": "net", "batch": 0}, RequestError, ("batch=0",)),
        ({"model": "net", "inputs": (1,)}, RequestError, ("inputs= beside it",)),
        ({"model": "net", "name": "other"}, RequestError, ("name= beside it",)),
        ({"model": "net", "serve_as": "onnx"}, PlanNotFoundError, ("serving format: requested onnx",)),
        ({"model": "net", "objective": "throughput"}, PlanNotFoundError, ("objective: requested throughput",)),
        ({"model": "net", "constraints": {"signal_error": 1e-6}}, PlanNotFoundError, ("constraint signal_error",)),
    ],
)
def test_a_name_that_no_plan_serves_is_told_with_what_there_is(tuned_net, given, error, words):
    with pytest.raises(error) as raised:
        autotune.load(**given, device="cpu", db=tuned_net.database)
    for word in words:
        assert word in str(raised.value)
    assert "run next" in str(raised.value) or error is RequestError


def test_a_module_comes_with_its_inputs_and_without_a_batch(tuned_net):
    net, inputs = tuned_net.net, tuned_net.inputs
    with pytest.raises(RequestError, match="no inputs"):
        autotune.load(net, db=tuned_net.database)
    with pytest.raises(RequestError, match="batch=3"):
        autotune.load(net, inputs, batch=3, db=tuned_net.database)


def test_plans_of_several_batches_need_one_named(place):
    changed(place, batch=8, structure="c" * 64)
    with pytest.raises(RequestError, match=r"batch 3, 8[\s\S]*batch=3"):
        autotune.load("net", device="cpu", db=str(place))
    autotune.load("net", batch=3, device="cpu", db=str(place)).close()


@pytest.mark.parametrize("differs", ["structure", "weights"])
def test_two_models_of_a_name_are_refused_and_both_are_listed(place, differs):
    changed(place, **{differs: "c" * 64})
    with pytest.raises(RequestError) as raised:
        autotune.load("net", device="cpu", db=str(place))
    text = str(raised.value)
    assert "several models are named net" in text and f"{differs} cccccccc" in text and text.count("plan ") > 2


def test_a_plan_of_another_device_is_told(place):
    with Store.open(str(place)) as store:
        (plan,) = store.plans.list(name="net")
        device = dataclasses.replace(plan.device, name="AMD EPYC 9654", cores=96)
    changed(place, device=device)
    with Store.open(str(place)) as store:
        store.plans.promote(dataclasses.replace(store.plans.get("b" * 32), name="far"))
    with pytest.raises(PlanNotFoundError, match=re.escape(device.device_class)):
        autotune.load("far", device="cpu", db=str(place))


def test_an_artifact_of_another_toolchain_needs_the_model(place):
    with Store.open(str(place)) as store:
        (plan,) = store.plans.list(name="net")
        entries = {name: "0.0" for name in plan.toolchain.as_dict()}
        store.plans.promote(dataclasses.replace(plan, toolchain=type(plan.toolchain).of(entries)))
    with pytest.raises(PlanNotFoundError) as raised:
        autotune.load("net", device="cpu", db=str(place))
    assert "torch: requested" in str(raised.value) and "which needs the model" in str(raised.value)


def test_the_fastest_plan_that_can_be_loaded_is_taken(place):
    with Store.open(str(place)) as store:
        (plan,) = store.plans.list(name="net")
    stricter = dataclasses.replace(plan.objective, signal_error=plan.objective.signal_error / 2)
    interval_ms = tuple(0.5 * bound for bound in plan.interval_ms)
    changed(place, objective=stricter, latency_ms=0.5 * plan.latency_ms, interval_ms=interval_ms, artifact="0" * 64)
    fast = autotune.load("net", device="cpu", db=str(place))
    assert fast.plan.uid == plan.uid, "the faster one has no artifact here"
    fast.close()


def test_a_plan_of_the_models_own_code_needs_the_model(place):
    with Store.open(str(place)) as store:
        (plan,) = store.plans.list(name="net")
        own = type(plan.configuration).of("eager", {"form": "module", "precision": "fp32"})
        store.plans.promote(dataclasses.replace(plan, configuration=own))
    with pytest.raises(PlanNotFoundError, match=r"code: requested none of the model's[\s\S]*autotune.load\(model"):
        autotune.load("net", device="cpu", db=str(place))


def test_a_damaged_artifact_is_refused(place):
    with Store.open(str(place)) as store:
        (plan,) = store.plans.list(name="net")
        largest = max(store.artifacts.files(plan.artifact), key=lambda file: file.size_bytes)
        blob = store.artifacts.blob(largest.sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"?" * largest.size_bytes)
    with pytest.raises(PlanNotFoundError, match="is damaged"):
        autotune.load("net", device="cpu", db=str(place))
