import dataclasses
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from autotune.errors import ModelError, ReferenceRefusedError
from autotune.execute.answers import MeasureAnswer
from autotune.execute.executor import Executor
from autotune.execute.notices import Notices
from autotune.execute.server import WorkerServer
from autotune.execute.session import QUEUED
from autotune.execute.step_result import StepResult
from autotune.execute.timing import TimeSplit
from autotune.measure import lock_files
from autotune.measure.lock import device_lock
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration
from autotune.records.objective import Objective
from autotune.records.trial import Measurement

TIMING_BUILDS = """
from autotune.testing import MisbehavingBackend
MisbehavingBackend.times_kernels_at_build = lambda self, configuration: True
"""

HERE = os.path.dirname(__file__)
INPUTS = (InputSpec(name="input", shape=("batch", 16)),)


@pytest.fixture(scope="module")
def cpu(cpu):
    """This CPU with a lock of its own, so that nothing else waits for it."""
    own = dataclasses.replace(cpu, uuid=f"{cpu.uuid}-server-{os.getpid()}")
    yield own
    for folder in lock_files.FOLDERS:
        for path in folder.glob(f"autotune-{lock_files.safe_name(own.uuid)}.*"):
            path.unlink()


@pytest.fixture(scope="module")
def executor(tmp_path_factory, cpu, misbehaving):
    folder = tmp_path_factory.mktemp("bench")
    with WorkerServer(folder) as server:
        executor = Executor(server, folder, cpu, TimeSplit())
        executor.prepare("toy", 2, f"{HERE}/../toy.py:make", INPUTS, 0)
        executor.reference(Objective())
        yield executor


def build(executor, fault):
    configuration = Configuration.of("misbehaving", {"fault": fault, "precision": "fp32"})
    ((result, target),) = executor.build([configuration], 1)
    return result, target


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("error", "error"),
        ("segfault", "crash"),
        ("abort", "crash"),
        ("exit", "protocol"),
        ("memory", "out_of_memory"),
        ("forged", "protocol"),
    ],
)
def test_a_build_that_goes_wrong_is_a_failure_with_stage_kind_and_log(executor, fault, kind):
    result, _ = build(executor, fault)
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind) == ("build", kind)
    assert f"building with fault {fault}" in result.failure.log_tail


def test_a_hanging_build_is_killed_at_its_timeout(executor, monkeypatch):
    monkeypatch.setattr("autotune.execute.executor.BUILD_TIMEOUT_S", 1.0)
    result, _ = build(executor, "hang")
    assert result.failure is not None and result.failure.kind == "timeout"
    assert "in build" in result.failure.log_tail, "the log does not say where it hung"
    assert not [child for child in psutil.Process().children(recursive=True) if child.name() == "toy"]


def test_a_crash_while_loading_names_that_stage(executor):
    _, target = build(executor, "load_segfault")
    result = executor.measure(target, Objective(), 0)
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind, result.failure.figure) == ("load", "crash", 11.0)
    assert "in segfault" in result.failure.log_tail


@pytest.mark.parametrize("fault", ["inaccurate", "constant"])
def test_wrong_answers_are_refused_with_the_figure(executor, fault):
    _, target = build(executor, fault)
    result = executor.measure(target, Objective(), 0)
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind) == ("check", "inaccurate")
    assert result.failure.figure is not None and result.failure.figure > 0.02


def test_answers_that_are_no_numbers_are_refused(executor):
    result = executor.measure(build(executor, "non_finite")[1], Objective(), 0)
    assert result.failure is not None and (result.failure.stage, result.failure.kind) == ("check", "non_finite")


def test_a_good_candidate_is_timed_after_all_that(executor):
    built, target = build(executor, "none")
    result = executor.measure(target, Objective(), 0)
    assert built.failure is None and result.failure is None
    assert result.answer.signal_error < 1e-5 and not result.answer.pruned
    assert len(result.answer.timed.samples_ms[0]) >= 3
    assert [stage for stage, _, _ in result.spans][1:] == ["load", "check", "measure"]


WAITING = """
import time

def enter(channel, stage, at=None, **beside):
    channel.send({"stage": stage, "at": time.monotonic() if at is None else at, **beside})

def waiting(request, channel):
    enter(channel, "load")
    enter(channel, "wait")
    time.sleep(request["waits_s"])
    enter(channel, "measure")
    return {"measured": True}

def chattering(request, channel):
    while True:
        channel.send(request["says"])
        time.sleep(0.02)

def lying(request, channel):
    while True:
        enter(channel, "wait", at=request["at"])
        time.sleep(0.02)
        enter(channel, "load", at=request["at"])

def telling(request, channel):
    enter(channel, "wait", holder=request["holder"], pids=request["pids"])
    enter(channel, "wait", holder=request["holder"], pids=request["pids"])
    enter(channel, "check")
    return {"purpose": channel.purpose}

STEPS = {"waiting": waiting, "chattering": chattering, "lying": lying, "telling": telling}
"""


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """A module of steps that wait, say that they do, and chatter."""
    (tmp_path / "waiting.py").write_text(WAITING)
    monkeypatch.syspath_prepend(tmp_path)
    return "waiting"


