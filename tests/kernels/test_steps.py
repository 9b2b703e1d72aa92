"""The steps of tuned kernels, each in a process of its own as the coordinator runs them."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from autotune.errors import WorkError
from autotune.execute.server import WorkerServer
from autotune.kernel import CompileResult
from autotune.kernels.executor import STEPS, KernelExecutor
from autotune.kernels.requests import ProblemFinalists
from autotune.measure.lock import device_lock
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.trial import Failure
from tests.kernels import patient_steps
from tests.toy_kernels import LIBRARY, build, launch


class OneToolchain:
    """The same digest for every kind of kernel."""

    digest = "t"

    def of(self, kind):
        return self.digest


TOOLCHAINS = OneToolchain()
PROBLEM = GemmProblem(m=8, n=16, k=32, dtype="fp32", output="fp32")


@pytest.fixture
def executor(tmp_path, cpu, toykernels, monkeypatch):
    monkeypatch.setattr("autotune.kernels.executor.CANDIDATE_S", 3.0)
    (tmp_path / "cache").mkdir()
    with (
        WorkerServer(tmp_path, steps=STEPS) as server,
        closing(
            KernelExecutor(server, cpu, "toykernels", tmp_path / "cache", toolchains=TOOLCHAINS, seed=0)
        ) as executor,
    ):
        yield executor


def timed(executor, *faults, problem=PROBLEM, best_us=None):
    found = []
    candidates = [launch(build(fault, number)) for number, fault in enumerate(faults)]
    executor.time(problem, candidates, best_us, found.append)
    assert [trial.configuration for trial in found] == candidates
    return found


def test_who_crashes_or_hangs_is_the_only_one_to_fail(executor):
    found = timed(executor, "none", "crash", "none", "hang", "error", "out_of_memory", "inaccurate", "none")
    ends = [(trial.failure.stage, trial.failure.kind) if trial.failure else None for trial in found]
    assert ends == [
        None, ("check", "crash"), None, ("check", "timeout"), ("load", "error"), ("check", "out_of_memory"),
        ("check", "inaccurate"), None,
    ]  # fmt: skip
    good = found[0]
    assert good.median_us > 0 and good.made == {"registers": 32.0}
    assert (good.problem, good.device_class, good.toolchain) == (
        PROBLEM,
        executor.device.device_class,
        TOOLCHAINS.digest,
    )
    assert "expected: a kernel" in found[4].failure.detail
    assert found[6].error > 0


def test_one_process_times_problem_after_problem_until_somebody_fails(executor):
    def process(*faults, problem=PROBLEM):
        return timed(executor, *faults, problem=problem)[-1].conditions.get("process")

    first = process("none")
    assert first == process("none", problem=replace(PROBLEM, m=4)) != os.getpid()
    assert not any(stage == "load" for stage, _, _ in executor.spans)  # it has not ended yet
    assert process("inaccurate") is None
    other = process("none")
    assert other != first
    executor.close()
    stages = [stage for stage, _, _ in executor.spans]
    assert stages.count("idle") == 4 and stages.count("measure") == 3
    executor.close()


def test_a_process_that_dies_while_it_has_nothing_to_do_is_nobodys_failure(executor):
    (found,) = timed(executor, "none")
    os.kill(found.conditions["process"], signal.SIGKILL)
    (again,) = timed(executor, "none", problem=replace(PROBLEM, m=4))
    assert again.state == "complete" and again.conditions["process"] != found.conditions["process"]


def test_the_last_candidate_may_crash_too(executor):
    (found,) = timed(executor, "crash")
    assert found.failure.kind == "crash"


def test_a_step_that_fails_before_any_candidate_is_nobodys_failure(executor):
    executor.backend = "eager"
    with pytest.raises(WorkError, match="could not be timed"):
        executor.time(PROBLEM, [LIBRARY], None, lambda trial: pytest.fail("nobody was at work"))


def test_timing_waits_for_the_device_and_so_does_what_is_compiled_for_a_cpu(executor):
    found = []
    with ThreadPoolExecutor(2) as pool:
        with device_lock(executor.device.uuid, exclusive=True):
            waiting = pool.submit(executor.time, PROBLEM, [LIBRARY], None, found.append)
            compiling = pool.submit(executor.compile, PROBLEM, [build("none")], 60.0)
            with pytest.raises(TimeoutError):
                waiting.result(3.0)
            assert not found and not compiling.done()
        waiting.result()
        made, _ = compiling.result()
    assert found[0].state == "complete" and made[build("none")] == CompileResult(compile_s=0.5)
    assert executor.waited_s > 0.5
    executor.close()
    assert [stage for stage, _, _ in executor.spans].count("wait") == 2 and executor.waited_s > 0.5


def test_orders_that_follow_at_once_share_a_turn_of_some_length(tmp_path, cpu, toykernels):
    """Another process, which waits for the device from the first order on, gets it after a turn, not after an order."""
    (tmp_path / "cache").mkdir()

    def hold():
        with device_lock(cpu.uuid, exclusive=True):
            return time.monotonic()

    with (
        WorkerServer(tmp_path, steps=patient_steps.__name__) as server,
        closing(
            KernelExecutor(server, cpu, "toykernels", tmp_path / "cache", toolchains=TOOLCHAINS, seed=0)
        ) as executor,
        ThreadPoolExecutor(1) as pool,
    ):
        executor.time(PROBLEM, [LIBRARY], None, lambda trial: None)
        waiting = pool.submit(hold)
        orders_end_s = []
        while not waiting.done():
            executor.time(PROBLEM, [launch(build("none", len(orders_end_s)))], None, lambda trial: None)
            orders_end_s.append(time.monotonic())
        shared = sum(end_s < waiting.result() for end_s in orders_end_s)
    assert shared >= 2, "it had its turn between two orders"


def test_compilers_refuse_crash_and_are_missing_each_in_its_way(executor):
    builds = [build("none"), build("refused", 1), build("none", 2, "nowhere")]
    made, missing = executor.compile(PROBLEM, builds, 60.0)
    assert made == {
        builds[0]: CompileResult(compile_s=0.5),
        builds[1]: CompileResult(refusal="no such tile", compile_s=0.5),
    }
    assert list(missing) == ["nowhere"] and missing["nowhere"].found == "no compiler"


def test_a_build_that_takes_the_compiler_down_costs_the_others_nothing(executor):
    asked = GemmProblem(m=5, n=16, k=32, dtype="fp32", output="fp32")
    builds = [build("none", number) for number in range(3)]
    made, missing = executor.compile(asked, builds, 60.0)
    assert not missing
    assert isinstance(made[builds[1]], Failure) and made[builds[1]].kind == "crash"
    assert [isinstance(made[build], CompileResult) for build in builds] == [True, False, True]


def test_nothing_is_said_of_what_was_stopped(executor):
    found = []

    def stop(trial):
        found.append(trial)
        executor.server.stop()

    executor.time(PROBLEM, [launch(build(fault)) for fault in ("none", "hang", "slow")], None, stop)
    assert len(found) == 1
    assert executor.compile(PROBLEM, [build("none")], 60.0) == ({build("none"): None}, {})


def compare(executor, *works, limit_s=60.0, tell=None):
    """The results of finals; a finalist is named by its fault."""
    results = []
    executor.compare(
        [ProblemFinalists(problem=problem, finalists=finalists) for problem, finalists in works],
        tell or results.append, rounds=3, samples=2, limit_s=limit_s,
    )  # fmt: skip
    return results


def toys(*faults):
    return tuple(launch(build(fault, number)) for number, fault in enumerate(faults))


def test_finalists_are_timed_in_rounds_and_a_problem_that_goes_wrong_costs_no_other(executor, monkeypatch):
    monkeypatch.setattr("autotune.kernels.executor.START_S", 4.0)
    problems = [replace(PROBLEM, m=m) for m in range(1, 8)]
    finalists = [
        (LIBRARY, *toys("none", "slow")), toys("none", "crash"), toys("none", "inaccurate", "non_finite"),
        toys("none", "error"), toys("none", "hang"), toys("none", "none"),
    ]  # fmt: skip
    results = compare(executor, *zip(problems, finalists, strict=False))
    assert [one.problem for one in results] == problems[:6]
    assert [bool(one.failures) for one in results] == [False, True, True, True, True, False]
    first, crash, wrong, error, hang, last = results
    assert {len(blocks) for blocks in first.blocks_us.values()} == {3}
    assert {len(block) for blocks in first.blocks_us.values() for block in blocks} == {2}
    assert set(first.blocks_us) == set(finalists[0]) and set(last.blocks_us) == set(finalists[5])
    assert min(map(min, first.blocks_us[finalists[0][2]])) > 50_000 > max(map(max, first.blocks_us[LIBRARY]))
    assert first.conditions["sets"] == 4 and first.conditions["process"] != last.conditions["process"]
    assert "SIGSEGV" in crash.failures[0] and "no answer" in hang.failures[0] and "a kernel" in error.failures[0]
    assert len(wrong.failures) == 2 and "off by" in wrong.failures[0] and "not finite" in wrong.failures[1]
    assert not any(one.blocks_us for one in (crash, wrong, error, hang))


def test_finals_end_with_their_time_or_the_study_and_what_is_finished_stays(executor):
    works = [(replace(PROBLEM, m=m), toys("none", *["slow"] * 3)) for m in range(1, 5)]  # more than a second each
    begin = time.monotonic()
    results = compare(executor, *works, limit_s=2.0)
    assert len(results) < 4 and not any(one.failures for one in results) and time.monotonic() - begin < 15.0
    stopped = []

    def tell(compared):
        stopped.append(compared)
        executor.server.stop()

    compare(executor, *works, tell=tell)
    assert len(stopped) == 1


def test_a_gpu_whose_rates_cannot_be_read_has_none_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr("autotune.kernels.executor._rates", {})
    gpu, told = Device(kind="cuda", name="A GPU that is not here", uuid="gpu-not-here", capability=(12, 0)), []
    with (
        WorkerServer(tmp_path, steps=STEPS) as server,
        closing(KernelExecutor(server, gpu, "toykernels", tmp_path, toolchains=TOOLCHAINS, seed=0)) as executor,
    ):
        assert executor.rates(told.append) is None and executor.rates(told.append) is None
    assert len(told) == 1 and told[0].startswith(f"{gpu.name}: ")
