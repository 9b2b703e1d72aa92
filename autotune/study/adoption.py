"""Results of other studies, which become trials of this one without a build: TrialAdoption."""

import dataclasses

from autotune.records.configuration import Configuration
from autotune.records.trial import Measurement, Trial
from autotune.study.context import StudyContext
from autotune.study.pace import Pace
from autotune.study.space import is_baseline


class TrialAdoption:
    """Looks for the result of a configuration in other studies, and stores it as a trial of this one."""

    def __init__(self, context: StudyContext, pace: Pace) -> None:
        self.context, self._pace = context, pace

    def find(self, configuration: Configuration) -> Trial | None:
        """Adopt the result of a configuration, or the failure that quarantines it; ``None`` if it has to be built."""
        return self._earlier(configuration) or self._quarantined(configuration)

    def _earlier(self, configuration: Configuration) -> Trial | None:
        """Adopt the result of the same configuration in another study of this workload, without a build, if any."""
        # A study measures the latency under every objective, and the value of no other objective than its own.
        if self.context.request.objective.name != "latency_p50":
            return None
        digest, kernels = self.context.digest(configuration.backend), self.context.supply.digest(configuration)
        earlier = self.context.store.trials.earlier(self.context.row.identity, digest, configuration, kernels)
        if earlier is None:
            return None
        measurements = self.context.store.trials.measurements(earlier.uid, "screening")
        return self._adopted(earlier, digest, measurements[0] if measurements else None)

    def _quarantined(self, configuration: Configuration) -> Trial | None:
        """Adopt the failure of a configuration that took its worker down before, if any.

        It counts in every study of this structure under this toolchain.
        """
        if is_baseline(configuration, self.context.request):
            return None  # it is tried again: without a baseline a study has no result
        digest = self.context.digest(configuration.backend)
        quarantine = self.context.store.trials.quarantined_by(
            self.context.workload.structure, self.context.row.device_class, digest, configuration
        )
        if quarantine is None:
            return None
        study, failed = quarantine
        assert failed.failure is not None  # a failed trial has one
        why = f"quarantined, not built again under this toolchain since trial {failed.number} of {study.name}"
        failure = dataclasses.replace(
            failed.failure, detail=f"{why} at batch {study.batch}: {failed.failure.detail}", log_tail=""
        )
        return self._adopted(dataclasses.replace(failed, failure=failure), digest, None)

    def _adopted(self, other: Trial, digest: str, screening: Measurement | None) -> Trial:
        """Store another study's result as a trial of this one, and return that trial."""
        trial = self.context.store.trials.claim(self.context.row.uid, other.configuration, digest)
        if trial.state == "running":
            trial = dataclasses.replace(
                other, uid=trial.uid, number=trial.number, attempt=trial.attempt, artifact=None, reused=True, score=None
            )
            self.context.store.trials.finish(trial, {"screening": screening} if screening else {})
        self.context.progress.event("trial_finished", trial=trial, best_ms=self._pace.best_ms)
        return trial
