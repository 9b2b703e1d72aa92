"""Whether a plan runs on a device, decided by what is recorded: nothing of an artifact is loaded."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

import autotune
from autotune import registry
from autotune.backend import Availability
from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy import bundle, model
from autotune.deploy.portability import portability_on
from autotune.errors import RequestError, SignatureError
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.testing.sample_records import PLAN

WIDE = Device(kind="cpu", name="CPU with AVX-512", uuid="cpu-wide", cores=8, isa=("avx2", "avx512f"))
NARROW = Device(kind="cpu", name="CPU with AVX2", uuid="cpu-narrow", cores=2, isa=("avx2",))
H200 = Device(kind="cuda", name="NVIDIA H200", uuid="h200", capability=(9, 0), power_limit_w=700)
H100 = dataclasses.replace(H200, name="NVIDIA H100", uuid="h100")
L4 = Device(kind="cuda", name="NVIDIA L4", uuid="l4", capability=(8, 9), power_limit_w=72)
VERSIONS = Toolchain.of({"torch": "2.13", "onnxruntime": "1.32", "compiler": "g++ 12", "openvino": "2026.4"})


@pytest.fixture(autouse=True)
def _every_backend_works(monkeypatch):
    for name in registry.BUILT_IN:
        monkeypatch.setattr(registry.backend(name), "probe", lambda device: Availability(works=True), raising=False)


def plan(backend, device):
    toolchain = VERSIONS.only(registry.backend(backend).toolchain)
    return dataclasses.replace(
        PLAN, configuration=Configuration.of(backend, {"precision": "fp32"}), device=device, toolchain=toolchain
    )


@pytest.mark.parametrize(
    ("backend", "made_for", "here", "verdict"),
    [
        ("inductor", WIDE, WIDE, "optimal"),
        ("inductor", NARROW, WIDE, "works"),
        ("inductor", WIDE, NARROW, "rebuild"),
        ("onnxruntime", WIDE, NARROW, "rebuild"),
        ("torchscript", WIDE, NARROW, "works"),
        ("openvino", WIDE, NARROW, "works"),
        ("eager", WIDE, H200, "impossible"),
        ("eager", H200, WIDE, "impossible"),
        ("inductor", H200, H200, "optimal"),
        ("inductor", H200, H100, "works"),
        ("inductor", H200, L4, "rebuild"),
        ("onnxruntime", H200, L4, "works"),
        ("torchscript", H200, dataclasses.replace(H200, power_limit_w=350), "works"),
    ],
)
def test_the_verdict_follows_device_instructions_and_backend(backend, made_for, here, verdict):
    found = portability_on(plan(backend, made_for), here, VERSIONS)
    assert found.verdict == verdict
    assert found.runs == (verdict in ("optimal", "works")) and bool(found.reasons) == (verdict != "optimal")


def test_missing_instructions_and_capabilities_are_named():
    assert "lacks: avx512f" in str(portability_on(plan("inductor", WIDE), NARROW, VERSIONS))
    assert "capability 9.0, and here is 8.9" in str(portability_on(plan("inductor", H200), L4, VERSIONS))


@pytest.mark.parametrize(("made_for", "here"), [(WIDE, WIDE), (NARROW, WIDE)])
def test_other_versions_need_a_rebuild_and_are_named(made_for, here):
    newer = Toolchain.of({**VERSIONS.as_dict(), "torch": "2.14", "openvino": "2027.0"})
    found = portability_on(plan("torchscript", made_for), here, newer)
    assert found.verdict == "rebuild" and "made for torch 2.13, and here is 2.14" in found.reasons
    assert not any("openvino" in reason for reason in found.reasons), "it has no part in this plan"


def test_without_the_backend_it_is_impossible(monkeypatch):
    broken = Availability(works=False, reason="openvino is not installed", remedy="pip install it")
    monkeypatch.setattr(registry.backend("openvino"), "probe", lambda device: broken, raising=False)
    found = portability_on(plan("openvino", WIDE), WIDE, VERSIONS)
    assert found.verdict == "impossible" and "openvino is not installed (pip install it)" in str(found)
    gone = dataclasses.replace(PLAN, configuration=Configuration.of("tvm", {}), device=WIDE)
    assert portability_on(gone, WIDE, VERSIONS).reasons == ("backend 'tvm' is not known",)


@pytest.fixture
def written(tuned_net, tmp_path):
    with Store.open(tuned_net.database) as store:
        (stored,) = store.plans.list(name="net")
        return bundle.write_bundle(stored, store, tmp_path / "net.plan")


def test_a_bundle_is_checked_by_the_command_and_in_python_without_loading_it(written, monkeypatch):
    monkeypatch.setattr(model, "open_folder", lambda *_: pytest.fail("it was loaded"))
    assert autotune.portability(written).verdict == "optimal"
    run = CliRunner()
    done = run.invoke(app, ["plan", "check", str(written)])
    assert done.exit_code == 0 and done.stdout.startswith("optimal")
    document = json.loads((written / "manifest.json").read_text())
    document["plan"]["toolchain"] = {"torch": "1.0"}
    (written / "manifest.json").write_text(json.dumps(document))
    done = run.invoke(app, ["plan", "check", str(written), "--json"])
    assert done.exit_code == 1 and json.loads(done.stdout)["verdict"] == "rebuild"
    assert run.invoke(app, ["plan", "check", str(written / "missing")]).exit_code == 2


def test_a_plan_of_a_database_is_checked_too(tuned_net):
    with Store.open(tuned_net.database) as store:
        (stored,) = store.plans.list(name="net")
    assert autotune.portability(stored).verdict == "optimal"
    with pytest.raises(RequestError):
        autotune.portability(stored, device="tpu")


def test_a_signature_is_required_before_anything_is_read(written, tmp_path):
    from tests.deploy.test_signing import write_keys

    with pytest.raises(SignatureError):
        autotune.portability(written, require_signature=write_keys(tmp_path, "own")[1])
