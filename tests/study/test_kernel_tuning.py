"""The kernels of a study: tuned for real before its builds, by a toy backend whose graphs have one problem or two."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import registry
from autotune.database.store import Store
from autotune.errors import StudyInterruptedError, StudyTakenOverError
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.kernel import KernelToolchains
from autotune.kernels.executor import STEPS
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration
from autotune.records.search_space import Parameter, SearchSpace
from autotune.runtime import toolchain as versions
from autotune.study import kernel_tuning
from autotune.study.context import StudyContext
from autotune.study.kernel_supply import KernelSupply
from autotune.study.kernel_tuning import LEAST_TUNING_S, SHARE, StudyKernels
from autotune.study.request import StudyRequest
from tests.database.records import begin
from tests.toy_kernels import LIBRARY
from tests.toy_tuned import PROBLEM, UNFUSED

TOY = f"{Path(__file__).parents[1]}/toy.py:make"
INPUTS = (InputSpec(name="input", shape=("batch", 16)),)


def wanting(fused=True, **values):
    return Configuration.of("toytuned", {"kernels": "tuned", "fused": fused, **values})


PLAIN = Configuration.of("toytuned", {"kernels": "torch", "fused": True})


class LookingExecutor(Executor):
    """Notes of which graphs it finds the kernel problems."""

    def __init__(self, *given):
        super().__init__(*given)
        self.graphs = []

    def problems(self, configuration):
        self.graphs.append(configuration["fused"])
        return super().problems(configuration)


class Events:
    def __init__(self):
        self.tried, self.messages = [], []

    def event(self, kind, **data):
        if kind == "kernel_tried":
            self.tried.append(data["trial"])
        elif kind == "message":
            self.messages.append(data["text"])


@pytest.fixture(scope="module")
def executor(toytuned, cpu, tmp_path_factory):
    """Workers that have captured the toy model, for all tests of this file."""
    folder = tmp_path_factory.mktemp("executor")
    with WorkerServer(folder, steps=STEPS) as server:
        executor = LookingExecutor(server, folder, cpu, TimeSplit())
        executor.prepare("toy", 2, TOY, INPUTS, 0)
        yield executor


@pytest.fixture
def study(executor, tmp_path, cpu, monkeypatch):
    """The context of a study that has tuned nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    executor.graphs.clear()
    stop, toolchain, events = threading.Event(), versions.current(cpu), Events()
    with Store.open(str(tmp_path / "autotune.db")) as store:
        workload = executor.workload()
        yield StudyContext(
            request=StudyRequest(name="toy", batch=2, device=cpu, factory=TOY, inputs=INPUTS, backends=("toytuned",)),
            store=store, progress=events, executor=executor, stop=stop, toolchain=toolchain,
            supply=KernelSupply(store, executor, cpu.device_class, toolchain, events.messages.append, stop),
            row=begin(store, "toy", workload=workload, device=cpu), workload=workload, spaces=(),
        )  # fmt: skip


@pytest.fixture
def budgets(monkeypatch):
    """The budget of each tuning, in seconds."""
    seconds, tune = [], kernel_tuning.tune_kernels

    def noted(*given, budget_s, **values):
        seconds.append(budget_s)
        return tune(*given, budget_s=budget_s, **values)

    monkeypatch.setattr(kernel_tuning, "tune_kernels", noted)
    return seconds


def stored(study, problem):
    """The kernel trials of a problem in the study's database."""
    toolchain = KernelToolchains(registry.kernels("toytuned"), study.toolchain).digest
    return study.store.kernels.of(problem, study.request.device.device_class, toolchain)


def test_a_problem_is_tuned_once_for_all_before_builds_are_handed_their_kernels(study, budgets):
    kernels, first = StudyKernels(study), [wanting(), wanting(cuda_graph=False), wanting(fused=False)]
    handed = kernels.prepare(first, 100.0)
    assert {trial.problem for trial in study.progress.tried} == {PROBLEM, UNFUSED}
    assert [set(handed[one].best) for one in first] == [{PROBLEM.digest}] * 2 + [{PROBLEM.digest, UNFUSED.digest}]
    assert handed[first[0]].best[PROBLEM.digest].configuration == LIBRARY
    assert len(stored(study, UNFUSED)) > 1 and all(trial.median_us for trial in stored(study, UNFUSED))
    (budget_s,) = budgets
    assert 0 < budget_s <= SHARE * 100.0

    study.progress.tried.clear()
    again = kernels.prepare([wanting(threads=2)], 90.0)
    assert again[wanting(threads=2)].digest == handed[first[0]].digest
    assert len(budgets) == 1 and not study.progress.tried


def test_a_tuning_that_has_too_little_time_is_not_begun_until_there_is_more(study, budgets):
    kernels = StudyKernels(study)
    handed = kernels.prepare([wanting(fused=False)], LEAST_TUNING_S)
    assert not budgets and not stored(study, UNFUSED) and not study.progress.messages
    assert not handed[wanting(fused=False)].best, "the build leaves the problem to torch"
    kernels.prepare([wanting(fused=False)], 10 * LEAST_TUNING_S)
    assert len(budgets) == 1 and stored(study, UNFUSED)


