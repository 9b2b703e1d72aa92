"""The end of a study: the finals, and the plan that they promote."""

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autotune import registry
from autotune.errors import ArtifactError, WorkError
from autotune.execute.finals import FinalsResult, run_finals
from autotune.measure.block import undisturbed_of
from autotune.records.identity import FINGERPRINT
from autotune.records.plan import Plan
from autotune.records.trial import Trial
from autotune.study.context import StudyContext
from autotune.study.evidence import Finalist, FinalsEvidence
from autotune.study.rebuild import Rebuilder, best_concurrency, timed_alone
from autotune.study.space import choose_finalists, is_baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """Finals that could not decide: why, and what they measured."""

    reason: str
    finals: FinalsEvidence


class StudyFinals:
    """Measures the best few again, beside the baseline and the defaults, and keeps the winner as the plan."""

    def __init__(self, on: StudyContext) -> None:
        self.on = on
        self._defaults = on.defaults
        self._baselines: frozenset[str] = frozenset()

    def run(self) -> Plan | Undecided:
        """Decide and promote; the artifacts of those that lost are dropped.

        Finals that cannot decide promote nothing and drop nothing, so that they can be repeated.
        """
        result, trials = self._finals()
        if result.verdict.status == "undecided":
            return Undecided(reason=result.doubt, finals=self._evidence(result, trials))
        self._deployed(trials[result.verdict.winner])
        plan = self._promote(result, trials)
        self._time_alone(plan)
        self.on.store.trials.drop_losers(
            self.on.row.uid, {trial.uid for trial in trials.values() if trial.artifact == plan.artifact}
        )
        return plan

    def _finals(self) -> tuple[FinalsResult, dict[str, Trial]]:
        row = self.on.row
        complete = [
            trial for trial in self.on.store.trials.of_study(row.uid)
            if trial.state == "complete" and trial.toolchain == self.on.toolchain_of(trial)
        ]  # fmt: skip
        baselines = self._baselines_of(complete)
        if not baselines:
            failed = [
                trial
                for trial in self.on.store.trials.of_study(row.uid, failed=True)
                if is_baseline(trial.configuration, self.on.request)
            ]
            why = failed[0].failure if failed else None
            raise (why.exception if why is not None else WorkError)(
                f"{row.name}: the baseline gave no time, so nothing can be compared with it",
                found=str(why or "it was not tried"),
                expected="the model to run in eager mode", run=f"autotune trials {row.name} --failed",
            )  # fmt: skip
        chosen = choose_finalists(
            complete, baselines, [c for space in self.on.spaces for c in space.defaults], self._disturbed(complete)
        )
        ready = [self._with_artifact(trial, trial.uid in baselines) for trial in chosen]
        trials = {trial.uid: trial for trial in ready if trial is not None}
        self.on.progress.event("finals_started", count=len(trials))
        result = self._measured(trials, set(baselines) & set(trials))
        self.on.check_stop()
        for uid, measurement in result.measurements.items():
            self.on.store.trials.add_measurement(uid, "finals", measurement)
        return result, trials

    def _disturbed(self, complete: Sequence[Trial]) -> frozenset[str]:
        """The uids of the trials of which no screening sample escaped others that used the device."""
        screened = {trial.uid: self.on.store.trials.measurements(trial.uid, "screening") for trial in complete}
        return frozenset(uid for uid, taken in screened.items() if taken and not undisturbed_of(taken[-1]))

    def _measured(self, trials: Mapping[str, Trial], baselines: set[str]) -> FinalsResult:
        return run_finals(
            self.on.executor,
            {uid: self.on.store.artifacts.open(trial.artifact) for uid, trial in trials.items() if trial.artifact},
            baselines,
            {uid: self._tie_key(trial) for uid, trial in trials.items()},
            self.on.request.seed,
            lambda rounds, elapsed_s: self.on.progress.event("finals_round", rounds=rounds, elapsed_s=elapsed_s),
            objective=self.on.request.objective,
            concurrency={uid: self._concurrency(uid) for uid in trials},
        )

    def _deployed(self, winner: Trial) -> None:
        """Call the winner once as its user will, before it is promoted; raises WorkError if that is no answer."""
        if winner.artifact is None:
            return
        called = self.on.executor.deployed(self.on.store.artifacts.open(winner.artifact))
        self.on.check_stop()
        if called.failure is not None:
            raise called.failure.exception(
                f"{self.on.row.name}: the winner {winner.configuration} does not answer a deployed call",
                found=str(called.failure), expected="an answer in the form of the model's own",
                run=f"autotune reproduce {self.on.row.name} {winner.number}",
            )  # fmt: skip

    def _time_alone(self, plan: Plan) -> None:
        """Time the winner once more without its rivals, so that it can later be seen whether that still holds."""
        if plan.artifact is None:
            return
        self.on.progress.event("message", text="timing the winner alone, to compare with later (autotune bench)")
        artifact = self.on.store.artifacts.open(plan.artifact)
        alone = timed_alone(self.on.executor, artifact, self.on.request.seed, plan.kernels)
        self.on.check_stop()
        self.on.store.trials.add_measurement(plan.evidence.trial, "alone", alone)

    def _baselines_of(self, complete: Sequence[Trial]) -> frozenset[str]:
        """The uids of the baselines: of the user's own module or, if that gave no time, of its captured graph."""
        for stand_in in (False, True):
            found = {t.uid for t in complete if is_baseline(t.configuration, self.on.request, stand_in=stand_in)}
            if found:
                break
        self._baselines = frozenset(found)
        return self._baselines

    def _with_artifact(self, trial: Trial, needed: bool) -> Trial | None:
        """The finalist with its artifact at hand, built and judged again if that was dropped or damaged.

        ``None`` if it does not pass any more, which only the baseline must.
        """
        with contextlib.suppress(ArtifactError):
            if trial.artifact is not None and self.on.store.artifacts.open(trial.artifact):
                return trial
        rebuilder = Rebuilder(
            executor=self.on.executor, store=self.on.store, supply=self.on.supply, objective=self.on.request.objective,
            seed=self.on.request.seed, check_stop=self.on.check_stop,
        )  # fmt: skip
        with rebuilder.built(trial.configuration) as again:
            if again.failure is None:
                self.on.store.trials.keep_artifact(trial.uid, again.artifact, kernels=again.kernels)
                return replace(trial, artifact=again.artifact, kernels=again.kernels, signal_error=again.signal_error)
        if needed:
            raise again.failure.exception(
                f"{self.on.row.name}: the baseline was built again for the finals and does not hold",
                found=str(again.failure), expected="the model in eager mode to pass the study's own gate",
                run=f"autotune trials {self.on.row.name}",
            )  # fmt: skip
        self.on.progress.event("message", text=f"{trial.configuration} misses the finals: {again.failure}")
        return None

    def _concurrency(self, uid: str) -> int:
        return best_concurrency(self.on.store, uid)

    def _tie_key(self, trial: Trial) -> tuple[Any, ...]:
        """Among equals: the smaller artifact, the simpler backend, fewer threads, then the configuration's digest."""
        names = registry.names()
        backend = trial.configuration.backend
        size = self.on.store.artifacts.size_bytes(trial.artifact) if trial.artifact else 0
        threads = trial.configuration.get("threads", 0)
        return (size, names.index(backend) if backend in names else len(names), threads, trial.configuration.digest)

    def _promote(self, result: FinalsResult, trials: Mapping[str, Trial]) -> Plan:
        row, workload = self.on.row, self.on.workload
        winner, finals = trials[result.verdict.winner], self._evidence(result, trials)
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
            artifact=winner.artifact,
            kernels=winner.kernels,
            form=row.identity.plan.form,
            fingerprint=FINGERPRINT,
            **finals.figures(),
            evidence=finals.record(
                study=row.uid,
                inputs=tuple(asdict(spec) for spec in self.on.request.inputs),
                seed=self.on.request.seed,
                toolchain=self.on.toolchain,
            ),
        )
        self.on.store.plans.promote(plan)
        return plan

    def _evidence(self, result: FinalsResult, trials: Mapping[str, Trial]) -> FinalsEvidence:
        return FinalsEvidence(
            result=result, finalists={uid: self._finalist(uid, trial) for uid, trial in trials.items()},
            objective=self.on.request.objective, batch=self.on.row.batch,
        )  # fmt: skip

    def _finalist(self, uid: str, trial: Trial) -> Finalist:
        return Finalist(
            configuration=trial.configuration,
            signal_error=trial.signal_error,
            build_s=trial.build_s,
            could_be_baseline=uid in self._baselines,
            is_default=trial.configuration.digest in self._defaults,
            concurrency=self._concurrency(uid),
        )
