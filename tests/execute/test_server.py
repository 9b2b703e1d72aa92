import os
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from autotune.configuration import Configuration
from autotune.errors import ModelError, ReferenceRefusedError
from autotune.execute.bench import Bench
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.measure.lock import device_lock
from autotune.model.inputs import InputSpec
from autotune.objective import Objective

HERE = os.path.dirname(__file__)
INPUTS = (InputSpec(name="input", shape=("batch", 16)),)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, cpu, misbehaving):
    folder = tmp_path_factory.mktemp("bench")
    with WorkerServer(folder) as server:
        bench = Bench(server, folder, cpu, TimeSplit())
        bench.prepare("toy", 2, f"{HERE}/../toy.py:make", INPUTS, 0)
        bench.reference(Objective())
        yield bench


def build(bench, fault):
    configuration = Configuration.of("misbehaving", {"fault": fault, "precision": "fp32"})
    ((result, target),) = bench.build([configuration], 1)
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
def test_a_build_that_goes_wrong_is_a_failure_with_stage_kind_and_log(bench, fault, kind):
    result, _ = build(bench, fault)
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind) == ("build", kind)
    assert f"building with fault {fault}" in result.failure.log_tail


def test_a_hanging_build_is_killed_at_its_timeout(bench, monkeypatch):
    monkeypatch.setattr("autotune.execute.bench.BUILD_TIMEOUT_S", 1.0)
    result, _ = build(bench, "hang")
    assert result.failure is not None and result.failure.kind == "timeout"
    assert "in build" in result.failure.log_tail, "the log does not say where it hung"
    assert not [child for child in psutil.Process().children(recursive=True) if child.name() == "toy"]


def test_a_crash_while_loading_names_that_stage(bench):
    _, target = build(bench, "load_segfault")
    result = bench.measure(target, Objective(), 0)
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind, result.failure.figure) == ("load", "crash", 11.0)
    assert "in segfault" in result.failure.log_tail


@pytest.mark.parametrize("fault", ["inaccurate", "constant"])
def test_wrong_answers_are_refused_with_the_figure(bench, fault):
    _, target = build(bench, fault)
    result = bench.measure(target, Objective(), 0)
    assert result.failure is not None
    assert (result.failure.stage, result.failure.kind) == ("check", "inaccurate")
    assert result.failure.figure is not None and result.failure.figure > 0.02


def test_answers_that_are_no_numbers_are_refused(bench):
    result = bench.measure(build(bench, "non_finite")[1], Objective(), 0)
    assert result.failure is not None and (result.failure.stage, result.failure.kind) == ("check", "non_finite")


def test_a_good_candidate_is_timed_after_all_that(bench):
    built, target = build(bench, "none")
    result = bench.measure(target, Objective(), 0)
    assert built.failure is None and result.failure is None and result.value is not None
    assert result.value["signal_error"] < 1e-5
    assert len(result.value["measurement"]["samples_ms"][0]) >= 3
    assert [stage for stage, _, _ in result.spans][1:] == ["load", "check", "measure"]


WAITING = """
import time

def waiting(request, channel):
    channel.send({"stage": "load", "at": time.monotonic()})
    channel.send({"stage": "wait", "at": time.monotonic()})
    time.sleep(request["waits_s"])
    channel.send({"stage": "measure", "at": time.monotonic()})
    return {"measured": True}

STEPS = {"waiting": waiting}
"""


@pytest.mark.parametrize(("waits_s", "limit_s"), [(3.0, 60.0), (60.0, 1.0)])
def test_the_time_of_a_step_stands_still_while_it_waits_for_the_device_but_not_for_ever(
    tmp_path, monkeypatch, waits_s, limit_s
):
    (tmp_path / "waiting.py").write_text(WAITING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("autotune.execute.server.WAIT_LIMIT_S", limit_s)
    with WorkerServer(tmp_path, steps="waiting") as server:
        result = server.run("waiting", {"waits_s": waits_s}, timeout_s=1.5)
    if limit_s > waits_s:
        assert result.value == {"measured": True}
        assert [stage for stage, _, _ in result.spans] == ["starting", "load", "wait", "measure"]
    else:
        assert result.failure is not None and (result.failure.kind, result.failure.stage) == ("timeout", "load")


def test_a_step_says_that_it_waits_while_another_study_has_the_device(bench):
    _, target = build(bench, "none")
    with ThreadPoolExecutor(1) as pool:
        with device_lock(bench.device.uuid, exclusive=True):
            measured = pool.submit(bench.measure, target, Objective(), 0)
            with pytest.raises(TimeoutError):
                measured.result(2.0)
        result = measured.result()
    assert result.failure is None
    assert [stage for stage, _, _ in result.spans][1:] == ["wait", "load", "check", "measure"]


def test_candidates_load_early_and_are_judged_at_their_turn(bench):
    targets = [build(bench, fault)[1] for fault in ("none", "none", "load_segfault", "constant")]
    loading = [bench.load_early(target, Objective(), 0) for target in targets]
    results = [early.measure(None) for early in loading]
    assert [result.failure and result.failure.kind for result in results] == [None, None, "crash", "inaccurate"]
    for result in results[:2]:
        stages = [stage for stage, _, _ in result.spans if stage != "wait"]
        assert stages[1:] == ["load", "check", "measure"]


def test_a_candidate_that_waits_for_its_turn_ends_with_the_study(bench, tmp_path, cpu, misbehaving):
    _, target = build(bench, "none")
    with WorkerServer(tmp_path) as server:
        other = Bench(server, tmp_path, cpu, TimeSplit())
        other.model = bench.model
        early = other.load_early(target, Objective(), 0)
        server.stop()
        assert early.measure(None).failure is not None


def test_memory_past_the_limit_ends_the_step(tmp_path, cpu, misbehaving, bench):
    with WorkerServer(tmp_path, memory_limit_bytes=1) as server:
        small = Bench(server, tmp_path, cpu, TimeSplit())
        small.model = bench.model
        result, _ = build(small, "hang")
    assert result.failure is not None and result.failure.kind == "out_of_memory"


def test_builds_run_side_by_side(bench):
    configurations = [
        Configuration.of("misbehaving", {"fault": fault, "precision": "fp32"})
        for fault in ("none", "segfault", "error")
    ]
    results = [result for result, _ in bench.build(configurations, 3)]
    assert [result.failure.kind if result.failure else None for result in results] == [None, "crash", "error"]


def test_what_a_factory_raises_is_told_as_a_wrong_request(bench, tmp_path):
    for spec, words in (("broken", "no weights"), ("missing", "make")):
        with pytest.raises(ModelError, match=words):
            bench.prepare("toy", 2, f"{HERE}/../toy.py:{spec}", INPUTS, 0)


def test_a_reference_that_does_not_vary_is_refused(tmp_path, cpu):
    with WorkerServer(tmp_path) as server:
        bench = Bench(server, tmp_path, cpu, TimeSplit())
        bench.prepare("constant", 2, f"{HERE}/../toy.py:constant", (InputSpec(name="x", shape=("batch", 16)),), 0)
        with pytest.raises(ReferenceRefusedError, match="vary"):
            bench.reference(Objective())


def test_stopping_ends_every_process(tmp_path, cpu, misbehaving, bench):
    with WorkerServer(tmp_path) as server:
        server.preload(["torch"])
        session = server.start(
            "build",
            {
                "folder": str(bench.model),
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
