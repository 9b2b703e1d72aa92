"""The way of a built candidate to its result: stored, loaded, checked and timed: TrialTiming."""

import contextlib
import dataclasses
import logging
import threading
from pathlib import Path

from autotune import registry
from autotune.execute.answers import BuildAnswer, MeasureAnswer
from autotune.execute.executor import EarlyLoad
from autotune.execute.step_result import StepResult
from autotune.measure.block import latency_ms as screened_ms
from autotune.records.configuration import Configuration
from autotune.records.trial import Measurement, Trial, TrialState
from autotune.study.built_trial import StoredBuild
from autotune.study.context import StudyContext
from autotune.study.pace import Pace
from autotune.study.space import is_unserved

log = logging.getLogger(__name__)

EARLY_LOADS = 8
"""The most candidates that wait on a GPU, loaded, while others are built."""


class TrialTiming:
    """Stores what builds wrote, and loads, checks and times it.

    Builds may be stored from several threads, and finished from one.
    """

    def __init__(self, context: StudyContext, pace: Pace) -> None:
        self.context, self._pace = context, pace
        self._seats = threading.Semaphore(EARLY_LOADS)

    def stored(
        self, configuration: Configuration, built: StepResult[BuildAnswer], target: Path, held: contextlib.ExitStack,
        *, early: bool,
    ) -> StoredBuild:  # fmt: skip
        """Move a finished build into the artifact store, ``held`` there; ``early`` it is loaded at once if possible."""
        digest: str | None = None
        loading: EarlyLoad | None = None
        if built.failure is None:
            digest = held.enter_context(self.context.store.artifacts.kept(target))
            loading = self._load_early(configuration, digest) if early else None
        self.context.executor.discard(target)
        return StoredBuild(digest=digest, loading=loading)

    def _load_early(self, configuration: Configuration, digest: str) -> EarlyLoad | None:
        """Begin to load if there is room on the device, and it need not be alone there."""
        if registry.loads_alone(configuration):
            return None
        if not self._seats.acquire(blocking=False):
            return None
        request = self.context.request
        artifact = self.context.store.artifacts.open(digest)
        return self.context.executor.load_early(artifact, request.objective, request.seed)

    def _measured(self, stored: StoredBuild, digest: str, abandon_ms: float | None) -> StepResult[MeasureAnswer]:
        if stored.loading is not None:
            measured = stored.loading.measure(abandon_ms)
            self._seats.release()
            crowded = measured.failure is not None and measured.failure.kind == "out_of_memory"
            if not crowded or self.context.stop.is_set():
                return measured
            log.info("loading again without others beside it: %s", measured.failure)
        request, artifact = self.context.request, self.context.store.artifacts.open(digest)
        return self.context.executor.measure(artifact, request.objective, request.seed, abandon_ms=abandon_ms)

    def finish(
        self, trial: Trial, built: StepResult[BuildAnswer], stored: StoredBuild | None, *, to_the_end: bool
    ) -> tuple[Trial, Measurement | None]:
        """Return the trial with its result, and its measurement if it was timed.

        Timing is abandoned if the candidate is much slower than the best so far, unless it is timed ``to_the_end``.
        """
        if built.failure is not None or stored is None or stored.digest is None:
            return dataclasses.replace(trial, state="failed", failure=built.failure), None
        digest = stored.digest
        measured = self._measured(stored, digest, None if to_the_end else self._pace.abandon_ms(trial.configuration))
        error = None if measured.value is None else measured.value.signal_error
        trial = dataclasses.replace(trial, build_s=built.answer.build_s, signal_error=error)
        if measured.failure is not None:
            return dataclasses.replace(trial, state="failed", failure=measured.failure, artifact=None), None
        trial = dataclasses.replace(trial, artifact=digest)
        answer = measured.answer
        measurement = answer.timed
        latency_ms = screened_ms(measurement)
        state: TrialState = "pruned" if answer.pruned else "complete"
        score = answer.score
        if self.context.request.objective.name == "memory":
            footprint = self.context.executor.footprint(self.context.store.artifacts.open(digest))
            if footprint.failure is not None:
                return dataclasses.replace(trial, state="failed", failure=footprint.failure), measurement
            score = float(footprint.answer.memory.peak_bytes)
        request = self.context.request
        if request.objective.name.startswith("latency") and not is_unserved(trial.configuration, request):
            self._pace.note(trial.configuration, latency_ms)
        return dataclasses.replace(trial, state=state, latency_ms=latency_ms, score=score), measurement
