"""Candidates that take their worker, their coordinator or their host down, in studies that are simulated."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import registry
from autotune.database.store import Store
from autotune.database.trial_store import TrialStore
from autotune.database.trials import MOST_ATTEMPTS
from autotune.errors import StudyInterruptedError, WorkError
from autotune.programs.reliability import simulated
from autotune.programs.reliability.simulated import SIMULATED, Journal, Part, SimulatedServer


class Server(SimulatedServer):
    """Steps cost nothing; those in ``crashing`` crash, ``stopping`` kills the coordinator, ``halting`` stops it."""

    def __init__(self, journal, crashing=(), stopping=None, halting=None):
        super().__init__(journal)
        self.built, self.crashing, self.stopping, self.halting = [], crashing, stopping, halting

    def step(self, stage, answer, **line):
        if stage == "build":
            self.built.append(line["configuration"])
        if line["configuration"] == self.stopping:
            raise StudyInterruptedError("killed in the middle, as far as the database knows")
        if line["configuration"] == self.halting:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._ended(stage, answer, -11 if line["configuration"] in self.crashing else 0)


class Told:
    def __init__(self):
        self.finished = []

    def event(self, kind, **data):
        if kind == "trial_finished":
            self.finished.append(data["trial"])


@pytest.fixture
def part(tmp_path, monkeypatch):
    monkeypatch.setattr(simulated, "KNOBS", {"a": 3, "b": 2, "c": 2})  # small enough to be tried whole
    monkeypatch.syspath_prepend(str(simulated.install(tmp_path)))
    registry.refresh()
    yield Part(database=str(tmp_path / "a.db"), study="simulated", trials=4, journal=str(tmp_path / "journal"), site="")
    sys.path.remove(str(tmp_path / "site"))
    registry.refresh()


@pytest.fixture
def store(part):
    with Store.open(part.database) as opened:
        yield opened


def run(part, store, **server):
    """Run a study once; return its builds and the trials that it reported."""
    stands, told = Server(Journal(Path(part.journal)), **server), Told()
    folder = Path(part.journal).parent / f"run-{len(list(Path(part.journal).parent.glob('run-*')))}"
    folder.mkdir()
    try:
        with pytest.MonkeyPatch.context() as patch:
            if stands.stopping is not None:  # a coordinator that was killed writes nothing more
                patch.setattr(TrialStore, "hand_back", lambda *_: None)
            simulated.run(part, store, stands, told, folder)
    finally:
        run.built, run.finished = stands.built, told.finished
    return stands.built, told.finished


def a_candidate(finished):
    """The digest of the first configuration that is no baseline."""
    return next(
        trial.configuration.digest
        for trial in finished
        if trial.configuration.backend == "simulated"
        and not SIMULATED.is_baseline(trial.configuration, has_factory=True)
    )


def test_what_crashed_is_not_built_again_in_another_study_unless_the_toolchain_changes(part, store, monkeypatch):
    victim = a_candidate(run(part, store)[1])
    other = replace(part, database=f"{part.database}2")
    with Store.open(other.database) as second:
        _, finished = run(other, second, crashing=(victim,))
        (crashed,) = [trial for trial in finished if trial.state == "failed"]
        assert "quarantined" not in str(crashed.failure)
        built, finished = run(replace(other, seed=1, trials=40), second)
        assert victim not in built
        (told,) = [trial for trial in finished if trial.configuration.digest == victim]
        assert (told.state, told.failure.kind, told.reused) == ("failed", "crash", True)
        assert f"trial {crashed.number} of simulated at batch 1: {crashed.failure.detail}" in told.failure.detail
        assert told.failure.detail.startswith("quarantined, not built again under this toolchain")
        monkeypatch.setattr(SIMULATED, "toolchain", ("torch",))
        built, finished = run(replace(other, seed=2, trials=40), second)
        assert victim in built and all(trial.state == "complete" for trial in finished)


def test_a_baseline_is_tried_again_in_another_study(part, store):
    space = SIMULATED.space(None, None, has_factory=True)
    (default,) = space.defaults
    # Eager may be a baseline too: all that this study knows of is taken down.
    with pytest.raises(WorkError, match="baseline was not timed"):
        run(replace(part, trials=1), store, crashing=Everything())
    built, finished = run(replace(part, seed=1), store)
    assert default.digest in built and all(trial.state == "complete" for trial in finished)


class Everything:
    def __contains__(self, item):
        return True


def test_a_candidate_that_takes_its_coordinator_down_is_given_up_and_the_study_ends(part, store):
    with Store.open(f"{part.database}2") as rehearsal:
        victim = a_candidate(run(part, rehearsal)[1])
    for attempt in range(1, MOST_ATTEMPTS + 1):
        with pytest.raises(StudyInterruptedError):
            run(part, store, stopping=victim)
        assert run.built.count(victim) == 1, attempt
    built, finished = run(part, store, stopping=victim)
    assert victim not in built
    (given_up,) = [trial for trial in finished if trial.state == "failed"]
    assert given_up.failure.detail.startswith(f"given up: in {MOST_ATTEMPTS} attempts")


def test_what_was_stopped_in_good_order_is_never_given_up(part, store):
    with Store.open(f"{part.database}2") as rehearsal:
        victim = a_candidate(run(part, rehearsal)[1])
    for _ in range(MOST_ATTEMPTS + 1):
        with pytest.raises(StudyInterruptedError, match="was stopped"):
            run(part, store, halting=victim)
        assert run.built[-1] == victim
    built, finished = run(part, store)
    assert victim in built and all(trial.state == "complete" for trial in finished)


def test_what_was_cut_off_is_built_alone(part, store, monkeypatch):
    monkeypatch.setattr("autotune.study.search.StudySearch.parallel", 4)
    monkeypatch.setattr("autotune.study.trial_timing.TrialTiming._load_early", lambda *_: None)
    part, batches = replace(part, trials=9), []
    build = simulated.SimulatedExecutor.build

    def counted(executor, configurations, workers, timeout_s=None, **options):
        batches.append([configuration.digest for configuration in configurations])
        return build(executor, configurations, workers, timeout_s, **options)

    monkeypatch.setattr(simulated.SimulatedExecutor, "build", counted)
    with Store.open(f"{part.database}2") as rehearsal:
        run(part, rehearsal)
    together = next(batch for batch in batches if len(batch) == 4)
    with pytest.raises(StudyInterruptedError, match="killed"):
        run(part, store, stopping=together[3])
    batches.clear()
    run(part, store)
    assert batches[:4] == [[digest] for digest in together] and max(map(len, batches[4:])) > 1
