import dataclasses
import threading

import pytest

from autotune.backend import KernelKind
from autotune.database.store import Store
from autotune.errors import RequestError, SpaceError, WorkError
from autotune.execute.server import WorkerServer
from autotune.kernel import CompileResult
from autotune.kernels.contenders import contenders
from autotune.kernels.executor import STEPS
from autotune.kernels.host import TuningHost
from autotune.kernels.tuning import tune_kernels
from autotune.measure.conditions import unregistered_conditions
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from tests.toy_kernels import FAULTS, LIBRARY, ToySpace, build, launch

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), cores=4, power_limit_w=700)


def problem(m, **values):
    return GemmProblem(m=m, n=16, k=32, dtype="fp32", output="fp32", **values)


class Events:
    def __init__(self, then=lambda trial: None):
        self.trials, self.messages, self.finals, self._then = [], [], [], then

    def event(self, kind, **data):
        if kind == "kernel_tried":
            self.trials.append(data["trial"])
            self._then(data["trial"])
        elif kind == "kernels_compared":
            self.finals.append(data["final"])
        elif kind == "message":
            self.messages.append(data["text"])


@pytest.fixture
def tune(tmp_path, cpu, toykernels, monkeypatch):
    """Tune toy kernels on this CPU in workers, with a database and a cache that stay between calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("autotune.kernels.executor.CANDIDATE_S", 3.0)

    def run(*problems, device=cpu, then=lambda server, stop: lambda trial: None, builds=16, budget_s=60.0, **values):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        stop = threading.Event()
        with Store.open(str(tmp_path / "kernels.db")) as store, WorkerServer(folder, steps=STEPS) as server:
            events = Events(then(server, stop))
            report = tune_kernels(
                dict.fromkeys(problems, 1.0), device, store, server, backend="toykernels", budget_s=budget_s,
                builds=builds, progress=events, stop=stop, **values,
            )  # fmt: skip
            stored = [store.kernels.of(one, device.device_class, report.toolchain) for one in problems]
        return report, events, stored

    return run


def compiled(tmp_path):
    log = tmp_path / "cache" / "autotune" / "kernels" / "compiled"
    return log.read_text().splitlines() if log.exists() else []


def test_libraries_builds_and_launches_are_tried_once_for_all_runs(tune, tmp_path):
    asked = problem(8)
    report, _, (stored,) = tune(asked)
    (tuned,) = report.problems
    everything = {LIBRARY, *(launch(build("none", number), order) for number in range(5) for order in range(2))}
    tried = {trial.configuration for trial in tuned.trials}
    assert {LIBRARY, *(launch(build("none", number)) for number in range(5))} <= tried <= everything
    assert tuned.measured == len(tuned.trials) == len(stored) and tuned.compiled == 5
    assert len(compiled(tmp_path)) == 5
    assert tuned.best_us == min(trial.median_us for trial in stored)
    assert tuned.library.configuration == LIBRARY and tuned.saved is not None and tuned.saved >= 0
    assert all(trial.made["compile_s"] == 0.5 for trial in stored if trial.configuration != LIBRARY)
    assert {"build", "load", "check", "measure"} <= {stage for stage, _, _ in report.spans}
    assert not report.stopped and not report.notes

    again, events, (unchanged,) = tune(asked)
    assert again.problems[0].measured == 0 and not events.trials
    assert {trial.configuration for trial in unchanged} == tried
    assert len(compiled(tmp_path)) == 5


def test_the_best_kernels_are_timed_against_each_other_once_and_their_rounds_choose(tune):
    report, events, _ = tune(problem(8))
    (tuned,) = report.problems
    if tuned.final is None:  # on a busy host one of equal kernels may be clearly the best
        assert len(contenders(tuned.trials)) == 1 and not events.finals
        return
    assert events.finals == [tuned.final] and 2 <= len(tuned.final.finalists) <= 4
    assert tuned.best.configuration == tuned.final.ranked[0].configuration
    assert tuned.final.conditions["l2"] == "steady" and unregistered_conditions(tuned.final.conditions) == []
    again, events, _ = tune(problem(8))
    assert not events.finals and again.problems[0].final == tuned.final
    assert again.problems[0].best == tuned.best


def test_builds_count_over_all_runs(tune, tmp_path):
    tune(problem(8), builds=2)
    assert len(compiled(tmp_path)) == 2
    tune(problem(8), builds=3)
    assert len(compiled(tmp_path)) == 3
    assert len(set(compiled(tmp_path))) == 3


def test_whatever_goes_wrong_is_one_trial_and_is_never_tried_again_but_what_lacked_memory(tune, monkeypatch):
    for module in ("build_stage", "schedule"):  # a kind whose kernels fail promises little
        monkeypatch.setattr(f"autotune.kernels.{module}.LEAST_GAIN", 0.0)
    report, _, (stored,) = tune(problem(2), builds=len(FAULTS))
    ends = {trial.configuration["fault"]: trial for trial in stored if trial.configuration != LIBRARY}
    kinds = {fault: trial.failure.kind if trial.failure else None for fault, trial in ends.items()}
    assert kinds == {
        "none": None, "slow": None, "refused": "error", "error": "error", "crash": "crash", "hang": "timeout",
        "inaccurate": "inaccurate", "second_call": "inaccurate", "non_finite": "non_finite",
        "unwritten": "non_finite", "outside": "error",
    }  # fmt: skip
    assert ends["refused"].failure.detail == "no such tile" and ends["refused"].failure.stage == "build"
    lacking = [trial for trial in report.problems[0].trials if trial.configuration.get("fault", "") == "out_of_memory"]
    assert [trial.failure.kind for trial in lacking] == ["out_of_memory"]
    _, events, _ = tune(problem(2), builds=len(FAULTS))
    assert {trial.configuration["fault"] for trial in events.trials} == {"out_of_memory"}


def test_a_kind_without_a_compiler_is_said_once_and_the_others_take_its_place(tune):
    report, events, (stored,) = tune(problem(4), builds=5)
    assert [message.splitlines()[0] for message in events.messages] == [
        "no kernels of kind nowhere but those that are compiled already: toy kernels of the kind nowhere"
    ]
    assert len(report.notes) == 1 and "no compiler" in report.notes[0]
    assert {trial.configuration.backend for trial in stored} == {"toy", "torch"}
    assert report.problems[0].compiled == 2


def test_without_a_compiler_what_is_compiled_already_serves(tune, tmp_path):
    folder = tmp_path / "cache" / "autotune" / "kernels"
    folder.mkdir(parents=True)
    (folder / "compiled").write_text(f"{build('none', 1, 'nowhere')}\n")
    _, events, (stored,) = tune(problem(4))
    assert len(events.messages) == 1
    served = [trial for trial in stored if trial.configuration.backend == "nowhere"]
    assert {(trial.configuration["number"], trial.state) for trial in served} == {(1, "complete")}


def test_without_any_build_the_libraries_are_timed(tune):
    report, _, (stored,) = tune(problem(3))
    assert [trial.configuration for trial in stored] == [LIBRARY]
    assert report.problems[0].saved == 0.0


def test_several_problems_share_a_budget_and_each_gets_its_libraries(tune):
    report, _, stored = tune(problem(8), problem(3), problem(1), budget_s=0.0)
    assert [[trial.configuration for trial in one] for one in stored] == [[LIBRARY]] * 3
    assert [tuned.compiled for tuned in report.problems] == [0, 0, 0]


def test_what_is_finished_when_it_is_stopped_is_kept_and_the_next_run_goes_on(tune):
    def stopping(server, stop):
        def then(trial):
            if trial.configuration != LIBRARY:
                stop.set()
                server.stop()

        return then

    report, _, (stored,) = tune(problem(8), then=stopping)
    assert report.stopped
    assert len(stored) == 2 and all(trial.state == "complete" for trial in stored)
    again, events, (complete,) = tune(problem(8))
    assert not again.stopped and len(complete) == len(stored) + len(events.trials)
    assert {trial.configuration for trial in stored}.isdisjoint(trial.configuration for trial in events.trials)


def test_a_problem_without_a_candidate_is_refused_or_left_out(tune):
    activated = problem(8, bias=True, activation="relu")
    with pytest.raises(SpaceError, match="no activation"):
        tune(activated)
    report, events, _ = tune(problem(3), activated)
    assert [tuned.trouble is None for tuned in report.problems] == [True, False]
    assert report.problems[0].best is not None and any("no activation" in text for text in events.messages)


def test_a_problem_that_does_not_fit_the_memory_is_refused_before_anything_begins(tune, cpu):
    with pytest.raises(RequestError, match="GiB"):
        tune(problem(8), device=dataclasses.replace(cpu, memory_bytes=1000))


def test_a_backend_without_kernels_is_refused(tmp_path, cpu):
    with Store.open(str(tmp_path / "kernels.db")) as store, pytest.raises(RequestError, match="cannot be tuned"):
        tune_kernels({problem(8): 1.0}, cpu, store, None, backend="eager", budget_s=1.0)


class FakeExecutor:
    """Compiles and times at once; a timing of a build lasts until the next builds are being compiled."""

    waited_s = queued_s = 0.0

    def __init__(self, server, device, backend, folder, *, toolchains, seed):
        self.server, self.device, self.backend, self.folder = server, device, backend, folder
        self.toolchains, self.spans, self.cache = toolchains, [], set()
        self.begun, self.batches, self.overlapped = threading.Semaphore(0), 0, []

    def rates(self, tell):
        return None

    def compile(self, problem, builds, limit_s):
        self.batches += 1
        self.cache.update(builds)
        self.begun.release()
        return {build: CompileResult() for build in builds}, {}

    def compiled(self, problem, builds):
        return [build for build in builds if build in self.cache]

    def time(self, problem, candidates, best_us, tell):
        if len(self.overlapped) < 3:  # there are no builds after those of the third batch
            self.overlapped.append((candidates[0] == LIBRARY, self.begun.acquire(timeout=30.0)))
        for candidate in candidates:
            tell(
                KernelTrial(
                    problem=problem, device_class=self.device.device_class, toolchain=self.toolchains.digest,
                    configuration=candidate, state="complete", samples_us=(5.0,),
                )
            )  # fmt: skip

    def compare(self, work, tell, *, rounds, samples, limit_s):
        pass

    def close(self):
        pass


class FakeServer:
    closed = False


class Crowded(FakeExecutor):
    """The first compilations end when three of them run; notes what runs beside what."""

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        self.lock, self.together, self.running = threading.Lock(), threading.Barrier(3), []
        self.calls, self.most, self.shared, self.libraries_first = 0, 0, [], None

    def compile(self, problem, builds, limit_s):
        with self.lock:
            self.calls += 1
            first = self.calls <= 3
            self.shared += [build for build in builds if build in self.running]
            self.running += builds
            self.most = max(self.most, len(self.running))
        if first:
            self.together.wait(timeout=30.0)
        with self.lock:
            self.cache.update(builds)
            self.running = [build for build in self.running if build not in builds]
        return {build: CompileResult() for build in builds}, {}

    def time(self, problem, candidates, best_us, tell):
        if self.libraries_first is None:
            self.libraries_first = candidates[0] == LIBRARY
        self.overlapped += [None] * 3
        super().time(problem, candidates, best_us, tell)


class TakingTurns(FakeExecutor):
    """Each timing takes two seconds of its own, and eight in which it waits for other steps; all by a clock."""

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        self.now_s = self.queued_s = 0.0

    def time(self, problem, candidates, best_us, tell):
        self.queued_s += 8.0
        self.now_s += 10.0
        self.overlapped += [None] * 3
        super().time(problem, candidates, best_us, tell)


@pytest.fixture
def on_a_gpu(tmp_path, toykernels, monkeypatch):
    """Tune with a fake executor on a GPU whose host has 16 cores; returns the executor and the messages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(problems, kind=Crowded, **values):
        executors, events = [], Events()
        monkeypatch.setattr(
            "autotune.kernels.tuning.KernelExecutor",
            lambda *arguments, **values: executors.append(kind(*arguments, **values)) or executors[0],
        )
        with Store.open(str(tmp_path / "kernels.db")) as store:
            report = tune_kernels(
                problems, dataclasses.replace(H200, cores=16), store, FakeServer(), backend="toykernels",
                progress=events, **values,
            )  # fmt: skip
        return executors[0], events, report

    return run


