"""What steps that go wrong, each in its way, leave behind: nothing."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autotune.execute import limits
from autotune.execute.server import WorkerServer
from autotune.programs.reliability.faults import KINDS, MEMORY_BYTES, left_after
from autotune.testing import misbehaviour


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with WorkerServer(folder, memory_limit_bytes=MEMORY_BYTES, steps=misbehaviour.__name__) as server:
        yield server


def run(server, folder, fault, timeout_s=30.0):
    return server.run("misbehave", {"folder": str(folder), "fault": fault}, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        *((name, kind, words) for name, (kind, words) in KINDS.items() if kind not in ("timeout", None)),
        ("printed", "protocol", "code 3"),
        ("nested", "protocol", "no message of ours"),
        ("closed", "protocol", "closed its channel"),
        ("kill_parent", "crash", "SIGKILL"),
        ("crowd", "crash", "SIGSEGV"),
        ("device_memory", "out_of_memory", "device memory"),
        ("context_lost", "crash", "context"),
    ],
)
def test_each_fault_has_its_name_and_leaves_nothing(server, tmp_path, fault, kind, words):
    result = run(server, tmp_path, fault)
    assert result.value is None and result.failure is not None
    assert result.failure.kind == kind and words in result.failure.detail
    assert left_after(misbehaviour.started(tmp_path), 1.0) == 0
    assert run(server, tmp_path, "orphan").value == {"ended": "well"}, "the server did not live on"


def test_a_step_that_ends_well_leaves_no_process_that_it_orphaned(server, tmp_path):
    assert run(server, tmp_path, "orphan").failure is None
    processes = misbehaviour.started(tmp_path)
    assert len(processes) == 2 and left_after(processes, 0.0) == 0


def test_who_is_deaf_to_sigterm_is_gone_a_second_after_the_timeout(server, tmp_path):
    begin = time.monotonic()
    result = run(server, tmp_path, "stubborn", timeout_s=0.3)
    assert left_after(misbehaviour.started(tmp_path), 0.0) == 0 and len(misbehaviour.started(tmp_path)) == 2
    assert time.monotonic() - begin < 1.3
    assert result.failure is not None and result.failure.kind == "timeout"
    assert "in hang" in result.failure.log_tail, "the log does not say where it hung"


def test_a_step_that_stops_its_keeper_does_not_outlive_its_timeout(server, tmp_path):
    session = server.start("misbehave", {"folder": str(tmp_path), "fault": "stubborn"})
    while len(misbehaviour.started(tmp_path)) < 2:
        time.sleep(0.01)
    os.kill(session.keeper, signal.SIGSTOP)
    session.finish()
    assert session.ended.is_set() and left_after(misbehaviour.started(tmp_path), 1.0) == 0


def test_a_flooded_log_keeps_its_last_mebibyte(tmp_path):
    with WorkerServer(tmp_path, steps=misbehaviour.__name__) as server:
        result = run(server, tmp_path, "log_flood")
    (log,) = tmp_path.glob("*-misbehave.log")
    assert log.stat().st_size <= limits.LOG_BYTES
    assert result.failure is not None and "nothing to see here" in result.failure.log_tail


def test_a_step_has_limits_and_dumps_no_core(server, tmp_path):
    session = server.start("misbehave", {"folder": str(tmp_path), "fault": "hang"})
    while not misbehaviour.started(tmp_path):
        time.sleep(0.01)
    process = psutil.Process(session.pid)
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert 0 < process.rlimit(psutil.RLIMIT_FSIZE)[0] <= limits.FILE_BYTES
    assert process.rlimit(psutil.RLIMIT_NOFILE)[0] <= limits.DESCRIPTORS
    assert process.rlimit(psutil.RLIMIT_AS)[0] == psutil.RLIM_INFINITY
    assert os.sched_getscheduler(session.pid) == os.SCHED_OTHER, "only its keeper may run before others"
    assert Path(f"/proc/{session.pid}/oom_score_adj").read_text().strip() == str(limits.OOM_SCORE_ADJUSTMENT)
    session.kill()
    session.finish()


def test_a_candidate_finds_no_password_of_the_database(tmp_path, monkeypatch):
    for name in ("AUTOTUNE_DB", "PGPASSWORD", "HARMLESS"):
        monkeypatch.setenv(name, "hunter2")
    with WorkerServer(tmp_path, steps=misbehaviour.__name__) as server:
        session = server.start("misbehave", {"folder": str(tmp_path), "fault": "hang"})
        assert session.begun.wait(30)
        environment = psutil.Process(session.pid).environ()
        session.kill()
        session.finish()
    assert [name for name, value in environment.items() if "hunter2" in value] == ["HARMLESS"]


@pytest.mark.parametrize("killed", ["coordinator", "server"])
def test_when_coordinator_or_server_are_killed_everything_ends(tmp_path, killed):
    script = (
        "import sys, time; from pathlib import Path; from autotune.execute.server import WorkerServer\n"
        f"from autotune.testing import misbehaviour; folder = Path({str(tmp_path)!r})\n"
        "server = WorkerServer(folder, steps=misbehaviour.__name__)\n"
        "server.start('misbehave', {'folder': str(folder), 'fault': 'stubborn'})\n"
        "while len(misbehaviour.started(folder)) < 2: time.sleep(0.01)\n"
        "print(server._process.pid, flush=True); time.sleep(600)\n"
    )
    coordinator = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    server = int(coordinator.stdout.readline())
    os.kill(coordinator.pid if killed == "coordinator" else server, signal.SIGKILL)
    try:
        assert left_after([server, *misbehaviour.started(tmp_path)], 1.0) == 0
    finally:
        coordinator.kill()
        coordinator.communicate()


def test_identities_cannot_be_guessed(server, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(secrets, "token_hex", lambda size: drawn.append(size) or "0" * 2 * size)
    result = run(server, tmp_path, "forged")
    assert drawn == [16], "an identity of 128 random bits"
    assert result.value == misbehaviour.FORGED["result"], "a forger who knows it is believed: it is what is checked"
