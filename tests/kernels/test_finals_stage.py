"""The finals of a tuning, with an executor that times as a test says."""

import dataclasses
import threading

import pytest

from autotune.database.store import Store
from autotune.errors import StudyInterruptedError, WorkError
from autotune.kernel import CompileResult
from autotune.kernels import tuning
from autotune.kernels.contenders import MOST
from autotune.kernels.finals_stage import ROUNDS, SAMPLES
from autotune.kernels.host import TuningHost
from autotune.kernels.rounds import ComparedProblem
from autotune.kernels.tuning import tune_kernels
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from tests.toy_kernels import LIBRARY, build, launch


def problem(m):
    return GemmProblem(m=m, n=16, k=32, dtype="fp32", output="fp32")


class FakeServer:
    closed = False


class TimingExecutor:
    """Compiles at once; every candidate takes ``search_us`` in the search and ``final_us`` in a final."""

    waited_s = queued_s = 0.0

    def __init__(self, server, device, backend, folder, *, toolchains, seed):
        self.server, self.device, self.backend, self.folder = server, device, backend, folder
        self.toolchains, self.spans = toolchains, []

    def rates(self, tell):
        return None

    def compile(self, problem, builds, limit_s):
        return {build: CompileResult() for build in builds}, {}

    def compiled(self, problem, builds):
        return [build for build in builds if build not in self.absent]

    def time(self, problem, candidates, best_us, tell):
        for candidate in candidates:
            tell(
                KernelTrial(
                    problem=problem, device_class=self.device.device_class,
                    toolchain=self.toolchains.of(candidate.backend), configuration=candidate, state="complete",
                    samples_us=(self.search_us(problem, candidate),),
                )
            )  # fmt: skip

    def compare(self, work, tell, *, rounds, samples, limit_s):
        self.calls.append([(entry.problem.m, len(entry.finalists)) for entry in work])
        self.limits_s.append(limit_s)
        for entry in work:
            if self.failing is not None:
                self.failing(entry, tell)
                continue
            blocks = {each: ((self.final_us(entry.problem, each),) * samples,) * rounds for each in entry.finalists}
            tell(ComparedProblem(problem=entry.problem, blocks_us=blocks, conditions={"l2": "cold"}))

    def close(self):
        pass


class Events:
    def __init__(self):
        self.messages, self.finals = [], []

    def event(self, kind, **data):
        if kind == "message":
            self.messages.append(data["text"])
        elif kind == "kernels_compared":
            self.finals.append(data["final"])


@pytest.fixture
def tune(tmp_path, cpu, toykernels, monkeypatch):
    """Tune toy kernels; the database stays between calls. Returns the report, the events and the executor."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(
        weights, *, search_us=lambda problem, candidate: 10.0, final_us=None, budget_s=60.0, failing=None, absent=(),
        stop=None, host=None,
    ):  # fmt: skip
        kind = type("Executor", (TimingExecutor,), {
            "search_us": staticmethod(search_us), "final_us": staticmethod(final_us or search_us),
            "failing": staticmethod(failing) if failing else None, "absent": absent, "calls": [], "limits_s": [],
        })  # fmt: skip
        monkeypatch.setattr("autotune.kernels.tuning.KernelExecutor", kind)
        events = Events()
        with Store.open(str(tmp_path / "kernels.db")) as store:
            report = tune_kernels(
                weights,
                cpu,
                store,
                FakeServer(),
                backend="toykernels",
                budget_s=budget_s,
                progress=events,
                stop=stop,
                host=host,
            )
            finals = store.kernel_finals.of(weights, cpu.device_class)
        return report, events, kind, finals

    return run


def number(candidate):
    """5 for the library's call, else the number of its build."""
    return candidate.get("number", 5)


def test_the_best_few_are_compared_and_their_rounds_decide(tune):
    report, events, executor, finals = tune(
        {problem(8): 1.0}, search_us=lambda _, candidate: 10.0 + number(candidate) / 100,
        final_us=lambda _, candidate: 20.0 - number(candidate) / 100,
    )  # fmt: skip
    assert executor.calls == [[(8, MOST)]]
    (tuned,), (final,) = report.problems, events.finals
    assert finals == {problem(8).digest: (final,)} and tuned.final == final
    assert final.rounds == ROUNDS and {len(block) for one in final.finalists for block in one.rounds_us} == {SAMPLES}
    assert tuned.best.configuration == tuned.library.configuration == LIBRARY, "it is within reach, so it takes part"
    assert tuned.best_us == 10.0 and final.of(LIBRARY).median_us == pytest.approx(19.95)
    assert {trial.configuration for trial in tuned.trials[:MOST]} == {one.configuration for one in final.finalists}
    others = [trial.median_us for trial in tuned.trials[MOST:]]
    assert others and others == sorted(others)


def test_a_final_is_not_repeated_until_another_kernel_is_among_the_best(tune):
    def search_us(_, candidate):
        return {0: 10.0, 1: 10.1}.get(number(candidate), 20.0)

    tune({problem(8): 1.0}, search_us=search_us)
    report, events, executor, _ = tune({problem(8): 1.0}, search_us=search_us)
    assert executor.calls == [] and not events.finals and report.problems[0].final is not None
    assert report.problems[0].measured == 0


def test_a_clear_best_needs_no_final(tune):
    report, _, executor, finals = tune({problem(8): 1.0}, search_us=lambda _, candidate: 10.0 + number(candidate) ** 2)
    assert len(report.problems[0].trials) > 5
    assert executor.calls == [[(8, 2)]], "two launches of the best build"
    report, _, executor, finals = tune({problem(3): 1.0})
    assert executor.calls == [] and not finals and report.problems[0].final is None


