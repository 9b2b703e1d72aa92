"""Proofs side by side, and what they leave alone."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from autotune import registry
from autotune.execute import proof
from autotune.measure.lock import device_lock
from tests.toy_proofs import FOLDER

NAMES = ("left", "right", "crashing", "wrong", "absent", "hanging")


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The backends of tests/toy_proofs.py as plug-ins, with a folder to meet in and locks that nobody else takes."""
    info = tmp_path / "site" / "toyproofs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyproofs\nVersion: 1.0\n")
    lines = [f"{name} = tests.toy_proofs:{name.upper()}" for name in NAMES]
    (info / "entry_points.txt").write_text("[autotune.backends]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name, folder in ((FOLDER, "meeting"), ("XDG_RUNTIME_DIR", "locks")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    registry.refresh()
    yield tmp_path / "meeting"
    monkeypatch.undo()
    registry.refresh()


def test_proofs_run_side_by_side_hurt_one_another_not_and_come_in_order_while_nothing_is_timed(toys, cpu):
    """A timing waits for proofs that run side by side; after them the device is free."""
    ended, said, states = [], [], []

    def note(proof):
        ended.append(proof)
        if proof.proved:  # one that is not there is told before the others begin
            with pytest.raises(TimeoutError), device_lock(cpu.uuid, exclusive=True, on_wait=_too_long):
                states.append("taken")

    names = ("left", "wrong", "absent", "crashing", "eager", "right")
    host = dataclasses.replace(cpu, cores=6)
    found = proof.prove(names, [cpu], host=host, on_proof=note, tell=said.append)
    with device_lock(cpu.uuid, exclusive=True, on_wait=_too_long):
        states.append("free")
    assert states == ["free"]
    assert [one.backend for one in found] == list(names) and said == []
    assert sorted(one.backend for one in ended) == sorted(names) and set(ended) == set(found)
    by_name = {one.backend: one for one in found}
    assert [name for name in names if by_name[name].works] == ["left", "eager", "right"]  # left and right have met
    assert "crash" in by_name["crashing"].reason and "wrong answers" in by_name["wrong"].reason
    absent = by_name["absent"]
    assert (absent.found, absent.proved, absent.works, absent.reason) == (False, False, False, "it is not here")
    assert all(one.found and one.proved and one.seconds > 0 for one in found if one is not absent)
    assert by_name["eager"].signal_error < 1e-3 and (by_name["eager"].device, by_name["eager"].remedy) == ("cpu", "")


def test_beside_a_timing_one_runs_after_the_other(toys, cpu):
    said = []
    with device_lock(cpu.uuid, exclusive=True):
        host = dataclasses.replace(cpu, cores=6)
        found = proof.prove(("eager", "wrong"), [cpu], host=host, tell=said.append)
    assert [one.works for one in found] == [True, False]
    (told,) = said
    assert "a device is in use" in told and "one proof runs after the other" in told


def _too_long(_):
    raise TimeoutError


def test_ctrl_c_ends_every_proof_at_once(toys, tmp_path):
    only = "from autotune import registry; registry.names = lambda: ('hanging', 'left')"  # left waits for right
    code = f"{only}; from autotune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "doctor", "--device", "cpu", "--db", str(tmp_path / "a.db")]
    path = os.pathsep.join([str(toys.parent / "site"), os.environ["PYTHONPATH"]])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)}
    doctor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    hanging = toys / "hanging"
    try:
        deadline = time.monotonic() + 120
        while not (hanging.exists() and hanging.read_text()):
            assert time.monotonic() < deadline and doctor.poll() is None
            time.sleep(0.05)
        doctor.send_signal(signal.SIGINT)
        out, errors = doctor.communicate(timeout=30)
    finally:
        doctor.kill()  # it would hold the device's lock for ten minutes
    assert doctor.returncode == 130 and out == "" and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(hanging.read_text()), 0)
    assert not list(temporary.glob("autotune-doctor-*"))


def test_a_look_builds_nothing(toys, cpu):
    found = proof.look(("hanging", "absent"), [cpu])
    assert [(one.found, one.proved, one.works) for one in found] == [(True, False, None), (False, False, False)]
    assert not list(toys.iterdir())


def test_a_toy_that_cannot_be_captured_is_the_reason_of_every_proof(toys, cpu, monkeypatch):
    monkeypatch.setattr(proof, "PROOF_TIMEOUT_S", 1e-3)
    found = proof.prove(("eager", "wrong"), [cpu], host=cpu)
    assert [one.works for one in found] == [False, False] and all("timeout" in one.reason for one in found)
