"""The finals of the objective memory: how many rounds, what runs side by side, and what becomes of a failure there."""

import itertools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import StudyInterruptedError, WorkError
from autotune.execute.answers import FootprintAnswer, MemoryReading
from autotune.execute.executor import Executor
from autotune.execute.footprint import SHARE_OF_FREE_MEMORY, footprint_rounds, side_by_side
from autotune.execute.server import WorkerServer
from autotune.execute.step_result import StepResult
from autotune.execute.timing import TimeSplit
from autotune.measure.finals import Finals
from autotune.measure.lock import device_lock
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration

TOY = f"{os.path.dirname(__file__)}/../toy.py:make"


class WatchedExecutor(Executor):
    """A bench that lets a test meddle before and after each process, and keeps how each ran."""

    def __init__(self, server, folder, device, model=None):
        super().__init__(server, folder, device, TimeSplit())
        self.model = model or self.model
        self.ran = []
        self.before = lambda artifact, alone: None
        self.after = lambda result, alone: result

    def footprint(self, artifact, *, alone=True):
        self.before(artifact, alone)
        result = super().footprint(artifact, alone=alone)
        self.ran.append((artifact.name, alone, result))
        return self.after(result, alone)


@pytest.fixture(scope="module")
def device(cpu):
    """This CPU as if it had cores for four processes at once, with a lock of its own."""
    return replace(cpu, cores=8, uuid=f"{cpu.uuid}-{os.getpid()}")


@pytest.fixture(scope="module")
def built(tmp_path_factory, device, misbehaving):
    folder = tmp_path_factory.mktemp("bench")
    with WorkerServer(folder) as server:
        executor = Executor(server, folder, device, TimeSplit())
        executor.prepare("toy", 2, TOY, (InputSpec(name="input", shape=("batch", 16)),), 0)
        ((result, target),) = executor.build([Configuration.of(misbehaving, {"fault": "none", "precision": "fp32"})], 1)
        assert result.failure is None
        server.preload(["torch._export.serde.serialize"])  # the toy then loads in a tenth of the time
        yield server, executor.model, target


@pytest.fixture
def executor(built, tmp_path, device, monkeypatch):
    monkeypatch.setattr("autotune.execute.footprint.fewest_rounds", lambda candidates: 2)
    return WatchedExecutor(built[0], tmp_path, device, built[1])


@pytest.fixture
def artifacts(built, tmp_path):
    return {name: shutil.copytree(built[2], tmp_path / name) for name in ("eager", "a", "b")}


def run(executor, artifacts, names, on_rounds=lambda rounds, elapsed_s: None):
    finals = Finals(names, baselines=["eager"])
    footprint_rounds(executor, artifacts, finals, 0, on_rounds)
    return finals


def alone(executor):
    """How each process ran, by its finalist."""
    return sorted((name, alone) for name, alone, _ in executor.ran)


def test_the_first_round_runs_one_at_a_time_and_the_next_side_by_side(executor, artifacts):
    told = []
    finals = run(executor, artifacts, list(artifacts), lambda rounds, elapsed_s: told.append(rounds))
    assert told == [1, 2] and finals.rounds == 2 and finals.running == ("a", "b", "eager")
    assert [ran_alone for _, ran_alone, _ in executor.ran] == [True] * 3 + [False] * 3
    lives = [(result.spans[0][1], result.spans[-1][2]) for _, _, result in executor.ran]
    first, second = lives[:3], lives[3:]
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(first))
    assert max(begin for begin, _ in second) < min(end for _, end in second)
    for name in artifacts:
        readings = [reading["memory"] for reading in finals.measurement(name, {}).conditions["readings"]]
        assert [reading["alone"] for reading in readings] == [True, False]
        assert all(reading["per_process"] for reading in readings)
        assert [[reading["peak_bytes"]] for reading in readings] == finals.figures()[name]


@pytest.mark.parametrize(
    ("exclusive", "ran_alone", "waits_for"), [(True, False, "load"), (False, True, "load"), (False, False, "measure")]
)
def test_a_process_waits_for_what_another_study_does(
    executor, artifacts, device, tmp_path, exclusive, ran_alone, waits_for
):
    """``exclusive`` is a timing; shared is a build or a load, beside which this one may load but not be called."""
    elsewhere = WatchedExecutor(executor.server, tmp_path, replace(device, uuid=f"{device.uuid}-free"), executor.model)
    request = {
        "folder": str(executor.model), "artifact": str(artifacts["a"]), "device": device.as_dict(), "alone": ran_alone
    }  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        with device_lock(device.uuid, exclusive=exclusive):
            session = executor.server.start("footprint", request)
            answer = pool.submit(session.receive, 60.0)
            for _ in range(2):  # as long as two such processes take that wait for nobody
                assert elsewhere.footprint(artifacts["a"]).failure is None
            released = time.monotonic()
        assert "result" in answer.result()
        session.finish()
    begins = {stage: begin for stage, begin, _ in session.spans}
    assert begins[waits_for] > released
    assert (begins["load"] < released) is (waits_for == "measure")


