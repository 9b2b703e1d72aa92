"""The policies for a miss: an error, the caller's own model, or a plan of another device that holds here."""

import dataclasses
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import delete, update

import autotune
from autotune.database.manifest import ArtifactFile, digest_of
from autotune.database.schema import PlanTable
from autotune.database.store import Store
from autotune.deploy import bundle, recheck
from autotune.errors import ArtifactError, ModelError, PlanNotFoundError, RequestError, SignatureError

FAR = "CPU of another machine"


@pytest.fixture
def place(tuned_net, tmp_path):
    """A copy of the database, whose plan a test may change."""
    shutil.copytree(tuned_net.folder, tmp_path / "place", symlinks=True)
    return str(tmp_path / "place" / "autotune.db")


def change(database, **values):
    """Store the plan of a database with other values, in its own place."""
    with Store.open(database) as store:
        (plan,) = store.plans.list(name="net")
        with store.transactions.writing() as session:
            session.execute(delete(PlanTable).where(PlanTable.uid == plan.uid))
        return store.plans.promote(dataclasses.replace(plan, **values))


def tuned_elsewhere(database, **values):
    """Make the plan one of another device class, whose artifact runs here."""
    with Store.open(database) as store:
        (plan,) = store.plans.list(name="net")
    return change(database, device=dataclasses.replace(plan.device, name=FAR), **values)


def damage(database, what):
    """Damage the largest file of the plan's artifact, or its row."""
    with Store.open(database) as store:
        (plan,) = store.plans.list(name="net")
        if what == "artifact":
            file = max(store.artifacts.files(plan.artifact), key=lambda file: file.size_bytes)
            blob = store.artifacts.blob(file.sha256)
            blob.chmod(0o644)
            blob.write_bytes(b"?" * file.size_bytes)
        else:
            values = {"record": {**plan.as_dict(), "latency_ms": "fast"}}
            with store.transactions.writing() as session:
                session.execute(update(PlanTable).where(PlanTable.uid == plan.uid).values(**values))


@pytest.fixture
def faster(monkeypatch):
    """The plan takes half of the time of the model, as it would on a quiet host."""
    timed(monkeypatch, plan_ms=1.0, model_ms=2.0)


def timed(monkeypatch, *, plan_ms, model_ms):
    """Call each callable once, and return these times for it."""

    def interleaved(calls, timer, *, rounds):
        times_ms = {"plan": plan_ms, "baseline": model_ms}
        assert all(call() is not None for call in calls.values())
        return {name: [[times_ms[name] + at / 100] for at in range(rounds)] for name in calls}

    monkeypatch.setattr(recheck, "interleaved", interleaved)


def check(fast, tuned_net):
    for _ in range(2):
        answer = fast(tuned_net.inputs["x"], scale=tuned_net.inputs["scale"])
        torch.testing.assert_close(answer.second, tuned_net.answers[0], rtol=1e-4, atol=1e-5)
    flat = fast.flat(tuned_net.inputs)
    torch.testing.assert_close(flat[1], tuned_net.answers[1], rtol=1e-4, atol=1e-5)


def test_a_policy_is_one_of_three(tuned_net):
    for call in (lambda: autotune.load("net", on_miss="ignore"), lambda: autotune.load_bundle("net", on_miss="")):
        with pytest.raises(RequestError, match="error, fallback, recheck"):
            call()


@pytest.mark.parametrize("harm", ["record", "artifact"])
def test_a_damaged_entry_is_a_miss_with_its_reason(harm, place, tuned_net):
    damage(place, harm)
    words = "is damaged" if harm == "artifact" else "cannot be read"
    with pytest.raises(PlanNotFoundError, match=words):
        autotune.load(tuned_net.net, tuned_net.inputs, db=place)
    with pytest.raises(PlanNotFoundError, match=words):
        autotune.load("net", device="cpu", db=place)


def test_a_row_that_cannot_be_read_hides_no_other_plan(place, tuned_net):
    with Store.open(place) as store:
        (plan,) = store.plans.list(name="net")
        stricter = dataclasses.replace(plan.objective, signal_error=plan.objective.signal_error / 2)
        interval_ms = tuple(0.5 * bound for bound in plan.interval_ms)
        store.plans.promote(
            dataclasses.replace(
                plan, uid="b" * 32, objective=stricter, latency_ms=plan.latency_ms / 2, interval_ms=interval_ms
            )
        )
        for column in ("record", "objective"):
            with store.transactions.writing() as session:
                session.execute(update(PlanTable).where(PlanTable.uid == "b" * 32).values({column: {"wrong": 1}}))
            found = store.plans.find(plan.key, plan.weights)
            assert found is not None and found.uid == plan.uid