def test_problems_with_the_most_weight_and_time_come_first_and_only_those_that_end_in_time(tune):
    weights = {problem(6): 1.0, problem(7): 3.0, problem(8): 2.0, problem(9): 1.0}

    def search_us(of, candidate):
        return 20.0 if of.m == 8 else 1e6 if of.m == 9 else 10.0

    _, events, executor, _ = tune(weights, search_us=search_us, budget_s=200.0)
    assert [[m for m, _ in call] for call in executor.calls] == [[8, 7, 6]], "that of 9 would take minutes"
    assert [final.problem.m for final in events.finals] == [8, 7, 6]


@pytest.mark.parametrize("budget_s", [0.0, 3.0, 30.0])
def test_a_tenth_of_the_budget_is_reserved(tune, budget_s, monkeypatch):
    stages, stage = [], tuning.BuildStage
    monkeypatch.setattr(tuning, "BuildStage", lambda *parts, **values: stages.append(values) or stage(*parts, **values))
    _, _, executor, finals = tune({problem(8): 1.0}, budget_s=budget_s)
    assert stages[0]["budget_s"] == budget_s and stages[0]["reserved_s"] == pytest.approx(budget_s / 10)
    if budget_s == 30.0:
        assert executor.limits_s == [pytest.approx(3.0)] and finals
    else:
        assert executor.limits_s == [] and not finals, "too little for a final"


@pytest.mark.parametrize(("session_s", "sessions"), [(8.0, 2), (9.2, 1)])
def test_the_search_begins_nothing_in_the_reserved_time(tune, session_s, sessions):
    """A search of 10 s has 9; a second session, of other launches, begins before their end only."""
    begun, moment = [], [0.0]

    def search_us(_, candidate):
        if candidate == LIBRARY or (candidate["order"] == 1 and 1 not in begun):
            moment[0] += session_s
            begun.append(candidate.get("order", 0))
        return 10.0

    _, _, executor, _ = tune(
        {problem(8): 1.0},
        search_us=search_us,
        final_us=lambda *_: 10.0,
        budget_s=10.0,
        host=TuningHost(clock=lambda: moment[0]),
    )
    assert len(begun) == sessions and len(executor.limits_s) == 1


def test_a_failed_final_leaves_the_choice_to_the_search_and_is_said(tune):
    def failing(entry, tell):
        tell(ComparedProblem(problem=entry.problem, failures=("ab12 an element is off",)))

    report, events, _, finals = tune({problem(8): 1.0}, failing=failing)
    assert not finals and report.problems[0].final is None and report.problems[0].best is not None
    (message,) = events.messages
    assert "chosen by the search alone" in message and "an element is off" in message


def test_an_error_of_the_finals_costs_finals_only_but_the_end_of_a_study_ends_it(tune):
    def broken(entry, tell):
        raise WorkError("kernels could not be compared", found="no device")

    report, events, _, _ = tune({problem(8): 1.0}, failing=broken)
    assert report.problems[0].best is not None and "no device" in events.messages[0]

    def stopped(entry, tell):
        raise StudyInterruptedError("the study ends")

    with pytest.raises(StudyInterruptedError, match="the study ends"):
        tune({problem(8): 1.0}, failing=stopped)


def test_finals_that_are_finished_when_it_is_stopped_are_kept(tune):
    def failing(entry, tell):
        if entry.problem.m == 8:
            blocks = {each: ((1.0,) * SAMPLES,) * ROUNDS for each in entry.finalists}
            tell(ComparedProblem(problem=entry.problem, blocks_us=blocks))
            stop.set()

    stop = threading.Event()
    report, _, executor, finals = tune({problem(8): 2.0, problem(7): 1.0}, failing=failing, stop=stop)
    assert report.stopped and set(finals) == {problem(8).digest}
    _, _, executor, finals = tune({problem(8): 2.0, problem(7): 1.0})
    assert [[m for m, _ in call] for call in executor.calls] == [[7]] and len(finals) == 2


def test_a_contender_of_another_machine_that_is_not_compiled_here_leaves_the_choice_to_the_search(tune, tmp_path, cpu):
    def search_us(_, candidate):
        return 10.0 if number(candidate) in (0, 1) else 30.0

    _, _, executor, _ = tune({problem(8): 1.0}, search_us=search_us, budget_s=0.0)
    assert executor.calls == []
    with Store.open(str(tmp_path / "kernels.db")) as store:
        toolchain = store.kernels.problems()[0].best.toolchain
        store.kernels.add(
            [
                KernelTrial(
                    problem=problem(8), device_class=cpu.device_class, toolchain=toolchain,
                    configuration=launch(build("none", each)), state="complete", samples_us=(10.0,),
                )
                for each in (0, 1)
            ]
        )  # fmt: skip
    _, events, executor, _ = tune({problem(8): 1.0}, search_us=search_us, absent=[build("none", 1)])
    assert executor.calls == [] and not events.messages
    _, _, executor, finals = tune({problem(8): 1.0}, search_us=search_us)
    assert [[m for m, _ in call] for call in executor.calls] == [[8]] and finals


def test_problems_in_trouble_have_no_final(tune):
    activated = dataclasses.replace(problem(8), bias=True, activation="relu")
    report, _, executor, _ = tune({activated: 1.0, problem(7): 1.0})
    assert [[m for m, _ in call] for call in executor.calls] == [[7]]
    assert report.problems[0].trouble is not None and report.problems[0].final is None
