"""The search of a study: propose, build, check, time, learn."""

import contextlib
import dataclasses
import logging
import threading
import time
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.execute.answers import BuildAnswer, MeasureAnswer
from autotune.execute.executor import BUILD_TIMEOUT_S, EarlyLoad
from autotune.execute.step_result import StepResult
from autotune.kernel import KnownKernels
from autotune.measure.block import latency_ms as screened_ms
from autotune.records.configuration import Configuration
from autotune.records.trial import Measurement, Trial, TrialState
from autotune.search.search import Search
from autotune.study.cache import as_outcome
from autotune.study.context import StudyContext
from autotune.study.kernel_tuning import StudyKernels
from autotune.study.space import is_baseline, stand_ins

log = logging.getLogger(__name__)

SHORTEST_BUILD_S = 60.0
"""A build may take what is left of the budget, and at least so many seconds."""

MOST_SKIPPED = 16
"""After so many proposals in a row that would build for too long the search ends."""

ABANDON_FACTOR = 4.0
"""A candidate whose fastest call takes longer than so many times the best median so far is not timed to the end;
the baseline and the defaults, which are what users compare with, are. One in fp32 is held against those in fp32: what
reduced precision adds is reported apart, and on a CPU with AMX bf16 alone was 4 times as fast as the best of them."""

FULL_PRECISION = "fp32"


EARLY_LOADS = 8
"""At most so many candidates wait on a GPU, loaded, while others are built."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What became of a build: its artifact, and its load where that began at once."""

    digest: str | None
    loading: EarlyLoad | None


class Pace:
    """The best latency so far, of all candidates and of those in full precision."""

    def __init__(self) -> None:
        self.best_ms: float | None = None
        self._exact_ms: float | None = None

    def hear(self, configuration: Configuration, latency_ms: float) -> None:
        """Take note of a candidate's median."""
        self.best_ms = latency_ms if self.best_ms is None else min(self.best_ms, latency_ms)
        if _is_exact(configuration):
            self._exact_ms = latency_ms if self._exact_ms is None else min(self._exact_ms, latency_ms)

    def hopeless_ms(self, configuration: Configuration) -> float | None:
        """Give the time from which on a candidate is not timed to the end; ``None`` while there is none."""
        best_ms = self._exact_ms if _is_exact(configuration) else self.best_ms
        return None if best_ms is None else ABANDON_FACTOR * best_ms


def _is_exact(configuration: Configuration) -> bool:
    return configuration.get("precision", "") == FULL_PRECISION


def _handed(trial: Trial, known: KnownKernels | None) -> Trial:
    """A trial with the digest of the tuned kernels that its build is handed."""
    return trial if known is None else dataclasses.replace(trial, kernels=known.digest)


def _ran_out_of_budget(built: StepResult[BuildAnswer]) -> bool:
    """Whether a build was ended by the budget, before it had the time that any build is given."""
    failure = built.failure
    return failure is not None and failure.kind == "timeout" and (failure.figure or 0.0) < BUILD_TIMEOUT_S