def test_each_graph_that_wants_kernels_is_looked_at_once(study):
    kernels = StudyKernels(study)
    kernels.find_problems([PLAIN])
    assert study.executor.graphs == []
    kernels.find_problems([wanting(), PLAIN, wanting(threads=2), wanting(fused=False)])
    assert sorted(study.executor.graphs) == [False, True]


def test_a_study_that_is_to_tune_none_hands_on_what_is_known(study):
    StudyKernels(study).prepare([wanting()], 100.0)
    study.progress.tried.clear()
    untuned = replace(study, request=replace(study.request, tune_kernels=False))
    handed = StudyKernels(untuned).prepare([wanting(), wanting(fused=False)], 100.0)
    assert not study.progress.tried and not stored(study, UNFUSED)
    assert [set(known.best) for known in handed.values()] == [{PROBLEM.digest}] * 2


def test_nothing_is_tuned_if_no_configuration_asks_for_it_or_the_study_is_stopped(study):
    assert StudyKernels(study).prepare([PLAIN], 100.0) == {PLAIN: None}
    study.stop.set()
    handed = StudyKernels(study).prepare([wanting()], 100.0)
    assert not handed[wanting()].best and not study.progress.tried and not stored(study, PROBLEM)


def no_cache(study, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    return study, wanting()


def no_memory(study, tmp_path):
    device = replace(study.request.device, memory_bytes=1)
    return replace(study, request=replace(study.request, device=device)), wanting()


def no_candidate(study, tmp_path):
    return study, wanting(fused="relu")


@pytest.mark.parametrize(
    ("trouble", "says"),
    [(no_cache, "compiled kernels are kept in"), (no_memory, "GiB to check them"), (no_candidate, "no activation")],
)
def test_what_cannot_be_tuned_costs_tuned_kernels_and_is_said_once(study, tmp_path, budgets, trouble, says):
    study, configuration = trouble(study, tmp_path)
    kernels = StudyKernels(study)
    handed = kernels.prepare([configuration], 100.0)
    assert handed[configuration] is not None and not handed[configuration].best
    (message,) = (text for text in study.progress.messages if "kernels could not be tuned" in text)
    assert message.startswith("toytuned: ") and says in message
    study.progress.messages.clear()
    kernels.prepare([wanting(configuration["fused"], threads=2)], 90.0)
    assert len(budgets) == 1 and not study.progress.messages


@pytest.mark.parametrize("kind", [StudyInterruptedError, StudyTakenOverError])
def test_a_study_that_is_stopped_or_taken_over_in_tuning_ends(study, kind):
    class Ending:
        def event(self, what, **data):
            if what == "kernel_tried":
                raise kind("the study ends")

    with pytest.raises(kind, match="the study ends"):
        StudyKernels(replace(study, progress=Ending())).prepare([wanting()], 100.0)


class Prefetches:
    """Notes the prefetches of a study in place of compiling."""

    def __init__(self):
        self.begun, self.ended = [], 0

    def __call__(self, executor, problems, seed, host):
        self.begun.append((executor.backend, dict(problems())))
        return self

    def begin(self):
        pass

    def close(self):
        self.ended += 1


@pytest.fixture
def prefetches(monkeypatch):
    noted = Prefetches()
    monkeypatch.setattr(kernel_tuning, "KernelPrefetch", noted)
    return noted


def offering(study, device, *configurations, **changes):
    """The study with a space whose hints are some configurations, on another device."""
    parameters = (
        Parameter(name="fused", choices=(True, False)), Parameter(name="kernels", choices=("tuned", "torch")),
    )  # fmt: skip
    space = SearchSpace(backend="toytuned", parameters=parameters, hints=configurations)
    request = replace(study.request, device=device, **changes)
    return replace(study, request=request, spaces=(space,))


def test_on_a_gpu_the_kernels_of_the_first_candidates_are_compiled_from_the_beginning(study, cpu, prefetches):
    gpu = replace(cpu, kind="cuda", capability=(9, 0))
    kernels = StudyKernels(offering(study, gpu, PLAIN, wanting(), wanting(fused=False)))
    kernels.begin_compiling()
    assert [(backend, set(counts)) for backend, counts in prefetches.begun] == [("toytuned", {PROBLEM, UNFUSED})]
    assert prefetches.ended == 0
    kernels.close()
    kernels.close()
    assert prefetches.ended == 1


def test_the_prefetch_ends_before_kernels_are_tuned(study, cpu, prefetches, monkeypatch):
    ended = []
    monkeypatch.setattr(kernel_tuning, "tune_kernels", lambda *given, **values: ended.append(prefetches.ended))
    kernels = StudyKernels(offering(study, replace(cpu, kind="cuda", capability=(9, 0)), wanting()))
    kernels.begin_compiling()
    with pytest.raises(AttributeError):  # there is no report
        kernels.prepare([wanting()], 100.0)
    assert ended == [1]


def test_nothing_is_compiled_ahead_on_a_cpu_or_if_none_is_tuned(study, cpu, prefetches):
    gpu = replace(cpu, kind="cuda", capability=(9, 0))
    StudyKernels(offering(study, cpu, wanting())).begin_compiling()
    StudyKernels(offering(study, gpu, PLAIN)).begin_compiling()
    StudyKernels(offering(study, gpu, wanting(), tune_kernels=False)).begin_compiling()
    assert not prefetches.begun
