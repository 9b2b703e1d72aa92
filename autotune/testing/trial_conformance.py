"""Tests of the trials that a tuning database stores: a part of :mod:`autotune.testing.store_conformance`."""

from dataclasses import replace

import pytest

from autotune.database.store import Store
from autotune.database.trials import MOST_ATTEMPTS
from autotune.records.trial import Failure
from autotune.testing.sample_records import (
    CONDITIONS,
    FINALS,
    NEWER_TOOLCHAIN,
    SCREENING,
    STRICT,
    TOOLCHAIN,
    begin,
    complete,
    configuration,
    digest,
    failed,
    tried,
)


class TrialConformance:
    """The promises of every database about trials."""

    def test_a_trial_is_written_before_its_build_and_finished_once(self, store: Store) -> None:
        """A second finish with the same result changes nothing; another result is refused."""
        study = begin(store)
        claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        assert (claimed.number, claimed.attempt, claimed.state) == (0, 1, "running")
        assert store.trials.of_study(study.uid) == [claimed]
        trial = complete(claimed, artifact=digest("artifact"))
        store.trials.finish(trial, {"screening": SCREENING})
        store.trials.finish(trial, {"screening": SCREENING, "finals": FINALS})
        store.trials.add_measurement(trial.uid, "finals", FINALS)
        assert store.trials.of_study(study.uid) == [trial] and store.trials.get(trial.uid) == trial
        assert store.trials.measurements(trial.uid) == [SCREENING, FINALS]
        assert store.trials.measurements(trial.uid, "finals") == [FINALS]
        with pytest.raises(ValueError, match="keeps its result"):
            store.trials.finish(complete(claimed, latency_ms=0.5))
        with pytest.raises(ValueError, match="still running"):
            store.trials.finish(claimed)
        with pytest.raises(ValueError, match="tried"):
            store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)

    def test_numbers_count_up_in_each_study(self, store: Store) -> None:
        """A newer toolchain makes another trial of the same configuration."""
        study = begin(store)
        numbers = [tried(store, study, level).number for level in range(3)]
        again = store.trials.claim(study.uid, configuration(0), NEWER_TOOLCHAIN.digest)
        assert [*numbers, again.number] == [0, 1, 2, 3]
        assert tried(store, begin(store, seed=1)).number == 0

    def test_a_trial_that_was_cut_off_keeps_its_number(self, store: Store) -> None:
        """Only its last attempt can be finished."""
        study = begin(store)
        first = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        second = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        third = store.trials.claim(study.uid, configuration(), NEWER_TOOLCHAIN.digest)
        assert second == replace(first, attempt=2)
        assert third == replace(first, attempt=3, toolchain=NEWER_TOOLCHAIN.digest)
        for stale in (first, second):
            with pytest.raises(ValueError, match="taken over"):
                store.trials.finish(complete(stale))
        store.trials.finish(complete(third))
        assert [(trial.number, trial.state) for trial in store.trials.of_study(study.uid)] == [(0, "complete")]

    def test_a_trial_whose_coordinator_dies_again_and_again_has_failed(self, store: Store) -> None:
        """Attempts that were handed back do not count."""
        study = begin(store)
        attempts = []
        for _ in range(MOST_ATTEMPTS):
            store.trials.hand_back([store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)])
            attempts.append(store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest))
        assert [trial.state for trial in attempts] == ["running"] * MOST_ATTEMPTS
        given_up = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        assert (given_up.state, given_up.number) == ("failed", 0)
        assert given_up.failure is not None and given_up.failure.kind == "crash"
        assert store.trials.of_study(study.uid, failed=True) == [given_up]

    def test_a_trial_without_a_result_is_withdrawn(self, store: Store) -> None:
        """Its configuration can be tried again; a result is never withdrawn."""
        study = begin(store)
        finished = tried(store, study, 0)
        claimed = store.trials.claim(study.uid, configuration(1), TOOLCHAIN.digest)
        store.trials.withdraw(replace(claimed, attempt=2))  # an attempt of another coordinator
        assert store.trials.of_study(study.uid) == [finished, claimed]
        for trial in (claimed, finished):
            store.trials.withdraw(trial)
        assert store.trials.of_study(study.uid) == [finished]
        again = store.trials.claim(study.uid, configuration(1), TOOLCHAIN.digest)
        assert (again.number, again.attempt, again.state) == (claimed.number, 1, "running")
        assert again.uid != claimed.uid

    @pytest.mark.parametrize("state", ["pruned", "infeasible", "failed"])
    def test_every_end_of_a_trial_is_stored(self, store: Store, state: str) -> None:
        """Each with its failure and the figure that broke a limit."""
        study = begin(store)
        claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        failure = Failure(stage="check", kind="inaccurate", detail="0.3 > 0.02", figure=0.3)
        ended = replace(claimed, state=state, failure=None if state == "pruned" else failure, signal_error=0.3)  # type: ignore[arg-type]
        store.trials.finish(ended)
        assert store.trials.of_study(study.uid) == [ended]
        assert store.trials.of_study(study.uid, failed=True) == ([ended] if state == "failed" else [])

    @pytest.mark.parametrize("figure", [float("inf"), float("-inf"), float("nan"), 0.5, None])
    def test_a_figure_that_is_no_number_is_stored_in_the_failure(self, store: Store, figure: float | None) -> None:
        """And so is any text of a log."""
        study = begin(store)
        claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        log_tail = f"a\x00b{chr(0xDCFF)}'; DROP TABLE trial"  # a lone surrogate, which no encoding can hold
        ended = failed(claimed, stage="check", kind="non_finite", figure=figure, log_tail=log_tail)
        store.trials.finish(replace(ended, signal_error=figure))
        (stored,) = store.trials.of_study(study.uid)
        assert stored.failure is not None and repr(stored.failure) == repr(ended.failure)
        assert stored.signal_error == (0.5 if figure == 0.5 else None)

    @pytest.mark.parametrize(
        "changes",
        [
            {"latency_ms": float("inf")},
            {"state": "pruned", "latency_ms": float("nan")},
            {"state": "pruned", "latency_ms": -1.0},
            {"state": "pruned", "latency_ms": 0.0},
            {"build_s": -1.0},
            {"build_s": float("inf")},
            {"signal_error": float("nan")},
            {"artifact": "../../x"},
        ],
    )
    def test_figures_that_cannot_be_true_are_refused(self, store: Store, changes: dict[str, object]) -> None:
        """Nothing is half-written then."""
        study = begin(store)
        claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        with pytest.raises(ValueError, match=r"trial 0|latency"):
            store.trials.finish(replace(complete(claimed), **changes), {"screening": SCREENING})  # type: ignore[arg-type]
        assert store.trials.of_study(study.uid) == [claimed]
        assert store.trials.measurements(claimed.uid) == []

    def test_a_configuration_is_answered_from_an_earlier_study(self, store: Store) -> None:
        """A complete trial comes before a failed one; whatever decides its result must be the same."""
        first, second = begin(store), begin(store, seed=1)
        identity, toolchain = first.identity, TOOLCHAIN.digest
        claimed = store.trials.claim(first.uid, configuration(), toolchain)
        assert store.trials.earlier(identity, toolchain, configuration()) is None
        store.trials.finish(failed(claimed, kind="timeout"))
        assert store.trials.earlier(identity, toolchain, configuration()) is None
        broken = failed(store.trials.claim(second.uid, configuration(), toolchain), kind="error")
        store.trials.finish(broken)
        assert store.trials.earlier(identity, toolchain, configuration()) == broken
        trial = tried(store, begin(store, seed=2), 0)
        assert store.trials.earlier(identity, toolchain, configuration()) == trial
        unlike = replace(identity, name="another", serve_as="onnx", space="another", seed=7)
        assert store.trials.earlier(unlike, toolchain, configuration()) == trial
        others = [
            replace(identity, structure="other"),
            replace(identity, weights="other"),
            replace(identity, device_class="other"),
            replace(identity, objective=STRICT),
            replace(identity, conditions=None),
            replace(identity, conditions=replace(CONDITIONS, inputs="other")),
            replace(identity, conditions=replace(CONDITIONS, measuring="other")),
        ]
        for other in others:
            assert store.trials.earlier(other, toolchain, configuration()) is None
        assert store.trials.earlier(identity, "other", configuration()) is None
        assert store.trials.earlier(identity, toolchain, configuration(), kernels=digest("tuned")) is None
        assert store.trials.earlier(identity, toolchain, configuration(1)) is None

    def test_a_configuration_that_took_its_process_down_is_in_quarantine(self, store: Store) -> None:
        """Under the same toolchain alone, with these or other weights, and until a later trial has run."""
        study, second, third = (begin(store, seed=seed) for seed in range(3))
        key = (study.structure, study.device_class)
        reused = failed(store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest))
        store.trials.finish(replace(reused, reused=True))
        assert store.trials.quarantined_by(*key, TOOLCHAIN.digest, configuration()) is None
        crashed = failed(store.trials.claim(second.uid, configuration(), TOOLCHAIN.digest))
        store.trials.finish(crashed)
        assert store.trials.quarantined_by(*key, TOOLCHAIN.digest, configuration()) == (second, crashed)
        assert store.trials.quarantined_by(*key, NEWER_TOOLCHAIN.digest, configuration()) is None
        assert store.trials.quarantined_by(*key, TOOLCHAIN.digest, configuration(1)) is None
        tried(store, third)
        assert store.trials.quarantined_by(*key, TOOLCHAIN.digest, configuration()) is None