@pytest.mark.parametrize("harm", ["nothing", "record", "artifact", "no database", "no plan"])
def test_the_fallback_is_the_model_itself_with_one_warning(harm, place, tuned_net, tmp_path, caplog):
    options = {"db": place}
    if harm == "no database":
        options = {"db": str(tmp_path / "none.db")}
    elif harm == "no plan":
        options |= {"objective": "throughput"}
    elif harm != "nothing":
        damage(place, harm)
    with caplog.at_level(logging.WARNING, logger="autotune"):
        fast = autotune.load(tuned_net.net, tuned_net.inputs, on_miss="fallback", **options)
    check(fast, tuned_net)
    warnings = [record.getMessage() for record in caplog.records if "the model itself is used" in record.getMessage()]
    if harm == "nothing":
        assert fast.miss is None and fast.plan.name == "net" and warnings == []
    else:
        assert len(warnings) == 1 and str(fast.miss) in warnings[0]
        assert type(fast(**tuned_net.inputs)) is type(tuned_net.net(**tuned_net.inputs)), "the model's own class"
        assert not fast(**tuned_net.inputs).second.requires_grad and fast.miss.asked in repr(fast)
        with pytest.raises(type(fast.miss)):
            _ = fast.plan
    fast.close()
    with pytest.raises(ArtifactError, match="closed"):
        fast(**tuned_net.inputs)


def test_the_fallback_needs_the_model(tuned_net, place):
    with pytest.raises(RequestError, match=r"asked for without it[\s\S]*no stored plan of 'nett'"):
        autotune.load("nett", device="cpu", db=place, on_miss="fallback")


def test_a_wrong_request_is_no_miss(tuned_net, place):
    with pytest.raises(ModelError):
        autotune.load(tuned_net.net, {"y": torch.zeros(1)}, db=place, on_miss="fallback")


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("by", ["model", "name"])
def test_a_plan_of_another_device_is_used_if_it_holds_here(by, place, tuned_net, caplog):
    plan = tuned_elsewhere(place, baseline_latency_ms=1e6)
    asked = (tuned_net.net, tuned_net.inputs) if by == "model" else ("net",)
    for policy in ("error", "fallback"):
        if by == "name" or policy == "error":
            with pytest.raises(RequestError):
                autotune.load(*asked, device="cpu", db=place, on_miss=policy)
    with caplog.at_level(logging.WARNING, logger="autotune"):
        fast = autotune.load(*asked, device="cpu", db=place, on_miss="recheck")
    assert fast.plan.uid == plan.uid and fast.plan.device.name != FAR and fast.seconds["recheck"] > 0
    assert "was rechecked on this one" in caplog.text
    check(fast, tuned_net)
    fast.close()


def test_one_that_is_slower_here_than_the_model_is_not_used(place, tuned_net, monkeypatch):
    tuned_elsewhere(place)
    timed(monkeypatch, plan_ms=2.0, model_ms=1.0)
    with pytest.raises(PlanNotFoundError, match=r"of cpu-of-another.*: 2\.04 ms here.*itself takes 1\.04 ms"):
        autotune.load(tuned_net.net, tuned_net.inputs, db=place, on_miss="recheck")


def test_by_name_one_that_is_slower_here_than_its_baseline_was_is_not_used(place):
    tuned_elsewhere(place, baseline_latency_ms=1e-6)
    with pytest.raises(PlanNotFoundError, match=r"rechecked here: .* ms here, and its baseline took 1e-06 ms"):
        autotune.load("net", device="cpu", db=place, on_miss="recheck")


def test_a_recheck_of_nothing_is_the_error_with_the_reason(place, tuned_net):
    with Store.open(place) as store:
        (plan,) = store.plans.list(name="net")
        old = type(plan.toolchain).of(dict.fromkeys(plan.toolchain.as_dict(), "0.1"))
    tuned_elsewhere(place, toolchain=old)
    for asked in ((tuned_net.net, tuned_net.inputs), ("net",)):
        with pytest.raises(PlanNotFoundError, match="rechecked here: no plan of another device"):
            autotune.load(*asked, device="cpu", db=place, on_miss="recheck")


