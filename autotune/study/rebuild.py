"""Builds of stored configurations: a finalist whose artifact is gone (Rebuilder), or a plan (StudyRebuild)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from autotune import registry
from autotune.database.store import Store
from autotune.execute.executor import Executor
from autotune.execute.finals import ALONE, FinalsResult, run_finals, time_alone
from autotune.progress import Progress
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.evidence import FinalistRecord
from autotune.records.identity import FINGERPRINT
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.trial import Failure, Measurement
from autotune.records.workload import Workload
from autotune.study.evidence import Finalist, FinalsEvidence
from autotune.study.kernel_supply import KernelSupply


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A configuration that was built and judged again: its artifact, or the failure of its build or its check.

    ``kernels`` is the digest of the tuned kernels that the build got, empty if it got none.
    """

    artifact: str = ""
    kernels: str = ""
    signal_error: float | None = None
    build_s: float | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilder:
    """Builds configurations again with the kernels that the database has now, and judges each by the gate.

    ``executor`` has the reference already. ``check_stop`` raises StudyInterruptedError if the study was asked to stop.
    """

    executor: Executor
    store: Store
    supply: KernelSupply
    objective: Objective
    seed: int
    check_stop: Callable[[], None]

    @contextlib.contextmanager
    def built(self, configuration: Configuration) -> Iterator[Rebuilt]:
        """Build and judge a configuration; after this context its artifact is dropped, unless a row names it."""
        tuned = self.supply.of(configuration)
        kernels = "" if tuned is None else tuned.digest
        ((built, target),) = self.executor.build([configuration], 1, kernels=lambda _: tuned)
        stored = ""
        try:
            self.check_stop()
            if built.failure is not None:
                yield Rebuilt(kernels=kernels, failure=built.failure)
                return
            with self.store.artifacts.kept(target) as stored:
                artifact = self.store.artifacts.open(stored)
                judged = self.executor.measure(artifact, self.objective, self.seed, check_only=True)
                self.check_stop()
                yield Rebuilt(
                    artifact=stored,
                    kernels=kernels,
                    signal_error=None if judged.value is None else judged.value.signal_error,
                    build_s=built.answer.build_s,
                    failure=judged.failure,
                )
        finally:
            self.executor.discard(target)
            if stored:
                self.store.trials.drop_unnamed(stored)