def test_batches_of_several_problems_compile_side_by_side(on_a_gpu, monkeypatch):
    monkeypatch.setattr(
        "tests.toy_kernels.ToyKernels.space",
        lambda self, device, problem: ToySpace(tuple(build("none", 10 * problem.m + number) for number in range(2))),
    )
    executor, _, report = on_a_gpu({problem(m): 1.0 for m in range(20, 26)}, budget_s=60.0)
    assert executor.most >= 6 and not executor.shared
    assert all(len(tuned.trials) >= 3 for tuned in report.problems), "each has its builds and its libraries' call"
    assert executor.libraries_first, "the device does not wait for a compiler"


def test_a_build_that_another_problem_compiles_is_waited_for_and_not_compiled_beside_it(on_a_gpu):
    executor, _, report = on_a_gpu({problem(m): 1.0 for m in range(20, 26)}, kind=Waiting, budget_s=60.0)
    assert not executor.shared and sum(tuned.compiled for tuned in report.problems) == 5
    numbers = [{t.configuration.get("number", -1) for t in tuned.trials} for tuned in report.problems]
    assert numbers == [{-1, 0, 1, 2, 3, 4}] * 6, "every problem times all builds, each of which is compiled once"


class Waiting(Crowded):
    """Compilations end at once."""

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        self.calls = 3