def test_who_runs_out_of_memory_beside_others_is_run_again_alone(executor, artifacts, monkeypatch):
    monkeypatch.setattr("autotune.execute.session.POLL_S", 0.01)
    enough = executor.server.memory_limit_bytes
    executor.before = lambda artifact, alone: setattr(executor.server, "memory_limit_bytes", enough if alone else 1)
    finals = run(executor, artifacts, ["eager", "a"])
    kinds = [result.failure and result.failure.kind for _, _, result in executor.ran]
    assert kinds == [None, None, "out_of_memory", "out_of_memory", None, None]
    assert alone(executor) == [
        ("a", False),
        ("a", True),
        ("a", True),
        ("eager", False),
        ("eager", True),
        ("eager", True),
    ]
    assert finals.rounds == 2 and finals.running == ("a", "eager")


def test_who_fails_alone_too_is_dropped(executor, artifacts):
    def break_b(rounds, elapsed_s):
        (artifacts["b"] / "fault").write_text("load_segfault")

    finals = run(executor, artifacts, list(artifacts), break_b)
    assert [ran_alone for name, ran_alone, _ in executor.ran if name == "b"] == [True, False, True]
    assert finals.rounds == 2 and finals.running == ("a", "eager")


def test_a_baseline_that_fails_ends_the_finals(executor, artifacts):
    (artifacts["eager"] / "fault").write_text("load_segfault")
    with pytest.raises(WorkError, match="the baseline failed"):
        run(executor, artifacts, ["eager"])


def test_what_was_not_read_per_process_beside_others_is_read_again_alone(executor, artifacts):
    def of_the_whole_device(result, alone):
        memory = replace(result.answer.memory, per_process=alone)
        return replace(result, value=replace(result.answer, memory=memory))

    executor.after = of_the_whole_device
    finals = run(executor, artifacts, ["eager", "a"])
    assert [ran_alone for _, ran_alone, _ in executor.ran] == [True, True, False, False, True, True]
    for name in ("eager", "a"):
        readings = finals.measurement(name, {}).conditions["readings"]
        assert all(reading["memory"]["alone"] for reading in readings)


def test_stopping_among_processes_side_by_side_interrupts_and_drops_nobody(built, artifacts, device, tmp_path):
    with WorkerServer(tmp_path) as server:
        executor = WatchedExecutor(server, tmp_path, device, built[1])
        executor.before = lambda artifact, alone: alone or server.stop()
        finals = Finals(["eager", "a"], baselines=["eager"])
        with pytest.raises(StudyInterruptedError):
            footprint_rounds(executor, artifacts, finals, 0, lambda rounds, elapsed_s: None)
    assert finals.rounds == 1 and finals.running == ("a", "eager")
    assert not any(ran_alone for _, ran_alone, _ in executor.ran[2:]), "what was stopped was run again"


MIB = 2**20


def reading(peak_bytes):
    return MemoryReading(available=True, per_process=True, before_bytes=0, peak_bytes=peak_bytes)


figures = st.fixed_dictionaries({"before_bytes": st.integers(0, 40 * MIB), "peak_bytes": st.integers(1, 60 * MIB)})


@given(st.lists(figures, min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 1000 * MIB))
def test_a_round_is_divided_in_its_order_as_cores_and_memory_allow(found, at_once, free):
    readings = {
        str(index): MemoryReading(available=True, per_process=True, **figures) for index, figures in enumerate(found)
    }
    groups = side_by_side(list(readings), readings, at_once, free)

    def fits(group):
        needed = sum(readings[name].before_bytes + readings[name].peak_bytes for name in group)
        return len(group) <= at_once and needed <= SHARE_OF_FREE_MEMORY * free

    assert [name for group in groups for name in group] == list(readings)
    assert all(len(group) == 1 or fits(group) for group in groups)
    assert not any(fits([*group, other[0]]) for group, other in itertools.pairwise(groups))


@pytest.mark.parametrize("unknown", ["no reading", "whole device", "free memory"])
def test_where_too_little_is_known_each_runs_alone(unknown):
    names = ["eager", "a"]
    readings = {name: reading(1) for name in names}
    assert side_by_side(names, readings, 4, 1000 * MIB) == [names]
    if unknown == "no reading":
        del readings["a"]
    if unknown == "whole device":
        readings["a"] = replace(readings["a"], per_process=False)
    assert side_by_side(names, readings, 4, None if unknown == "free memory" else 1000 * MIB) == [["eager"], ["a"]]


@pytest.mark.parametrize(("candidates", "rounds"), [(1, 7), (4, 9), (5, 10)])
def test_a_constant_clear_difference_is_promoted_however_many_take_part(device, candidates, rounds):
    """Device memory often comes out the same in every round, so that all log-ratios are equal."""

    def footprint(artifact, *, alone):
        answer = FootprintAnswer(samples_ms=(1.0,), memory=reading(MIB * artifact))
        return StepResult(value=answer, failure=None, spans=(), seconds=0.0)

    taken = {"eager": 40, "small": 10} | {f"c{index}": 20 + index for index in range(candidates - 1)}
    finals = Finals(list(taken), baselines=["eager"])
    executor = SimpleNamespace(device=device, server=SimpleNamespace(closed=False), footprint=footprint)
    footprint_rounds(executor, taken, finals, 0, lambda rounds, elapsed_s: None)
    verdict = finals.conclude()
    assert (verdict.winner, verdict.status, verdict.rounds) == ("small", "promoted", rounds)
