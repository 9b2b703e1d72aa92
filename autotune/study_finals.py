"""The end of a study: the finals, and the plan that they promote."""

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

from autotune import registry
from autotune.errors import ArtifactError, WorkError
from autotune.execute.finals import FinalsResult, run_finals
from autotune.plan import Plan
from autotune.study_context import StudyContext
from autotune.study_space import choose_finalists, is_baseline
from autotune.trial import Trial


class StudyFinals:
    """Measures the best few again, beside the baseline and the defaults, and keeps the winner as the plan."""

    def __init__(self, on: StudyContext) -> None:
        self.on = on
        self._defaults = on.defaults

    def run(self) -> Plan:
        """Decide and promote; the artifacts of those that lost are dropped."""
        result, trials = self._finals()
        plan = self._promote(result, trials)
        self.on.store.drop_losers(
            self.on.row.uid, {trial.uid for trial in trials.values() if trial.artifact == plan.artifact}
        )
        return plan

    def _finals(self) -> tuple[FinalsResult, dict[str, Trial]]:
        row = self.on.row
        complete = [
            trial for trial in self.on.store.trials(row.uid)
            if trial.state == "complete" and trial.toolchain == self.on.toolchain_of(trial)
        ]  # fmt: skip
        baselines = {trial.uid for trial in complete if is_baseline(trial.configuration, self.on.request)}
        if not baselines:
            failed = [
                trial
                for trial in self.on.store.trials(row.uid, failed=True)
                if is_baseline(trial.configuration, self.on.request)
            ]
            why = str(failed[0].failure) if failed else "it was not tried"
            raise WorkError(
                f"{row.name}: the baseline gave no time, so nothing can be compared with it", found=why,
                expected="the model to run in eager mode", run=f"autotune trials {row.name} --failed",
            )  # fmt: skip
        chosen = choose_finalists(complete, baselines, [c for space in self.on.spaces for c in space.defaults])
        chosen = [trial for trial in chosen if self._with_artifact(trial, trial.uid in baselines)]
        trials = {trial.uid: self.on.store.trial(trial.uid) for trial in chosen}
        self.on.progress.event("finals_started", count=len(trials))
        result = run_finals(
            self.on.bench,
            {uid: self.on.store.artifacts.open(trial.artifact) for uid, trial in trials.items() if trial.artifact},
            baselines & set(trials),
            {uid: self._tie_key(trial) for uid, trial in trials.items()},
            self.on.request.seed,
            lambda rounds, elapsed_s: self.on.progress.event("finals_round", rounds=rounds, elapsed_s=elapsed_s),
            expected_round_s=sum(2 * (trial.latency_ms or 0.0) / 1e3 for trial in trials.values()),
        )
        self.on.check_stop()
        for uid, measurement in result.measurements.items():
            self.on.store.add_measurement(uid, "finals", measurement)
        return result, trials

    def _with_artifact(self, trial: Trial, needed: bool) -> bool:
        """Whether a finalist's artifact is at hand, built again where it was dropped or damaged."""
        with contextlib.suppress(ArtifactError):
            if trial.artifact is not None and self.on.store.artifacts.open(trial.artifact):
                return True
        ((built, target),) = self.on.bench.build([trial.configuration], 1)
        self.on.check_stop()
        if built.failure is None:
            self.on.store.keep_artifact(trial.uid, self.on.store.artifacts.add(target))
            return True
        if needed:
            raise WorkError(f"the baseline could not be built again: {built.failure}", run="autotune doctor")
        self.on.progress.event("message", text=f"{trial.configuration} misses the finals: {built.failure}")
        return False

    def _tie_key(self, trial: Trial) -> tuple[Any, ...]:
        """Among equals: the smaller artifact, the simpler backend, fewer threads, then the configuration's digest."""
        names = registry.names()
        backend = trial.configuration.backend
        size = self.on.store.artifacts.size_bytes(trial.artifact) if trial.artifact else 0
        threads = trial.configuration.get("threads", 0)
        return (size, names.index(backend) if backend in names else len(names), threads, trial.configuration.digest)

    def _promote(self, result: FinalsResult, trials: Mapping[str, Trial]) -> Plan:
        row, workload = self.on.row, self.on.workload
        verdict = result.verdict
        winner = trials[verdict.winner]
        standing = verdict.of(verdict.winner)
        baseline = verdict.of(verdict.baseline)
        plan = Plan(
            uid=uuid.uuid4().hex,
            name=row.name,
            batch=row.batch,
            structure=workload.structure,
            weights=workload.weights,
            device=self.on.request.device,
            toolchain=self.on.toolchain.only(registry.backend(winner.configuration.backend).toolchain),
            objective=self.on.request.objective,
            serve_as=self.on.request.serve_as,
            configuration=winner.configuration,
            status=verdict.status,
            artifact=winner.artifact,
            latency_ms=standing.latency_ms,
            interval_ms=standing.interval_ms,
            baseline_latency_ms=baseline.latency_ms,
            speedup=1.0 if verdict.status == "baseline" else baseline.latency_ms / standing.latency_ms,
            signal_error=winner.signal_error or 0.0,
            evidence={
                "study": row.uid,
                "trial": winner.uid,
                "finalists": self._finalists(result, trials),
                "tied_with": list(verdict.tied_with),
                "rounds": verdict.rounds,
                "processes": list(result.process_of_round),
                "toolchain": self.on.toolchain.as_dict(),
            },
        )
        self.on.store.promote(plan)
        return plan

    def _finalists(self, result: FinalsResult, trials: Mapping[str, Trial]) -> list[dict[str, Any]]:
        """One entry a finalist in order of latency, with every sample that it is judged by."""
        verdict = result.verdict
        return [
            {
                "uid": one.name,
                "backend": trials[one.name].configuration.backend,
                "batch": self.on.row.batch,
                "configuration": trials[one.name].configuration.as_dict(),
                "latency_ms": one.latency_ms,
                "interval_ms": list(one.interval_ms),
                "signal_error": trials[one.name].signal_error,
                "build_s": trials[one.name].build_s,
                "is_baseline": one.name == verdict.baseline,
                "could_be_baseline": is_baseline(trials[one.name].configuration, self.on.request),
                "is_default": trials[one.name].configuration.digest in self._defaults,
                "samples_ms": result.samples_ms[one.name],
            }
            for one in verdict.finalists
        ]