@pytest.mark.parametrize(
    "says",
    [{"turn": "a"}, {"ready": True}, {"loaded": True}, {"stage": "measure", "at": 1.0}, {"utilisation": {}}],
    ids=lambda says: next(iter(says)),
)
def test_what_a_step_says_gives_it_no_more_time(tmp_path, waiting, says):
    ordered = []
    with WorkerServer(tmp_path, steps=waiting) as server:
        begin = time.monotonic()
        result = server.run("chattering", {"says": says}, timeout_s=1.0, on_loaded=lambda session: ordered.append(1))
        seconds = time.monotonic() - begin
    assert result.failure is not None and (result.failure.kind, result.failure.figure) == ("timeout", 1.0)
    assert seconds < 20 and len(ordered) == (says.keys() == {"loaded"})


@pytest.mark.parametrize("at", [0.0, 1e18])
def test_a_step_that_only_says_that_it_waits_ends_too(tmp_path, waiting, monkeypatch, at):
    monkeypatch.setattr("autotune.execute.session.WAIT_LIMIT_S", 1.0)
    with WorkerServer(tmp_path, steps=waiting) as server:
        begin = time.monotonic()
        result = server.run("lying", {"at": at}, timeout_s=1.0)
        seconds = time.monotonic() - begin
    assert result.failure is not None and result.failure.kind == "timeout" and seconds < 20


def test_the_user_is_told_once_for_whom_steps_wait_but_not_for_their_own_turns(tmp_path, waiting):
    said = []
    with WorkerServer(tmp_path, steps=waiting, work="resnet50", tell=said.append) as server:
        for holder, pids in (("waiting for a", [1]), ("waiting for a", [1]), ("waiting for b", [])):
            result = server.run("telling", {"holder": holder, "pids": pids}, timeout_s=60.0)
            assert result.value == {"purpose": "resnet50 (telling)"}
            assert [stage for stage, _, _ in result.spans] == ["starting", "wait", "check"]
        assert said == ["waiting for a", "waiting for b"]
        own = server.start("waiting", {"waits_s": 30.0})
        assert own.begun.wait(60)
        result = server.run("telling", {"holder": "waiting for c", "pids": [own.pid]}, timeout_s=60.0)
        assert [stage for stage, _, _ in result.spans] == ["starting", QUEUED, "check"]
        result = server.run("telling", {"holder": "waiting for d", "pids": [own.pid, 1]}, timeout_s=60.0)
    assert said == ["waiting for a", "waiting for b", "waiting for d"]


@pytest.mark.parametrize(("waits_s", "limit_s"), [(2.0, 60.0), (60.0, 0.5)])
def test_the_time_of_a_step_stands_still_while_it_waits_for_the_device_but_not_for_ever(
    tmp_path, waiting, monkeypatch, waits_s, limit_s
):
    monkeypatch.setattr("autotune.execute.session.WAIT_LIMIT_S", limit_s)
    with WorkerServer(tmp_path, steps=waiting) as server:
        result = server.run("waiting", {"waits_s": waits_s}, timeout_s=1.0)
    if limit_s > waits_s:
        assert result.value == {"measured": True}
        assert [stage for stage, _, _ in result.spans] == ["starting", "load", "wait", "measure"]
    else:
        assert result.failure is not None and (result.failure.kind, result.failure.stage) == ("timeout", "load")


def test_a_step_says_that_it_waits_while_another_study_has_the_device(executor):
    _, target = build(executor, "none")
    said = queue.SimpleQueue()
    executor.server.notices = Notices(said.put)
    with ThreadPoolExecutor(1) as pool:
        with device_lock(executor.device.uuid, exclusive=True, purpose="another (finals)"):
            measured = pool.submit(executor.measure, target, Objective(), 0)
            told = said.get(timeout=60)
            with pytest.raises(TimeoutError):
                measured.result(0.5)
        result = measured.result()
    assert result.failure is None
    assert [stage for stage, _, _ in result.spans][1:] == ["wait", "load", "check", "measure"]
    assert said.empty()
    assert told.startswith(f"waiting for {executor.device.name}: process {os.getpid()} of ")
    assert "uses it for another (finals) since" in told


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_built_or_judged_for_a_cpu_waits_for_a_timing_and_what_times_kernels_for_builds_too(
    executor, monkeypatch, tmp_path, alone
):
    """``alone`` is a build that times kernels; the other one only computes on the device."""
    if alone:
        (tmp_path / "sitecustomize.py").write_text(TIMING_BUILDS)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.syspath_prepend(tmp_path)
    said = queue.SimpleQueue()
    with WorkerServer(tmp_path) as server, ThreadPoolExecutor(2) as pool:
        other = Executor(server, tmp_path, executor.device, TimeSplit())
        other.model = executor.model
        steps = [lambda: build(other, "none"), *([] if alone else [lambda: other.reference(Objective())])]
        with device_lock(executor.device.uuid, exclusive=not alone):
            waiting = []
            for step in steps:
                server.notices = Notices(said.put)  # the wait of each is told
                waiting.append(pool.submit(step))
                assert "waiting for" in said.get(timeout=60)
            with pytest.raises(TimeoutError):
                waiting[0].result(0.5)
            assert not any(each.done() for each in waiting)
        built, _ = waiting[0].result()
        assert all(each.exception() is None for each in waiting)
    assert [stage for stage, _, _ in built.spans][1:] == ["wait", "build"]


