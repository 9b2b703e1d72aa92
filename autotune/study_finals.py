"""The end of a study: the finals, and the plan that they promote."""

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autotune import registry
from autotune.errors import ArtifactError, WorkError
from autotune.execute.finals import ALONE, FinalsResult, run_finals, time_alone
from autotune.measure.percentiles import summary
from autotune.measure.statistics import median_interval
from autotune.measure.verdict import RoundMedians
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
        self._time_alone(plan)
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
        result = self._measured(trials, baselines & set(trials))
        self.on.check_stop()
        for uid, measurement in result.measurements.items():
            self.on.store.add_measurement(uid, "finals", measurement)
        return result, trials

    def _measured(self, trials: Mapping[str, Trial], baselines: set[str]) -> FinalsResult:
        return run_finals(
            self.on.bench,
            {uid: self.on.store.artifacts.open(trial.artifact) for uid, trial in trials.items() if trial.artifact},
            baselines,
            {uid: self._tie_key(trial) for uid, trial in trials.items()},
            self.on.request.seed,
            lambda rounds, elapsed_s: self.on.progress.event("finals_round", rounds=rounds, elapsed_s=elapsed_s),
            objective=self.on.request.objective,
            concurrency={uid: self._concurrency(uid) for uid in trials},
        )

    def _time_alone(self, plan: Plan) -> None:
        """Time the winner once more without its rivals, so that it can later be seen whether that still holds."""
        if plan.artifact is None:
            return
        self.on.progress.event("message", text="timing the winner alone, to compare with later (autotune bench)")
        artifact = self.on.store.artifacts.open(plan.artifact)
        result = time_alone(self.on.bench, artifact, self.on.request.seed)
        self.on.check_stop()
        self.on.store.add_measurement(str(plan.evidence["trial"]), "alone", result.measurements[ALONE])

    def _with_artifact(self, trial: Trial, needed: bool) -> bool:
        """Whether a finalist's artifact is at hand, built again where it was dropped or damaged."""
        with contextlib.suppress(ArtifactError):
            if trial.artifact is not None and self.on.store.artifacts.open(trial.artifact):
                return True
        ((built, target),) = self.on.bench.build([trial.configuration], 1)
        self.on.check_stop()
        if built.failure is None:
            with self.on.store.artifacts.kept(target) as digest:
                self.on.store.keep_artifact(trial.uid, digest)
            return True
        if needed:
            raise WorkError(f"the baseline could not be built again: {built.failure}", run="autotune doctor")
        self.on.progress.event("message", text=f"{trial.configuration} misses the finals: {built.failure}")
        return False

    def _concurrency(self, uid: str) -> int:
        """How many requests a trial had in flight where its throughput was best."""
        screened = self.on.store.measurements(uid, "screening")
        return int(screened[-1].conditions.get("throughput", {}).get("concurrency", 1)) if screened else 1

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
        latencies = RoundMedians(result.samples_ms)
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
            latency_ms=latencies.figure(verdict.winner),
            interval_ms=median_interval(latencies.of(verdict.winner)),
            baseline_latency_ms=latencies.figure(verdict.baseline),
            speedup=1.0 if verdict.status == "baseline" else verdict.speedup,
            signal_error=winner.signal_error or 0.0,
            evidence={
                "study": row.uid,
                "trial": winner.uid,
                "objective": self._objective(result),
                "finalists": self._finalists(result, trials),
                "inputs": [asdict(spec) for spec in self.on.request.inputs],
                "seed": self.on.request.seed,
                "tied_with": list(verdict.tied_with),
                "rounds": verdict.rounds,
                "processes": list(result.process_of_round),
                "toolchain": self.on.toolchain.as_dict(),
            },
        )
        self.on.store.promote(plan)
        return plan

    def _objective(self, result: FinalsResult) -> dict[str, Any]:
        """What was minimised, and what the plan and the baseline came to."""
        verdict, objective = result.verdict, self.on.request.objective
        winner, baseline = verdict.of(verdict.winner), verdict.of(verdict.baseline)
        found = {
            "name": objective.name,
            "unit": objective.unit,
            "value": winner.figure,
            "interval": list(winner.interval),
            "baseline": baseline.figure,
        }
        if objective.name == "throughput":
            found["concurrency"] = self._concurrency(verdict.winner)
            found["items_per_s"] = 1e3 / winner.figure
        return found

    def _finalists(self, result: FinalsResult, trials: Mapping[str, Trial]) -> list[dict[str, Any]]:
        """One entry a finalist in order of latency, with every sample that it is judged by."""
        verdict, latencies = result.verdict, RoundMedians(result.samples_ms)
        found: list[dict[str, Any]] = [
            {
                "uid": one.name,
                "backend": trials[one.name].configuration.backend,
                "batch": self.on.row.batch,
                "configuration": trials[one.name].configuration.as_dict(),
                "latency_ms": latencies.figure(one.name),
                "interval_ms": list(median_interval(latencies.of(one.name))),
                "percentiles": summary([ms for block in result.samples_ms[one.name] for ms in block or ()]).as_dict(),
                "objective_value": one.figure,
                "objective_interval": list(one.interval),
                "flags": list(result.flags[one.name]),
                "signal_error": trials[one.name].signal_error,
                "build_s": trials[one.name].build_s,
                "is_baseline": one.name == verdict.baseline,
                "could_be_baseline": is_baseline(trials[one.name].configuration, self.on.request),
                "is_default": trials[one.name].configuration.digest in self._defaults,
                "utilisation": result.utilisation.get(one.name),
                "samples_ms": result.samples_ms[one.name],
            }
            for one in verdict.finalists
        ]
        if self.on.request.objective.name not in ("latency_p50", "latency_p99"):
            for entry in found:
                entry["figures"] = result.figures[str(entry["uid"])]
        return found