@pytest.mark.parametrize(("idle_gain", "compiled"), [(1e9, 28), (0.0, 60)])
def test_the_device_waits_for_more_than_enough_builds_only_if_they_promise_much(
    on_a_gpu, monkeypatch, idle_gain, compiled
):
    monkeypatch.setattr(
        "tests.toy_kernels.ToyKernels.space",
        lambda self, device, problem: ToySpace(tuple(build("none", number) for number in range(60))),
    )
    monkeypatch.setattr("autotune.kernels.build_stage.IDLE_GAIN", idle_gain)
    monkeypatch.setattr("autotune.kernels.build_stage.LEAST_GAIN", 0.0)
    _, _, report = on_a_gpu({problem(4): 1.0}, kind=Waiting, budget_s=60.0, builds=60)
    assert report.problems[0].compiled == compiled, "28 are the jobs that 14 cores compile at once"


def test_a_kind_that_compiles_too_slowly_for_the_budget_is_left_out_and_said_to_be(on_a_gpu, monkeypatch):
    kinds = (KernelKind(name="nowhere", compile_s=50.0), KernelKind(name="toy"), KernelKind(name=LIBRARY.backend))
    monkeypatch.setattr("tests.toy_kernels.ToyBackend.kernel_kinds", kinds)
    _, events, report = on_a_gpu({problem(4): 1.0}, kind=Waiting, budget_s=390.0)
    (message,) = events.messages
    assert "no kernels of kind nowhere but those that are compiled already: compiling one takes about 50 s" in message
    assert {trial.configuration.backend for trial in report.problems[0].trials} == {"toy", "torch"}
    _, events, report = on_a_gpu({problem(4): 1.0}, kind=Waiting, budget_s=400.0)
    assert not events.messages and {trial.configuration.backend for trial in report.problems[0].trials} > {"nowhere"}