class StudySearch:
    """Runs trials until the study's trials, its budget or its space are used up."""

    def __init__(self, on: StudyContext) -> None:
        self.on = on
        self._build_s: dict[str, float] = {}
        self._pace = Pace()
        self._defaults = on.defaults
        self._seats = threading.Semaphore(EARLY_LOADS)
        self._kernels = StudyKernels(on)
        self._spaces = {space.backend: space for space in on.spaces}
        self._left_out: list[Configuration] = []

    def run(self) -> Search:
        """Propose, build, check and time until trials, budget or space are used up; the reference is made first."""
        row, spaces = self.on.row, self.on.spaces
        search = Search(spaces, self.on.request.seed, [hint for space in spaces for hint in space.hints])
        done = [
            trial for trial in self.on.store.trials.of_study(row.uid) if trial.toolchain == self.on.toolchain_of(trial)
        ]
        for trial in done:
            if trial.state != "running":
                search.observe(as_outcome(trial))
                self._build_s[trial.configuration.backend] = max(
                    self._build_s.get(trial.configuration.backend, 0.0), trial.build_s or 0.0
                )
        interrupted = [trial.configuration for trial in done if trial.state == "running"]
        spent, count = row.active_s, sum(not trial.reused for trial in done if trial.state != "running")
        referenced = False
        while count < self.on.request.trials and spent < self.on.request.budget_s:
            batch = self._next_batch(
                search, interrupted, self.on.request.trials - count, self.on.request.budget_s - spent
            )
            if not batch:
                break
            if not referenced:
                self.on.executor.reference(self.on.request.objective)
                referenced = True
            begin = time.monotonic()
            finished = self._generation(batch, self.on.request.budget_s - spent)
            for trial in finished:
                search.observe(as_outcome(trial))
            count += sum(not trial.reused for trial in finished)
            elapsed = self.on.executor.split.worked_s(begin, time.monotonic())
            spent += elapsed
            self.on.store.studies.add_active_time(row.uid, elapsed)
            self.on.check_stop()
        if not referenced:
            self.on.executor.reference(self.on.request.objective)
        self._time_stand_ins()
        return search

    def _time_stand_ins(self) -> None:
        """Time the captured graph in eager mode if the user's own module failed as the baseline, whatever is left."""
        trials = self.on.store.trials.of_study(self.on.row.uid)
        tried = [trial for trial in trials if trial.toolchain == self.on.toolchain_of(trial)]
        known = {trial.configuration.digest for trial in tried if trial.state != "running"}
        missing = [one for one in stand_ins(tried, self.on.request) if one.digest not in known]
        if missing and not self.on.stop.is_set():
            text = "the model's own module fails as the baseline; its captured graph takes that place"
            self.on.progress.event("message", text=text)
            self._defaults |= {one.digest for one in missing}
            self._generation(missing, SHORTEST_BUILD_S)
            self.on.check_stop()

    def _next_batch(
        self, search: Search, interrupted: list[Configuration], trials: int, budget_s: float
    ) -> list[Configuration]:
        """What to build together: one on a CPU; on a GPU all defaults, later as many as its host's cores carry.

        What was cut off is built alone, so that no other is blamed for a candidate that takes its host down. What is
        expected to build longer than the budget that is left is not begun.
        """
        batch: list[Configuration] = []
        skipped: list[Configuration] = []
        while len(batch) < trials and len(skipped) < MOST_SKIPPED:
            cut_off = bool(interrupted)
            known = interrupted.pop(0) if cut_off else search.propose([*batch, *skipped, *self._left_out])
            if known is None:
                break
            first = known.digest in self._defaults
            if len(batch) >= self.parallel and not first:
                break
            if batch and not first and batch[0].digest in self._defaults:
                break  # the rest of the search learns from the defaults
            expected_s = self._build_s.get(known.backend, 0.0) * self._spaces[known.backend].build_cost(known)
            (batch if expected_s <= budget_s else skipped).append(known)
            if batch and (cut_off or self.parallel == 1):
                break
        return batch

    @property
    def parallel(self) -> int:
        """How many builds run at once: a large one keeps about two cores busy."""
        return 1 if self.on.request.device.kind == "cpu" else max(1, self.on.request.device.cores // 2)

    def _generation(self, batch: list[Configuration], left_s: float) -> list[Trial]:
        """Build configurations together, then check and time them one after the other; ``left_s`` of the budget."""
        stored: dict[Path, _Stored] = {}
        with contextlib.ExitStack() as held:
            finished = self._built_and_finished(batch, left_s, stored, held)
        named = {trial.artifact for trial in finished}
        for digest in {each.digest for each in stored.values() if each.digest is not None} - named:
            self.on.store.trials.drop_unnamed(digest)
        return finished

    def _built_and_finished(
        self, batch: list[Configuration], left_s: float, stored: "dict[Path, _Stored]", held: contextlib.ExitStack
    ) -> list[Trial]:
        """Give the trials that ended; what was ``stored`` is ``held`` while no row names it."""
        begin = time.monotonic()
        finished: list[Trial] = []
        claimed: list[Trial] = []
        self._kernels.look(batch)  # an earlier trial is taken over only if its kernels are those of now
        for configuration in batch:
            trial = self._earlier(configuration) or self._quarantined(configuration)
            if trial is not None:
                finished.append(trial)
                continue
            trial = self.on.store.trials.claim(self.on.row.uid, configuration, self.on.digest(configuration.backend))
            if trial.state != "running":  # it was cut off too often
                finished.append(trial)
                self.on.progress.event("trial_finished", trial=trial, best_ms=self._pace.best_ms)
                continue
            self.on.progress.event("trial_started", number=trial.number, configuration=configuration)
            claimed.append(trial)
        known = self._kernels.prepare([trial.configuration for trial in claimed], left_s)
        claimed = [_handed(trial, known[trial.configuration]) for trial in claimed]
        workers = 1 if self.parallel == 1 else max(1, len(claimed))
        builds = self.on.executor.build(
            [trial.configuration for trial in claimed], workers,
            max(SHORTEST_BUILD_S, left_s - self.on.executor.split.worked_s(begin, time.monotonic())), kernels=known.get,
            then=lambda configuration, result, target: stored.update(self._stored(configuration, result, target, held)),
        ) if claimed else []  # fmt: skip
        for trial, (built, target) in zip(claimed, builds, strict=True):
            if self.on.stop.is_set():
                break
            if _ran_out_of_budget(built):
                self._leave_out(trial, built)
                continue
            self.on.progress.event("trial_timing", number=trial.number, configuration=trial.configuration)
            done, measurement = self._finish(trial, built, stored.get(target))
            if self.on.stop.is_set():
                break
            self.on.store.trials.finish(done, {"screening": measurement} if measurement else {})
            finished.append(done)
            self._build_s[done.configuration.backend] = max(
                self._build_s.get(done.configuration.backend, 0.0), done.build_s or 0.0
            )
            self.on.progress.event("trial_finished", trial=done, best_ms=self._pace.best_ms)
        if self.on.stop.is_set():
            ended = {trial.uid for trial in finished}
            self.on.store.trials.hand_back([trial for trial in claimed if trial.uid not in ended])
        return finished

    def _leave_out(self, trial: Trial, built: StepResult[BuildAnswer]) -> None:
        """Take back a trial that the budget ended: it has no result, and is tried if the study is given more."""
        self.on.store.trials.withdraw(trial)
        self._left_out.append(trial.configuration)
        self.on.progress.event(
            "trial_left_out", trial=trial,
            text=f"{trial.configuration}: left out, because its build was not done in the {built.seconds:.0f} s that "
            "the budget had left; it is tried if the study is given more",
        )  # fmt: skip

    def _stored(
        self, configuration: Configuration, built: StepResult[BuildAnswer], target: Path, held: contextlib.ExitStack
    ) -> "dict[Path, _Stored]":
        """Move what was built into the artifact store; on a GPU begin to load it, while others are still built."""
        digest: str | None = None
        loading: EarlyLoad | None = None
        if built.failure is None:
            digest = held.enter_context(self.on.store.artifacts.kept(target))
            loading = self._load_early(configuration, digest)
        self.on.executor.discard(target)
        return {target: _Stored(digest=digest, loading=loading)}

    def _load_early(self, configuration: Configuration, digest: str) -> EarlyLoad | None:
        """Begin to load where there is room on the device, and nothing is timed in loading."""
        if self.parallel == 1 or registry.backend(configuration.backend).times_kernels_at_load(configuration):
            return None
        if not self._seats.acquire(blocking=False):
            return None
        request = self.on.request
        return self.on.executor.load_early(self.on.store.artifacts.open(digest), request.objective, request.seed)

    def _measured(self, stored: "_Stored", digest: str, abandon_ms: float | None) -> StepResult[MeasureAnswer]:
        if stored.loading is not None:
            measured = stored.loading.measure(abandon_ms)
            self._seats.release()
            crowded = measured.failure is not None and measured.failure.kind == "out_of_memory"
            if not crowded or self.on.stop.is_set():
                return measured
            log.info("loading again without others beside it: %s", measured.failure)
        request, artifact = self.on.request, self.on.store.artifacts.open(digest)
        return self.on.executor.measure(artifact, request.objective, request.seed, abandon_ms=abandon_ms)

    def _finish(
        self, trial: Trial, built: StepResult[BuildAnswer], stored: "_Stored | None"
    ) -> tuple[Trial, Measurement | None]:
        if built.failure is not None or stored is None or stored.digest is None:
            return dataclasses.replace(trial, state="failed", failure=built.failure), None
        digest = stored.digest
        build_s = built.answer.build_s
        always = trial.configuration.digest in self._defaults
        measured = self._measured(stored, digest, None if always else self._pace.hopeless_ms(trial.configuration))
        error = None if measured.value is None else measured.value.signal_error
        common: dict[str, Any] = {"build_s": build_s, "signal_error": error, "artifact": digest}
        if measured.failure is not None:
            common["artifact"] = None
            return dataclasses.replace(trial, state="failed", failure=measured.failure, **common), None
        answer = measured.answer
        measurement = answer.timed
        latency_ms = screened_ms(measurement)
        state: TrialState = "pruned" if answer.pruned else "complete"
        scored = answer.score
        if self.on.request.objective.name == "memory":
            taken = self.on.executor.footprint(self.on.store.artifacts.open(digest))
            if taken.failure is not None:
                return dataclasses.replace(trial, state="failed", failure=taken.failure, **common), measurement
            scored = float(taken.answer.memory.peak_bytes)
        if self.on.request.objective.name.startswith("latency"):
            self._pace.hear(trial.configuration, latency_ms)
        return dataclasses.replace(trial, state=state, latency_ms=latency_ms, score=scored, **common), measurement

    def _earlier(self, configuration: Configuration) -> Trial | None:
        """The result of the same configuration in another study of this workload, taken over without a build.

        What another study of another objective measured says nothing of this one's, except for its latency.
        """
        if self.on.request.objective.name != "latency_p50":
            return None
        digest, kernels = self.on.digest(configuration.backend), self.on.supply.digest(configuration)
        found = self.on.store.trials.earlier(self.on.row.identity, digest, configuration, kernels)
        if found is None:
            return None
        measurements = self.on.store.trials.measurements(found.uid, "screening")
        return self._taken(found, digest, measurements[0] if measurements else None)

    def _quarantined(self, configuration: Configuration) -> Trial | None:
        """The failure of a configuration that took its worker down in any study of this structure under this toolchain.

        The baseline is tried all the same: without it no study could tell anything.
        """
        if is_baseline(configuration, self.on.request):
            return None
        digest = self.on.digest(configuration.backend)
        quarantine = self.on.store.trials.quarantined_by(
            self.on.workload.structure, self.on.row.device_class, digest, configuration
        )
        if quarantine is None:
            return None
        study, found = quarantine
        assert found.failure is not None  # a failed trial has one
        why = f"quarantined, not built again under this toolchain since trial {found.number} of {study.name}"
        failure = dataclasses.replace(
            found.failure, detail=f"{why} at batch {study.batch}: {found.failure.detail}", log_tail=""
        )
        return self._taken(dataclasses.replace(found, failure=failure), digest, None)

    def _taken(self, found: Trial, digest: str, screening: Measurement | None) -> Trial:
        """Take another study's result over as a trial of this one."""
        mine = self.on.store.trials.claim(self.on.row.uid, found.configuration, digest)
        if mine.state == "running":
            mine = dataclasses.replace(
                found, uid=mine.uid, number=mine.number, attempt=mine.attempt, artifact=None, reused=True, score=None
            )
            self.on.store.trials.finish(mine, {"screening": screening} if screening else {})
        self.on.progress.event("trial_finished", trial=mine, best_ms=self._pace.best_ms)
        return mine
