"""The loop of a study: the only place that sees the whole road from a model to its plan."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.configuration import Configuration
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.errors import ArtifactError, StudyInterruptedError, WorkError
from autotune.execute.bench import BUILD_TIMEOUT_S, Bench
from autotune.execute.finals import FinalsResult, run_finals
from autotune.execute.server import StepResult, WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.measure.statistics import median
from autotune.plan import Plan
from autotune.runtime import toolchain as versions
from autotune.search.search import Search
from autotune.space import SearchSpace
from autotune.study_memory import as_outcome, artifact_fits, asks_more, known_outcome, outcome, package_versions, request_digest
from autotune.study_request import Progress, Silent, StudyOutcome, StudyRequest
from autotune.study_space import choose_finalists, is_baseline, search_spaces
from autotune.trial import Measurement, Trial, TrialState
from autotune.workload import Workload

log = logging.getLogger(__name__)

SHORTEST_BUILD_S = 60.0
"""A build may take what is left of the budget, and at least so many seconds."""

MOST_SKIPPED = 16
"""After so many proposals in a row that would build for too long the search ends."""

ABANDON_FACTOR = 4.0
"""A candidate whose fastest call takes longer than so many times the best median so far is not timed to the end;
what always enters the finals, the baseline and the defaults, is."""


def run_study(request: StudyRequest, store: Store, progress: Progress | None = None) -> StudyOutcome:
    """Search, or go on searching, for the fastest plan; a finished study answers with its plan and measures nothing.

    Raises StudyInterruptedError on SIGINT or SIGTERM; what was finished is kept and the same call goes on.
    """
    progress = progress or Silent()
    known = known_outcome(request, store)
    if known is not None:
        progress.event("finished", outcome=known)
        return known
    search_spaces(request, None)  # refuses what leaves no candidate before anything is begun
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="autotune-"))
    try:
        with WorkerServer(folder) as server, _stoppable(server) as stop:
            found = Study(request, store, progress, server, folder, stop).run(begin)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.event("finished", outcome=found)
    return found


class Study:
    """One run of a study, from capture to plan."""

    def __init__(
        self, request: StudyRequest, store: Store, progress: Progress, server: WorkerServer, folder: Path,
        stop: threading.Event,
    ) -> None:
        self.request, self.store, self.progress, self.stop = request, store, progress, stop
        self.device = request.device
        self.split = TimeSplit()
        self.bench = Bench(server, folder, self.device, self.split)
        self.toolchain = versions.current(self.device)
        self.server, self.folder = server, folder
        self._build_s: dict[str, float] = {}
        self._best_ms: float | None = None
        self._spaces: dict[str, SearchSpace] = {}
        self._defaults: set[str] = set()

    def run(self, begin: float) -> StudyOutcome:
        """The whole road; ``begin`` is when the caller began to wait."""
        workload, sources = self._capture()
        spaces = search_spaces(self.request, workload)
        self._defaults = {configuration.digest for space in spaces for configuration in space.defaults}
        row = self._begin(workload, spaces, sources)
        if plan := self._finished_plan(row, workload):
            asked = {"trials": self.request.trials, "budget_s": self.request.budget_s}
            self.store.finish_study(row.uid, {**row.timings, "asked": {**row.timings.get("asked", {}), **asked}})
            found = self.store.trials(plan.evidence.get("study", row.uid))
            return outcome(plan, found, cached=True, seconds=time.monotonic() - begin)
        search = self._search(row, workload, spaces)
        self._check_stop()
        result, trials = self._finals(row, spaces)
        plan = self._promote(row, workload, result, trials)
        self.store.drop_losers(row.uid, {trial.uid for trial in trials.values() if trial.artifact == plan.artifact})
        end = time.monotonic()
        split = self.split.seconds(begin, end)
        settings = {"trials": self.request.trials, "budget_s": self.request.budget_s, "exhausted": search.exhausted}
        self.store.finish_study(row.uid, {"split": split, "seconds": end - begin, "asked": settings})
        return outcome(plan, self.store.trials(row.uid), cached=False, seconds=end - begin, split=split)

    # Capture

    def _capture(self) -> tuple[Workload, dict[str, Any]]:
        request = self.request
        self.progress.event("capture", name=request.name, batch=request.batch)
        sources: dict[str, Any] = {}
        if request.prepared is not None:
            shutil.copytree(request.prepared, self.bench.model)
        else:
            assert request.factory is not None  # the record refuses a request without either
            answer = self.bench.prepare(request.name, request.batch, request.factory, request.inputs, request.seed)
            sources = {"files": answer["sources"], "packages": package_versions(answer["imported"])}
        workload = self.bench.workload()
        self._check_stop()
        self.progress.event("captured", workload=workload)
        return workload, sources

    def _begin(self, workload: Workload, spaces: Sequence[SearchSpace], sources: Mapping[str, Any]) -> StudyRow:
        settings = {"request": request_digest(self.request), "sources": sources, "seed": self.request.seed}
        digest = hashlib.sha256(json.dumps([space.digest for space in spaces]).encode()).hexdigest()
        request = self.request
        return self.store.begin_study(
            request.name, workload, self.device, request.objective, request.serve_as, digest, request.seed, settings
        )

    def _finished_plan(self, row: StudyRow, workload: Workload) -> Plan | None:
        """The plan of a study that is finished, or that was finished for other weights of the same structure."""
        rows = [
            other for other in self.store.studies(row.name, row.batch)
            if other.state == "finished" and not asks_more(self.request, other)
            and (other.structure, other.device_class, other.objective, other.serve_as, other.space_digest, other.seed)
            == (row.structure, row.device_class, row.objective, row.serve_as, row.space_digest, row.seed)
        ]  # fmt: skip
        plan = self.store.find_plan(
            workload.structure, row.device_class, self.request.objective, self.request.serve_as, workload.weights
        )
        if plan is not None and plan.evidence.get("study") in {other.uid for other in rows}:
            if artifact_fits(plan, workload.weights, self.toolchain, self.store):
                return plan
            self.progress.event("message", text=f"{plan.name}: rebuilding the stored plan {plan.configuration}")
            return self.rebuild(plan, workload)
        if row.state == "finished":
            self.store.reopen_study(row.uid)
        return None

    def rebuild(self, plan: Plan, workload: Workload) -> Plan | None:
        """Build a stored configuration again and judge it again; ``None`` (search instead) where it does not pass."""
        self.bench.reference()
        ((built, target),) = self.bench.build([plan.configuration], 1)
        self._check_stop()
        if built.failure is None:
            digest = self.store.artifacts.add(target)
            checked = self.bench.measure(
                self.store.artifacts.open(digest), plan.objective, self.request.seed, check_only=True
            )
            self._check_stop()
            if checked.failure is None:
                entries = self.toolchain.only(registry.backend(plan.configuration.backend).toolchain)
                return self.store.replace_plan_artifact(plan.uid, digest, workload.weights, entries)
            built = checked
        self.progress.event("message", text=f"{plan.name}: the stored plan does not hold: {built.failure}")
        return None

    # Search

    def _search(self, row: StudyRow, workload: Workload, spaces: Sequence[SearchSpace]) -> Search:
        search = Search(spaces, self.request.seed)
        done = [trial for trial in self.store.trials(row.uid) if trial.toolchain == self._toolchain_of(trial)]
        for trial in done:
            if trial.state != "running":
                search.observe(as_outcome(trial))
                self._build_s[trial.configuration.backend] = max(
                    self._build_s.get(trial.configuration.backend, 0.0), trial.build_s or 0.0
                )
        interrupted = [trial.configuration for trial in done if trial.state == "running"]
        self._spaces = {space.backend: space for space in spaces}
        spent, count = row.active_s, sum(not trial.reused for trial in done if trial.state != "running")
        referenced = False
        while count < self.request.trials and spent < self.request.budget_s:
            batch = self._next_batch(search, interrupted, self.request.trials - count, self.request.budget_s - spent)
            if not batch:
                break
            if not referenced:
                self.bench.reference()
                referenced = True
            begin = time.monotonic()
            finished = self._generation(row, workload, batch, max(SHORTEST_BUILD_S, self.request.budget_s - spent))
            for trial in finished:
                search.observe(as_outcome(trial))
            count += sum(not trial.reused for trial in finished)
            elapsed = time.monotonic() - begin
            spent += elapsed
            self.store.add_active_time(row.uid, elapsed)
            self._check_stop()
        if not referenced:
            self.bench.reference()
        return search

    def _next_batch(
        self, search: Search, interrupted: list[Configuration], trials: int, budget_s: float
    ) -> list[Configuration]:
        """What to build together: one on a CPU; on a GPU all defaults, later as many as its host's cores carry.

        What is expected to build longer than the budget that is left is not begun.
        """
        batch: list[Configuration] = []
        skipped: list[Configuration] = []
        while len(batch) < trials and len(skipped) < MOST_SKIPPED:
            known = interrupted.pop(0) if interrupted else search.propose([*batch, *skipped])
            if known is None:
                break
            first = known.digest in self._defaults
            if len(batch) >= self.parallel and not first:
                break
            if batch and not first and batch[0].digest in self._defaults:
                break  # the rest of the search learns from the defaults
            expected_s = self._build_s.get(known.backend, 0.0) * self._spaces[known.backend].build_cost(known)
            (batch if expected_s <= budget_s else skipped).append(known)
            if self.parallel == 1 and batch:
                break
        return batch

    @property
    def parallel(self) -> int:
        """How many builds run at once: a large one keeps about two cores busy."""
        return 1 if self.device.kind == "cpu" else max(1, self.device.cores // 2)

    def _generation(
        self, row: StudyRow, workload: Workload, batch: list[Configuration], limit_s: float
    ) -> list[Trial]:
        """Build configurations together, then check and time them one after the other."""
        finished: list[Trial] = []
        claimed: list[Trial] = []
        for configuration in batch:
            trial = self._earlier(row, workload, configuration)
            if trial is not None:
                finished.append(trial)
                continue
            trial = self.store.claim_trial(row.uid, configuration, self._digest(configuration.backend))
            self.progress.event("trial_started", number=trial.number, configuration=configuration)
            claimed.append(trial)
        workers = 1 if self.parallel == 1 else max(1, len(claimed))
        builds = self.bench.build([trial.configuration for trial in claimed], workers, limit_s) if claimed else []
        for trial, (built, target) in zip(claimed, builds, strict=True):
            if self.stop.is_set():
                break
            done, measurement = self._finish(trial, built, target)
            if self.stop.is_set():
                break
            self.store.finish_trial(done, {"screening": measurement} if measurement else {})
            finished.append(done)
            self._build_s[done.configuration.backend] = max(
                self._build_s.get(done.configuration.backend, 0.0), done.build_s or 0.0
            )
            self.progress.event("trial_finished", trial=done, best_ms=self._best_ms)
        return finished

    def _finish(self, trial: Trial, built: StepResult, target: Path) -> tuple[Trial, Measurement | None]:
        if built.failure is not None:
            self.bench.discard(target)
            if built.failure.kind == "timeout" and (built.failure.figure or 0.0) < BUILD_TIMEOUT_S:
                return dataclasses.replace(trial, state="pruned"), None  # it was the budget that ended
            return dataclasses.replace(trial, state="failed", failure=built.failure), None
        build_s = float((built.value or {})["build_s"])
        digest = self.store.artifacts.add(target)
        self.bench.discard(target)
        best = None if trial.configuration.digest in self._defaults else self._best_ms
        measured = self.bench.measure(
            self.store.artifacts.open(digest), self.request.objective, self.request.seed,
            abandon_ms=None if best is None else ABANDON_FACTOR * best,
        )  # fmt: skip
        value = measured.value or {}
        error = value.get("signal_error")
        common: dict[str, Any] = {"build_s": build_s, "signal_error": error, "artifact": digest}
        if measured.failure is not None:
            self.store.artifacts.remove(digest)
            common["artifact"] = None
            return dataclasses.replace(trial, state="failed", failure=measured.failure, **common), None
        measurement = Measurement.from_dict(value["measurement"])
        latency_ms = median(measurement.flat_ms)
        state: TrialState = "pruned" if value["pruned"] else "complete"
        self._best_ms = latency_ms if self._best_ms is None else min(self._best_ms, latency_ms)
        return dataclasses.replace(trial, state=state, latency_ms=latency_ms, **common), measurement

    def _earlier(self, row: StudyRow, workload: Workload, configuration: Configuration) -> Trial | None:
        """The result of the same configuration in another study of this workload, taken over without a build."""
        digest = self._digest(configuration.backend)
        found = self.store.earlier_trial(
            workload.structure, workload.weights, row.device_class, digest, configuration
        )
        gate = found is not None and found.state == "failed" and found.failure is not None and found.failure.stage == "check"
        if found is None or gate:
            return None  # another study may have had another gate
        if found.signal_error is not None and found.signal_error > self.request.objective.signal_error:
            return None
        mine = self.store.claim_trial(row.uid, configuration, digest)
        taken = dataclasses.replace(
            found, uid=mine.uid, number=mine.number, attempt=mine.attempt, artifact=None, reused=True
        )
        measurements = self.store.measurements(found.uid, "screening")
        self.store.finish_trial(taken, {"screening": measurements[0]} if measurements else {})
        self.progress.event("trial_finished", trial=taken, best_ms=self._best_ms)
        return taken

    # Finals and promotion

    def _finals(self, row: StudyRow, spaces: Sequence[SearchSpace]) -> tuple[FinalsResult, dict[str, Trial]]:
        complete = [
            trial for trial in self.store.trials(row.uid)
            if trial.state == "complete" and trial.toolchain == self._toolchain_of(trial)
        ]  # fmt: skip
        baselines = {trial.uid for trial in complete if is_baseline(trial.configuration, self.request)}
        if not baselines:
            failed = [trial for trial in self.store.trials(row.uid, failed=True) if is_baseline(trial.configuration, self.request)]
            why = str(failed[0].failure) if failed else "it was not tried"
            raise WorkError(
                f"{row.name}: the baseline gave no time, so nothing can be compared with it", found=why,
                expected="the model to run in eager mode", run=f"autotune trials {row.name} --failed",
            )  # fmt: skip
        chosen = choose_finalists(complete, baselines, [c for space in spaces for c in space.defaults])
        chosen = [trial for trial in chosen if self._with_artifact(trial, trial.uid in baselines)]
        trials = {trial.uid: self.store.trial(trial.uid) for trial in chosen}
        self.progress.event("finals_started", count=len(trials))
        result = run_finals(
            self.bench,
            {uid: self.store.artifacts.open(trial.artifact) for uid, trial in trials.items() if trial.artifact},
            baselines & set(trials),
            {uid: self._tie_key(trial) for uid, trial in trials.items()},
            self.request.seed,
            lambda rounds, elapsed_s: self.progress.event("finals_round", rounds=rounds, elapsed_s=elapsed_s),
            expected_round_s=sum(2 * (trial.latency_ms or 0.0) / 1e3 for trial in trials.values()),
        )
        self._check_stop()
        for uid, measurement in result.measurements.items():
            self.store.add_measurement(uid, "finals", measurement)
        return result, trials

    def _with_artifact(self, trial: Trial, needed: bool) -> bool:
        """Whether a finalist's artifact is at hand, built again where it was dropped or damaged."""
        with contextlib.suppress(ArtifactError):
            if trial.artifact is not None and self.store.artifacts.open(trial.artifact):
                return True
        ((built, target),) = self.bench.build([trial.configuration], 1)
        self._check_stop()
        if built.failure is None:
            self.store.keep_artifact(trial.uid, self.store.artifacts.add(target))
            return True
        if needed:
            raise WorkError(f"the baseline could not be built again: {built.failure}", run="autotune doctor")
        self.progress.event("message", text=f"{trial.configuration} misses the finals: {built.failure}")
        return False

    def _tie_key(self, trial: Trial) -> tuple[Any, ...]:
        """Among equals: the smaller artifact, the simpler backend, fewer threads, then the configuration's digest."""
        names = registry.names()
        backend = trial.configuration.backend
        size = self.store.artifacts.size_bytes(trial.artifact) if trial.artifact else 0
        threads = trial.configuration.get("threads", 0)
        return (size, names.index(backend) if backend in names else len(names), threads, trial.configuration.digest)

    def _promote(self, row: StudyRow, workload: Workload, result: FinalsResult, trials: Mapping[str, Trial]) -> Plan:
        verdict = result.verdict
        winner = trials[verdict.winner]
        standing = verdict.of(verdict.winner)
        baseline = verdict.of(verdict.baseline)
        finalists = [
            {
                "uid": one.name,
                "backend": trials[one.name].configuration.backend,
                "batch": row.batch,
                "configuration": trials[one.name].configuration.as_dict(),
                "latency_ms": one.latency_ms,
                "interval_ms": list(one.interval_ms),
                "signal_error": trials[one.name].signal_error,
                "build_s": trials[one.name].build_s,
                "is_baseline": one.name == verdict.baseline,
                "could_be_baseline": is_baseline(trials[one.name].configuration, self.request),
                "is_default": trials[one.name].configuration.digest in self._defaults,
                "samples_ms": result.samples_ms[one.name],
            }
            for one in verdict.finalists
        ]
        plan = Plan(
            uid=uuid.uuid4().hex,
            name=row.name,
            batch=row.batch,
            structure=workload.structure,
            weights=workload.weights,
            device=self.device,
            toolchain=self.toolchain.only(registry.backend(winner.configuration.backend).toolchain),
            objective=self.request.objective,
            serve_as=self.request.serve_as,
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
                "finalists": finalists,
                "tied_with": list(verdict.tied_with),
                "rounds": verdict.rounds,
                "processes": list(result.process_of_round),
                "toolchain": self.toolchain.as_dict(),
            },
        )
        self.store.promote(plan)
        return plan

    # Small things

    def _digest(self, backend: str) -> str:
        return self.toolchain.only(registry.backend(backend).toolchain).digest

    def _toolchain_of(self, trial: Trial) -> str:
        return self._digest(trial.configuration.backend)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise StudyInterruptedError(
                f"{self.request.name} was stopped; what was finished is kept", run="the same command to go on"
            )

@contextlib.contextmanager
def _stoppable(server: WorkerServer) -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an orderly stop: steps are killed, nothing of them is recorded."""
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        stop.set()
        server.stop()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