@pytest.fixture
def written(tuned_net, tmp_path):
    with Store.open(tuned_net.database) as store:
        (plan,) = store.plans.list(name="net")
        return bundle.write_bundle(plan, store, tmp_path / "net.plan")


def rewrite(folder, **changes):
    """Change entries of the plan in a manifest, and list the files as they are now."""
    document = json.loads((folder / "manifest.json").read_text())
    document["plan"].update(changes)
    files = []
    for entry in document["files"]:
        with (folder / "artifact" / entry["name"]).open("rb") as stream:
            size, sha256 = bundle.hashed(stream)
        files.append(ArtifactFile(name=entry["name"], size_bytes=size, sha256=sha256))
    document["files"] = [file.as_dict() for file in files]
    document["plan"]["artifact"] = digest_of(files)
    (folder / "manifest.json").write_text(json.dumps(document))
    return document["plan"]


def far(folder, **changes):
    """Make a bundle one of another device class."""
    plan = json.loads((folder / "manifest.json").read_text())["plan"]
    rewrite(folder, device={**plan["device"], "name": FAR}, **changes)


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("with_model", [True, False])
def test_a_bundle_of_another_device_is_used_if_it_holds_here(with_model, written, tuned_net):
    far(written, baseline_latency_ms=1e6)
    with pytest.raises(ArtifactError, match="cpu-of-another"):
        autotune.load_bundle(written)
    fast = autotune.load_bundle(written, on_miss="recheck", model=tuned_net.net if with_model else None)
    assert fast.plan.device.name != FAR and fast.seconds["recheck"] > 0
    check(fast, tuned_net)
    fast.close()


@pytest.mark.parametrize("with_model", [True, False])
def test_a_bundle_that_is_inaccurate_here_is_not_used(with_model, written, tuned_net):
    model = None
    if with_model:
        model = type(tuned_net.net)().eval()  # other weights
    else:
        answer = load_file(str(written / "artifact" / "answer.safetensors"))
        save_file({**answer, "0": answer["0"] + 1.0}, str(written / "artifact" / "answer.safetensors"))
    far(written, baseline_latency_ms=1e6)
    with pytest.raises(ArtifactError, match=r"rechecked here: output .* is off by"):
        autotune.load_bundle(written, on_miss="recheck", model=model)


@pytest.mark.usefixtures("faster")
def test_a_bundle_without_an_answer_needs_the_model_for_a_recheck(written, tuned_net):
    (written / "artifact" / "answer.safetensors").unlink()
    document = json.loads((written / "manifest.json").read_text())
    document["files"] = [entry for entry in document["files"] if entry["name"] != "answer.safetensors"]
    (written / "manifest.json").write_text(json.dumps(document))
    far(written)
    with pytest.raises(ArtifactError, match="keeps no answer of the model"):
        autotune.load_bundle(written, on_miss="recheck")
    autotune.load_bundle(written, on_miss="recheck", model=tuned_net.net).close()


@pytest.mark.parametrize("harm", ["toolchain", "damaged"])
def test_a_bundle_falls_back_to_the_model(harm, written, tuned_net, caplog):
    if harm == "toolchain":
        rewrite(written, toolchain={"torch": "0.1"})
    else:
        (written / "artifact" / "answer.safetensors").unlink()
    for policy in ("error", "recheck"):
        with pytest.raises(ArtifactError):
            autotune.load_bundle(written, on_miss=policy, model=tuned_net.net)
    with pytest.raises(RequestError, match="asked for without it"):
        autotune.load_bundle(written, on_miss="fallback")
    fast = autotune.load_bundle(written, on_miss="fallback", model=tuned_net.net)
    check(fast, tuned_net)
    assert "the model itself is used" in caplog.text and isinstance(fast.miss, ArtifactError)


def test_no_policy_loads_what_is_not_signed(written, tuned_net, tmp_path):
    from tests.deploy.test_signing import write_keys

    key = write_keys(tmp_path, "own")[1]
    for policy in ("fallback", "recheck"):
        with pytest.raises(SignatureError):
            autotune.load_bundle(written, on_miss=policy, model=tuned_net.net, require_signature=key)
