"""The end of a study: the finals, and the plan that they promote: StudyFinals."""

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from autotune import registry
from autotune.errors import ArtifactError, WorkError
from autotune.execute.finals import FinalsResult, run_finals
from autotune.measure.block import undisturbed_of
from autotune.records.identity import FINGERPRINT
from autotune.records.plan import Plan
from autotune.records.trial import Trial
from autotune.study.carry import carried_records
from autotune.study.context import StudyContext
from autotune.study.evidence import Finalist, FinalsEvidence
from autotune.study.rebuild import Rebuilder, best_concurrency, timed_alone
from autotune.study.space import choose_finalists, is_baseline, is_unserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """Finals that could not decide, with the reason and their measurements."""

    reason: str
    finals: FinalsEvidence


class StudyFinals:
    """Measures the best few again, with the baseline and the defaults, and promotes the winner to the plan.

    A simulation overrides the three methods that use the device: ``_measured``, ``_call_deployed``, ``_time_alone``.
    """

    def __init__(self, context: StudyContext) -> None:
        self.context = context
        self._defaults = context.defaults
        self._baselines: frozenset[str] = frozenset()
        self._chosen: frozenset[str] = frozenset()

    def run(self) -> Plan | Undecided:
        """Measure the finalists, promote the winner, and drop the artifacts of the others.

        Finals that cannot decide promote nothing and drop nothing, so that they can be repeated.
        """
        result, trials = self._finals()
        if result.verdict.status == "undecided":
            return Undecided(reason=result.doubt, finals=self._evidence(result, trials))
        self._call_deployed(trials[result.verdict.winner])
        plan = self._promote(result, trials)
        self._time_alone(plan)
        self.context.store.trials.drop_losers(
            self.context.row.uid, {trial.uid for trial in trials.values() if trial.artifact == plan.artifact}
        )
        return plan

    def _finals(self) -> tuple[FinalsResult, dict[str, Trial]]:
        row = self.context.row
        complete = [trial for trial in self._tried() if trial.state == "complete"]
        baselines = self._baselines_of(complete)
        if not baselines:
            failed = [
                trial
                for trial in self.context.store.trials.of_study(row.uid, failed=True)
                if is_baseline(trial.configuration, self.context.request)
            ]
            failure = failed[0].failure if failed else None
            raise (failure.exception if failure is not None else WorkError)(
                f"{row.name}: the baseline was not timed, so nothing can be compared with it",
                found=str(failure or "it was not tried"),
                expected=self._baseline_text, run=f"autotune trials {row.name} --failed",
            )  # fmt: skip
        defaults = [configuration for space in self.context.spaces for configuration in space.defaults]
        digests = {plan.configuration.digest for plan in self.context.carried}
        carried = {trial.uid for trial in complete if trial.configuration.digest in digests}
        chosen = choose_finalists(
            complete, baselines, defaults, self._disturbed(complete), carried, self._unserved(complete)
        )
        self._chosen = frozenset(trial.uid for trial in chosen)
        ready = [self._with_artifact(trial, trial.uid in baselines) for trial in chosen]
        trials = {trial.uid: trial for trial in ready if trial is not None}
        self.context.progress.event("finals_started", count=len(trials))
        result = self._measured(trials, set(baselines) & set(trials))
        self.context.check_stop()
        for uid, measurement in result.measurements.items():
            self.context.store.trials.add_measurement(uid, "finals", measurement)
        return result, trials

    @property
    def _baseline_text(self) -> str:
        serve_as = self.context.request.serve_as
        return "the model to run in eager mode" if serve_as == "any" else f"the plainest {serve_as} file to run"

    def _unserved(self, trials: Iterable[Trial]) -> frozenset[str]:
        return frozenset(trial.uid for trial in trials if is_unserved(trial.configuration, self.context.request))

    def _tried(self) -> list[Trial]:
        """Return the trials of the study under the present toolchain."""
        trials = self.context.store.trials.of_study(self.context.row.uid)
        return [trial for trial in trials if trial.toolchain == self.context.toolchain_of(trial)]

    def _disturbed(self, complete: Sequence[Trial]) -> frozenset[str]:
        """Return the uids of the trials during whose whole screening other processes used the device."""
        screened = {trial.uid: self.context.store.trials.measurements(trial.uid, "screening") for trial in complete}
        return frozenset(uid for uid, stored in screened.items() if stored and not undisturbed_of(stored[-1]))

    def _measured(self, trials: Mapping[str, Trial], baselines: set[str]) -> FinalsResult:
        return run_finals(
            self.context.executor,
            {uid: self.context.store.artifacts.open(trial.artifact) for uid, trial in trials.items() if trial.artifact},
            baselines,
            {uid: self._tie_key(trial) for uid, trial in trials.items()},
            self.context.request.seed,
            lambda rounds, elapsed_s: self.context.progress.event("finals_round", rounds=rounds, elapsed_s=elapsed_s),
            objective=self.context.request.objective,
            concurrency={uid: self._concurrency(uid) for uid in trials},
            beside=self._unserved(trials.values()),
        )

    def _call_deployed(self, winner: Trial) -> None:
        """Call the winner once as its user will, before it is promoted; raises WorkError if it does not answer."""
        if winner.artifact is None:
            return
        called = self.context.executor.deployed(self.context.store.artifacts.open(winner.artifact))
        self.context.check_stop()
        if called.failure is not None:
            raise called.failure.exception(
                f"{self.context.row.name}: the winner {winner.configuration} does not answer a deployed call",
                found=str(called.failure), expected="an answer in the form of the model's own",
                run=f"autotune reproduce {self.context.row.name} {winner.number}",
            )  # fmt: skip

    def _time_alone(self, plan: Plan) -> None:
        """Time the winner once more without the other finalists; ``autotune bench`` compares with that later."""
        if plan.artifact is None:
            return
        self.context.progress.event("message", text="timing the winner alone, to compare with later (autotune bench)")
        artifact = self.context.store.artifacts.open(plan.artifact)
        alone = timed_alone(self.context.executor, artifact, self.context.request.seed, plan.kernels)
        self.context.check_stop()
        self.context.store.trials.add_measurement(plan.evidence.trial, "alone", alone)

    def _baselines_of(self, complete: Sequence[Trial]) -> frozenset[str]:
        """Return the uids of the baselines: the user's own module or, if it has no time, its captured graph.

        In a study for a serving format they are its plainest files.
        """
        for stand_in in (False, True):
            self._baselines = frozenset(
                trial.uid
                for trial in complete
                if is_baseline(trial.configuration, self.context.request, stand_in=stand_in)
            )
            if self._baselines:
                break
        return self._baselines

    def _with_artifact(self, trial: Trial, needed: bool) -> Trial | None:
        """Return a finalist whose artifact is in the store, built and judged again if it was dropped or damaged.

        ``None`` if it does not pass any more; if it is ``needed``, its failure is raised as an error instead.
        """
        with contextlib.suppress(ArtifactError):
            if trial.artifact is not None and self.context.store.artifacts.open(trial.artifact):
                return trial
        rebuilder = Rebuilder(
            executor=self.context.executor, store=self.context.store, supply=self.context.supply,
            objective=self.context.request.objective, seed=self.context.request.seed,
            check_stop=self.context.check_stop,
        )  # fmt: skip
        with rebuilder.built(trial.configuration) as again:
            if again.failure is None:
                self.context.store.trials.keep_artifact(trial.uid, again.artifact, kernels=again.kernels)
                return replace(trial, artifact=again.artifact, kernels=again.kernels, signal_error=again.signal_error)
        if needed:
            raise again.failure.exception(
                f"{self.context.row.name}: the baseline was built again for the finals and does not pass",
                found=str(again.failure), expected=f"{self._baseline_text}, and to pass the study's own gate",
                run=f"autotune trials {self.context.row.name}",
            )  # fmt: skip
        self.context.progress.event("message", text=f"{trial.configuration} is left out of the finals: {again.failure}")
        return None

    def _concurrency(self, uid: str) -> int:
        return best_concurrency(self.context.store, uid)

    def _tie_key(self, trial: Trial) -> tuple[object, ...]:
        """Return the key that decides a tie.

        A configuration that was found here comes before a carried one. Then the artifact's size, the simpler backend,
        the number of threads and the digest decide.
        """
        names = registry.names()
        backend = trial.configuration.backend
        size = self.context.store.artifacts.size_bytes(trial.artifact) if trial.artifact else 0
        threads = trial.configuration.get("threads", 0)
        is_carried = any(plan.configuration == trial.configuration for plan in self.context.carried)
        return (
            is_carried,
            size,
            names.index(backend) if backend in names else len(names),
            threads,
            trial.configuration.digest,
        )

    def _promote(self, result: FinalsResult, trials: Mapping[str, Trial]) -> Plan:
        row, workload = self.context.row, self.context.workload
        winner, finals = trials[result.verdict.winner], self._evidence(result, trials)
        plan = Plan(
            uid=uuid.uuid4().hex,
            name=row.name,
            batch=row.batch,
            structure=workload.structure,
            weights=workload.weights,
            device=self.context.request.device,
            toolchain=self.context.toolchain.only(registry.backend(winner.configuration.backend).toolchain),
            objective=self.context.request.objective,
            serve_as=self.context.request.serve_as,
            configuration=winner.configuration,
            artifact=winner.artifact,
            kernels=winner.kernels,
            form=row.identity.plan.form,
            fingerprint=FINGERPRINT,
            **finals.figures(),
            evidence=finals.record(
                study=row.uid,
                inputs=tuple(asdict(spec) for spec in self.context.request.inputs),
                seed=self.context.request.seed,
                toolchain=self.context.toolchain,
                carried=carried_records(self.context.carried, self._tried(), self._chosen, result.samples_ms),
                known_at_start=self.context.store.studies.get(row.uid).start,
            ),
        )
        plan = self.context.store.plans.promote(plan)
        return plan

    def _evidence(self, result: FinalsResult, trials: Mapping[str, Trial]) -> FinalsEvidence:
        return FinalsEvidence(
            result=result, finalists={uid: self._finalist(uid, trial) for uid, trial in trials.items()},
            objective=self.context.request.objective, batch=self.context.row.batch,
        )  # fmt: skip

    def _finalist(self, uid: str, trial: Trial) -> Finalist:
        return Finalist(
            configuration=trial.configuration,
            signal_error=trial.signal_error,
            build_s=trial.build_s,
            could_be_baseline=uid in self._baselines,
            is_default=trial.configuration.digest in self._defaults,
            is_unserved=is_unserved(trial.configuration, self.context.request),
            concurrency=self._concurrency(uid),
        )