def test_a_process_of_somebody_else_on_the_device_is_told_once(executor):
    said = []
    executor.server.notices = Notices(said.append)
    others = [{"pid": 2**22 + 1, "used_bytes": 2**30, "sm_percent": None}]
    conditions = {"readings": {"gpu": {"available": True, "other_processes": others}}}
    measured = MeasureAnswer(measurement=Measurement(samples_ms=((1.0,),), conditions=conditions))
    for _ in range(2):
        executor._measured(StepResult(value=measured, failure=None, spans=(), seconds=0.0))
    (told,) = said
    assert told.startswith(f"process {2**22 + 1} is on {executor.device.name} too (1.0 GiB of its memory)")


def test_builds_that_time_no_kernels_run_beside_what_else_is_built(executor):
    with device_lock(executor.device.uuid, exclusive=False):
        built, _ = build(executor, "none")
    assert built.failure is None and [stage for stage, _, _ in built.spans][1:] == ["build"]


def test_candidates_load_early_and_are_judged_at_their_turn(executor):
    targets = [build(executor, fault)[1] for fault in ("none", "none", "load_segfault", "constant")]
    loading = [executor.load_early(target, Objective(), 0) for target in targets]
    results = [early.measure(None) for early in loading]
    assert [result.failure and result.failure.kind for result in results] == [None, None, "crash", "inaccurate"]
    for result in results[:2]:
        stages = [stage for stage, _, _ in result.spans if stage != QUEUED]
        assert stages[1:] == ["load", "idle", "check", "measure"], "it does not load while it waits for its order"


def test_a_candidate_that_times_kernels_loads_beside_others_and_times_at_its_turn(executor):
    values = {"precision": "fp32", "form": "graph", "channels_last": False, "threads": 1}
    targets = []
    for searches in (False, True):
        configuration = Configuration.of("eager", {**values, "cudnn_benchmark": searches})
        ((built, target),) = executor.build([configuration], 1)
        assert built.failure is None
        targets.append(target)
    with device_lock(executor.device.uuid, exclusive=False):  # as others hold it that build
        loading = [executor.load_early(target, Objective(), 0) for target in targets]
        time.sleep(2)
    results = [early.measure(None) for early in loading]
    for result, searches in zip(results, (False, True), strict=True):
        assert result.failure is None
        stages = [stage for stage, _, _ in result.spans if stage != QUEUED]
        assert stages[1:] == ["load", "idle", *["load"] * searches, "check", "measure"]


def test_a_candidate_that_waits_for_its_turn_ends_with_the_study(executor, tmp_path, cpu, misbehaving):
    _, target = build(executor, "none")
    with WorkerServer(tmp_path) as server:
        other = Executor(server, tmp_path, cpu, TimeSplit())
        other.model = executor.model
        early = other.load_early(target, Objective(), 0)
        server.stop()
        assert early.measure(None).failure is not None


def test_memory_past_the_limit_ends_the_step(executor, monkeypatch):
    monkeypatch.setattr(executor.server, "memory_limit_bytes", 1)
    result, _ = build(executor, "hang")
    assert result.failure is not None and result.failure.kind == "out_of_memory"


def test_builds_run_side_by_side(executor):
    configurations = [
        Configuration.of("misbehaving", {"fault": fault, "precision": "fp32"})
        for fault in ("none", "segfault", "error")
    ]
    results = [result for result, _ in executor.build(configurations, 3)]
    assert [result.failure.kind if result.failure else None for result in results] == [None, "crash", "error"]


def test_what_a_factory_raises_is_told_as_a_wrong_request(executor, tmp_path):
    for spec, words in (("broken", "no weights"), ("missing", "make")):
        with pytest.raises(ModelError, match=words):
            executor.prepare("toy", 2, f"{HERE}/../toy.py:{spec}", INPUTS, 0)


def test_a_reference_that_does_not_vary_is_refused(executor, tmp_path, cpu):
    constant = Executor(executor.server, tmp_path, cpu, TimeSplit())
    constant.prepare("constant", 2, f"{HERE}/../toy.py:constant", (InputSpec(name="x", shape=("batch", 16)),), 0)
    with pytest.raises(ReferenceRefusedError, match="vary"):
        constant.reference(Objective())


def test_stopping_ends_every_process(tmp_path, cpu, misbehaving, executor):
    with WorkerServer(tmp_path) as server:
        server.preload(["torch"])
        session = server.start(
            "build",
            {
                "folder": str(executor.model),
                "target": str(tmp_path),
                "configuration": {"backend": "misbehaving", "fault": "hang", "precision": "fp32"},
                "device": cpu.as_dict(),
            },
        )
        assert session.begun.wait(60)
        pid = session.pid
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