class _DoesNotHold(Exception):
    """A stored plan cannot be kept, for the reason in the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRebuild:
    """Builds a stored plan again, for other weights or another toolchain, and keeps its figures true."""

    store: Store
    executor: Executor
    supply: KernelSupply
    toolchain: Toolchain
    seed: int
    progress: Progress
    check_stop: Callable[[], None]

    def rebuild(self, plan: Plan, workload: Workload) -> Plan | None:
        """Build and judge a stored configuration again; time it again if its kernels have changed.

        Returns ``None`` if it does not pass the gate or, with these kernels, does not beat the baseline. Then a search
        is needed.
        """
        self.executor.reference(plan.objective, [plan.configuration.backend])
        with self._rebuilder(plan).built(plan.configuration) as again:
            try:
                changes = self._changes(plan, again)
            except _DoesNotHold as why:
                self._say(f"{plan.name}: the stored plan does not hold: {why}")
                return None
            entries = self.toolchain.only(registry.backend(plan.configuration.backend).toolchain)
            kept = self.store.plans.replace_artifact(plan.uid, again.artifact, workload.weights, entries, **changes)
        if again.kernels != plan.kernels:
            self._time_alone(kept)
        return kept

    def _changes(self, plan: Plan, again: Rebuilt) -> dict[str, object]:
        """Return the fields of the plan that the new artifact changes; raises _DoesNotHold."""
        if again.failure is not None:
            raise _DoesNotHold(str(again.failure))
        changes: dict[str, object] = {
            "signal_error": again.signal_error or 0.0,
            "kernels": again.kernels,
            "form": self.executor.form(),
            "fingerprint": FINGERPRINT,
        }
        return changes if again.kernels == plan.kernels else {**changes, **self._timed_again(plan, again)}

    def _rebuilder(self, plan: Plan) -> Rebuilder:
        return Rebuilder(
            executor=self.executor, store=self.store, supply=self.supply, objective=plan.objective, seed=self.seed,
            check_stop=self.check_stop,
        )  # fmt: skip

    def _timed_again(self, plan: Plan, again: Rebuilt) -> dict[str, object]:
        """Return the plan's figures and evidence from finals against its baseline; raises _DoesNotHold."""
        self._say(f"{plan.name}: the plan is built with other kernels than it was timed with; timing it again")
        entries = {finalist.uid: finalist for finalist in plan.evidence.finalists}
        uid = plan.evidence.trial
        baseline = next((name for name, entry in entries.items() if entry.is_baseline), None)
        if baseline is None or uid not in entries:
            raise _DoesNotHold("its evidence names no baseline to compare it with")
        finalists = {uid: _finalist(entries[uid], again, self._concurrency(uid))}
        artifacts = {uid: self.store.artifacts.open(again.artifact)}
        with contextlib.ExitStack() as held:
            if baseline != uid:
                other = held.enter_context(self._rebuilder(plan).built(entries[baseline].configuration))
                if other.failure is not None:
                    raise _DoesNotHold(f"its baseline cannot be compared with: {other.failure}")
                finalists[baseline] = _finalist(entries[baseline], other, self._concurrency(baseline))
                artifacts[baseline] = self.store.artifacts.open(other.artifact)
            result = self._finals(plan, artifacts, baseline, finalists)
        if result.verdict.status == "undecided":
            raise _DoesNotHold(f"with the present kernels it cannot be distinguished from the baseline: {result.doubt}")
        if result.verdict.winner != uid:
            raise _DoesNotHold("with the present kernels it does not beat the baseline")
        finals = FinalsEvidence(result=result, finalists=finalists, objective=plan.objective, batch=plan.batch)
        earlier = plan.evidence
        evidence = finals.record(
            study=earlier.study, inputs=earlier.inputs, seed=earlier.seed, toolchain=self.toolchain,
            known_at_start=earlier.known_at_start, beside=earlier.beside,
        )  # fmt: skip
        return {**finals.figures(), "evidence": evidence}

    def _finals(
        self, plan: Plan, artifacts: Mapping[str, Path], baseline: str, finalists: Mapping[str, Finalist]
    ) -> FinalsResult:
        event = self.progress.event
        event("finals_started", count=len(artifacts))
        result = run_finals(
            self.executor,
            artifacts,
            {baseline},
            {uid: (finalist.configuration.digest,) for uid, finalist in finalists.items()},
            self.seed,
            lambda rounds, elapsed_s: event("finals_round", rounds=rounds, elapsed_s=elapsed_s),
            objective=plan.objective,
            concurrency={uid: finalist.concurrency for uid, finalist in finalists.items()},
        )
        self.check_stop()
        return result

    def _time_alone(self, plan: Plan) -> None:
        """Time a plan without its baseline if its trial is in this database; ``autotune bench`` compares with this."""
        trial = plan.evidence.trial
        if plan.artifact is not None and self.store.trials.measurements(trial):
            alone = timed_alone(self.executor, self.store.artifacts.open(plan.artifact), self.seed, plan.kernels)
            self.check_stop()
            self.store.trials.add_measurement(trial, "alone", alone)

    def _concurrency(self, uid: str) -> int:
        return best_concurrency(self.store, uid)

    def _say(self, text: str) -> None:
        self.progress.event("message", text=text)


def best_concurrency(store: Store, uid: str) -> int:
    """Return the number of requests in flight at a trial's best throughput; 1 if throughput was not measured."""
    screened = store.trials.measurements(uid, "screening")
    return int(screened[-1].conditions.get("throughput", {}).get("concurrency", 1)) if screened else 1


def timed_alone(executor: Executor, artifact: Path, seed: int, kernels: str) -> Measurement:
    """Time an artifact alone, as it runs when it is deployed; ``kernels`` is stored in the conditions."""
    measurement = time_alone(executor, artifact, seed).measurements[ALONE]
    return replace(measurement, conditions={**measurement.conditions, "kernels": kernels})


def _finalist(entry: FinalistRecord, again: Rebuilt, concurrency: int) -> Finalist:
    """Return a finalist of earlier finals as it was built and judged now."""
    return Finalist(
        configuration=entry.configuration,
        signal_error=again.signal_error,
        build_s=again.build_s,
        could_be_baseline=entry.could_be_baseline,
        is_default=entry.is_default,
        concurrency=concurrency,
    )
