"""What a study knew at its start, and the curve of its search, in studies that are simulated under a fake clock."""

import functools
import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import registry
from autotune.database.store import Store
from autotune.errors import StudyInterruptedError
from autotune.execute.message import WAIT
from autotune.execute.timing import TimeSplit
from autotune.programs.reliability import simulated
from autotune.programs.reliability.simulated import Journal, Part, SimulatedServer
from autotune.runtime import discovery
from autotune.study.context import StudyContext
from tests.database.records import kernel

BUILD_S, MEASURE_S = 3.0, 2.0
TRIAL_S = BUILD_S + MEASURE_S


class Clock:
    """The clock of the search: it moves only if a step does."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Server(SimulatedServer):
    """Steps take their time by the fake clock; before ``halting`` they stop the study, at ``dying`` it is cut off."""

    def __init__(self, journal, clock, split, *, waits_s=0.0, halting=None, dying=None):
        super().__init__(journal)
        self.clock, self.split, self.waits_s = clock, split, waits_s
        self.halting, self.dying, self.measured = halting, dying, 0

    def step(self, stage, answer, **line):
        if stage == "measure":
            if self.measured == self.dying:
                raise StudyInterruptedError("killed in the middle, as far as the database can see")
            if self.measured == self.halting:
                os.kill(os.getpid(), signal.SIGTERM)
            self.measured += 1
        begin = self.clock.now
        self.clock.now += self.waits_s
        self.split.add([(WAIT, begin, self.clock.now)])
        self.clock.now += BUILD_S if stage == "build" else MEASURE_S
        return self._ended(stage, answer, 0)


class Silent:
    def event(self, kind, **data):
        pass


class Lab:
    """Runs simulated studies in one database."""

    def __init__(self, folder, store, clock, split):
        self.folder, self.store, self.clock, self.split = folder, store, clock, split
        self.part = Part(database="", study="toy", trials=4, journal=str(folder / "journal"), site="")
        self.runs = 0

    def run(self, *, seed=0, trials=4, **server):
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        stands = Server(Journal(Path(self.part.journal)), self.clock, self.split, **server)
        return simulated.run(replace(self.part, seed=seed, trials=trials), self.store, stands, Silent(), folder)

    def study(self):
        (row,) = self.store.studies.list("toy")
        return row

    def complete(self):
        return [trial for trial in self.store.trials.of_study(self.study().uid) if trial.state == "complete"]

    def forget(self, *names):
        """Leave the database as an earlier version would have."""
        timings = {name: value for name, value in self.study().timings.items() if name not in names}
        with sqlite3.connect(self.store.location) as connection:
            connection.execute("UPDATE study SET timings = ?", (json.dumps(timings),))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    clock, split = Clock(), TimeSplit()
    monkeypatch.setattr("autotune.study.study.StudyContext", functools.partial(StudyContext, clock=clock))
    monkeypatch.setattr("autotune.study.study.TimeSplit", lambda: split)
    monkeypatch.setattr("autotune.study.trial_timing.EARLY_LOADS", 0)  # the simulated executor has no early loads
    monkeypatch.syspath_prepend(str(simulated.install(tmp_path)))
    registry.refresh()
    with Store.open(str(tmp_path / "a.db")) as store:
        yield Lab(tmp_path, store, clock, split)
    sys.path.remove(str(tmp_path / "site"))
    registry.refresh()


def test_a_trial_ends_at_the_seconds_of_search_that_were_worked(lab):
    outcome = lab.run(waits_s=100.0)
    row, complete = lab.study(), lab.complete()
    assert row.active_s == pytest.approx(4 * TRIAL_S)
    moments = [row.ended_s[trial.uid] for trial in complete]
    assert moments == pytest.approx([TRIAL_S * (index + 1) for index in range(4)]), "waiting does not count"
    assert outcome.curve == row.curve and outcome.curve.searched_s == row.active_s
    assert outcome.curve.best == min(trial.latency_ms for trial in complete)
    assert outcome.curve.baseline == complete[0].latency_ms and outcome.curve.unit == "ms"


def test_trials_that_are_built_together_end_one_after_the_other(lab, monkeypatch):
    monkeypatch.setattr("autotune.study.search.StudySearch.parallel", 3)
    lab.run()
    row = lab.study()
    moments = sorted(row.ended_s.values())
    assert len(moments) == 4 and moments[-1] == pytest.approx(row.active_s) == pytest.approx(4 * TRIAL_S)
    assert moments == sorted(set(moments)), "each has a moment of its own"


def test_a_study_that_is_stopped_and_continued_has_one_curve(lab):
    with pytest.raises(StudyInterruptedError):
        lab.run(halting=2)
    before = lab.study()
    assert len(before.ended_s) == 2 and before.curve is None and not before.start.was_continued
    lab.clock.now += 86400.0  # the time between two runs is no search
    outcome = lab.run(trials=6)
    after = lab.study()
    assert before.ended_s.items() <= after.ended_s.items() and len(after.ended_s) == len(lab.complete()) == 6
    later = [seconds for uid, seconds in after.ended_s.items() if uid not in before.ended_s]
    assert min(later) > before.active_s and max(later) <= after.active_s == outcome.curve.searched_s
    assert outcome.curve.best == min(trial.latency_ms for trial in lab.complete())
    assert (after.start.trials, after.start.continued_trials) == (4, 6)
    assert outcome.known_at_start == after.start == outcome.plan.evidence.known_at_start


def test_trials_of_a_coordinator_that_died_ended_when_the_next_one_began_at_the_latest(lab, monkeypatch):
    monkeypatch.setattr("autotune.study.search.StudySearch.parallel", 3)
    with pytest.raises(StudyInterruptedError):
        lab.run(trials=6, dying=4)  # in the second group of builds, after its first trial; the first has three defaults
    before = lab.study()
    assert len(lab.complete()) == 4 and len(before.ended_s) == 3, "the database does not have the moment of the last"
    outcome = lab.run(trials=6)
    lost = next(trial.uid for trial in lab.complete() if trial.uid not in before.ended_s)
    after = lab.study()
    assert after.ended_s[lost] == before.active_s and len(after.ended_s) == len(lab.complete())
    assert outcome.curve.best == min(trial.latency_ms for trial in lab.complete())


def test_a_finished_study_shows_the_curve_and_the_start_of_its_search_again(lab):
    first = lab.run()
    again = lab.run()
    assert again.cached and not first.cached
    assert (again.curve, again.known_at_start) == (first.curve, first.known_at_start)
    assert not again.known_at_start.was_continued, "no run has searched again"


def test_the_start_counts_the_trials_that_the_database_has(lab):
    lab.store.kernels.add([kernel(0), kernel(1), kernel(2, device_class=discovery.cpu().device_class)])
    first = lab.run().known_at_start
    assert (first.kernel_trials, first.other_kernel_trials, first.model_trials) == (1, 2, 0)
    assert (first.trials, first.budget_s, first.was_empty) == (4, 86400.0, False)
    second = lab.run(seed=1)
    assert second.known_at_start.model_trials == len(lab.store.trials.of_study(lab.store.studies.list("toy")[0].uid))
    reused = [trial for trial in lab.store.trials.of_study(second.plan.evidence.study) if trial.reused]
    row = lab.store.studies.get(second.plan.evidence.study)
    assert reused and not {trial.uid for trial in reused} & set(row.ended_s)
    assert second.curve.points[0].seconds == 0.0, "reused trials cost no search"


def test_an_empty_database_is_known_to_have_nothing(lab):
    start = lab.run().known_at_start
    assert start.was_empty and (start.kernel_trials, start.other_kernel_trials, start.model_trials) == (0, 0, 0)


def test_of_a_study_that_an_earlier_version_began_start_and_curve_stay_unknown(lab):
    lab.run()
    lab.forget("start", "ended_s", "curve")
    outcome = lab.run(trials=6)
    assert outcome.known_at_start is None and outcome.curve is None and lab.study().start is None
    assert outcome.plan.evidence.known_at_start is None
    assert outcome.as_dict()["known_at_start"] is None and outcome.as_dict()["curve"] is None


def test_a_trial_without_a_moment_leaves_the_curve_unknown(lab, monkeypatch):
    monkeypatch.setattr("autotune.study.search_clock.SearchClock.mark_unmarked", lambda self, earlier: None)
    lab.run()
    lab.forget("ended_s")
    assert lab.run(trials=6).curve is None