def test_on_a_gpu_the_next_builds_compile_while_others_are_timed(tmp_path, toykernels, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    executors = []
    monkeypatch.setattr(
        "autotune.kernels.tuning.KernelExecutor",
        lambda *arguments, **values: executors.append(FakeExecutor(*arguments, **values)) or executors[0],
    )
    with Store.open(str(tmp_path / "kernels.db")) as store:
        tune_kernels({problem(8): 1.0}, H200, store, FakeServer(), backend="toykernels", budget_s=60.0)
    (executor,) = executors
    assert executor.batches == 3  # of 2, 2 and 1 builds
    assert executor.overlapped == [(True, True), (False, True), (False, True)]


def test_hints_of_another_toolchain_are_built_first(tune, tmp_path, cpu):
    hinted = launch(build("none", 4))
    with Store.open(str(tmp_path / "kernels.db")) as store:
        store.kernels.add(
            [
                KernelTrial(
                    problem=problem(8), device_class=cpu.device_class, toolchain="older", configuration=hinted,
                    state="complete", samples_us=(1.0,),
                )
            ]
        )  # fmt: skip
    _, events, _ = tune(problem(8), builds=1)
    assert [trial.configuration for trial in events.trials[:2]] == [LIBRARY, hinted]


def test_a_crash_that_is_on_record_is_not_repeated(tune, tmp_path, cpu):
    report, _, _ = tune(problem(3))
    crashed = KernelTrial(
        problem=problem(1), device_class=cpu.device_class, toolchain=report.toolchain,
        configuration=launch(build("none")), state="failed", failure=Failure(stage="check", kind="crash", detail="it"),
    )  # fmt: skip
    with Store.open(str(tmp_path / "kernels.db")) as store:
        store.kernels.add([crashed])
    _, events, _ = tune(problem(1))
    assert [trial.configuration for trial in events.trials] == [LIBRARY]
    assert compiled(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told_with_its_place(tune, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    with pytest.raises(WorkError, match="XDG_CACHE_HOME"):
        tune(problem(8))


@pytest.mark.parametrize(("limits", "timings"), [({"budget_s": 20.0}, 9), ({"budget_s": 20.0, "limit_s": 50.0}, 5)])
def test_the_turns_of_other_steps_count_for_the_limit_and_not_for_the_budget(on_a_gpu, monkeypatch, limits, timings):
    builds = tuple(build("none", number) for number in range(400))
    monkeypatch.setattr("tests.toy_kernels.ToyKernels.space", lambda *_: ToySpace(builds))
    executors = []

    class Noted(TakingTurns):
        def __init__(self, *arguments, **values):
            super().__init__(*arguments, **values)
            executors.append(self)

    host = TuningHost(clock=lambda: executors[0].now_s if executors else 0.0)
    _, _, report = on_a_gpu({problem(20): 1.0}, Noted, host=host, builds=400, **limits)
    assert report.seconds == pytest.approx(10.0 * timings, abs=10.0)
    assert report.worked_s == pytest.approx(2.0 * timings, abs=2.0)
