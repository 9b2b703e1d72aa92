"""The search of a study: propose, build, check, time, learn: StudySearch."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune import registry
from autotune.execute.answers import BuildAnswer
from autotune.execute.executor import BUILD_TIMEOUT_S
from autotune.execute.step_result import StepResult
from autotune.kernel import KnownKernels, wants_kernels
from autotune.records.configuration import Configuration
from autotune.records.trial import Trial
from autotune.search.search import Search
from autotune.study.adoption import TrialAdoption
from autotune.study.built_trial import BuiltTrial, StoredBuild, ran_out_of_budget, with_kernels
from autotune.study.cache import as_outcome
from autotune.study.context import StudyContext
from autotune.study.generation_pace import GenerationPace
from autotune.study.kernel_tuning import StudyKernels
from autotune.study.pace import Pace, is_exact
from autotune.study.search_clock import SearchClock
from autotune.study.space import is_baseline, participants, stand_ins
from autotune.study.trial_timing import TrialTiming

log = logging.getLogger(__name__)

SHORTEST_BUILD_S = 60.0
"""The least time limit of a build, in seconds; otherwise it is the rest of the budget."""

MOST_SKIPPED = 16
"""The search ends after this number of proposals in a row that would build for too long."""


class StudySearch:
    """Runs trials until the number of trials, the budget or the space of the study is used up.

    A simulation has ``kernels`` of another host.
    """

    def __init__(self, context: StudyContext, kernels: StudyKernels | None = None) -> None:
        self.context = context
        self._pacing = GenerationPace()
        self._pace = Pace()
        self._adoption = TrialAdoption(context, self._pace)
        self._defaults = context.defaults
        self._hints = {*context.hints, *(hint for space in context.spaces for hint in space.hints)}
        self._timing = TrialTiming(context, self._pace)
        self._kernels = kernels or StudyKernels(context)
        self._spaces = {space.backend: space for space in context.spaces}
        self._left_out: list[Configuration] = []
        self._clock = SearchClock(context)

    def run(self) -> Search:
        """Propose, build, check and time until trials, budget or space are used up; the reference is computed first."""
        with contextlib.closing(self._kernels):
            return self._run()

    def _run(self) -> Search:
        row, spaces = self.context.row, self.context.spaces
        search = Search(spaces, self.context.request.seed, self.context.hints)
        earlier = self._trials()
        for trial in earlier:
            if trial.state != "running":
                search.observe(as_outcome(trial))
                self._pacing.note_build(trial)
        running = [trial.configuration for trial in earlier if trial.state == "running"]
        interrupted = [configuration for configuration in running if self._is_offered(configuration)]
        self._clock.mark_unmarked(earlier)
        spent_s, count = row.active_s, sum(not trial.reused for trial in earlier if trial.state != "running")
        referenced = False
        self._kernels.begin_compiling()
        while count < self.context.request.trials and spent_s < self.context.request.budget_s:
            batch = self._next_batch(
                search, interrupted, self.context.request.trials - count, self.context.request.budget_s - spent_s
            )
            if not batch:
                break
            if not referenced:
                if earlier or row.active_s:
                    self._clock.note_continued()
                self._reference()
                referenced = True
            begin = self.context.clock()
            finished = self._generation(batch, self.context.request.budget_s - spent_s)
            for trial in finished:
                search.observe(as_outcome(trial))
            count += sum(not trial.reused for trial in finished)
            elapsed_s = self._worked_s(begin)
            self._clock.add(elapsed_s, spent_s, begin)
            spent_s += elapsed_s
            self.context.check_stop()
        if not referenced:
            self._reference()
        self._time_stand_ins(spent_s)
        self._time_carried(spent_s)
        self._clock.note_curve(self._trials())
        return search

    def _worked_s(self, begin: float) -> float:
        """Return the seconds since a moment without those of waiting for other studies."""
        return self.context.executor.split.worked_s(begin, self.context.clock())

    def _is_offered(self, configuration: Configuration) -> bool:
        """Return whether a space of the study has a configuration; that of a carried plan may be in none."""
        space = self._spaces.get(configuration.backend)
        return space is not None and space.refusal(configuration) is None

    def _reference(self) -> None:
        request = self.context.request
        self.context.executor.reference(request.objective, [*participants(request), *registry.baselines()])

    def _trials(self) -> list[Trial]:
        """Return the study's trials under the present toolchain."""
        trials = self.context.store.trials.of_study(self.context.row.uid)
        return [trial for trial in trials if trial.toolchain == self.context.toolchain_of(trial)]

    def _time_stand_ins(self, spent_s: float) -> None:
        """Time the captured graph in eager mode if the user's own module fails as the baseline, also without budget."""
        tried = self._trials()
        ended = {trial.configuration.digest for trial in tried if trial.state != "running"}
        missing = [graph for graph in stand_ins(tried, self.context.request) if graph.digest not in ended]
        if missing and not self.context.stop.is_set():
            text = "the model's own module fails as the baseline; its captured graph is the baseline instead"
            self.context.progress.event("message", text=text)
            self._defaults |= {graph.digest for graph in missing}
            begin = self.context.clock()
            self._generation(missing, SHORTEST_BUILD_S)
            self._clock.add(0.0, spent_s, begin)
            self.context.check_stop()

    def _time_carried(self, spent_s: float) -> None:
        """Time the configurations of carried plans that were not tried, also without budget.

        They are built as they are, also if the spaces of this device do not have them.
        """
        ended = {trial.configuration.digest for trial in self._trials() if trial.state != "running"}
        missing = {plan.configuration.digest: plan.configuration for plan in self.context.carried}
        for digest, configuration in missing.items():
            if digest in ended or self.context.stop.is_set():
                continue
            self._defaults |= {digest}
            begin = self.context.clock()
            self._generation([configuration], 0.0, least_build_s=BUILD_TIMEOUT_S)
            self._clock.add(0.0, spent_s, begin)
            self.context.check_stop()

    def _next_batch(
        self, search: Search, interrupted: list[Configuration], trials: int, budget_s: float
    ) -> list[Configuration]:
        """Return the configurations to build together.

        On a CPU that is one. On a GPU these are first all defaults and the hints, then as many as its host has cores
        to build. A candidate is not begun if the rest of the budget is expected to be too short for it.
        """
        batch: list[Configuration] = []
        skipped: list[Configuration] = []
        while len(batch) < trials and len(skipped) < MOST_SKIPPED:
            cut_off = bool(interrupted)
            proposal = interrupted.pop(0) if cut_off else search.propose(batch, [*skipped, *self._left_out])
            if proposal is None:
                break
            if not self._belongs(proposal, batch):
                if proposal not in self._hints:
                    break
                skipped.append(proposal)  # another hint may belong to the batch
                continue
            if not self._fits([proposal], budget_s):
                skipped.append(proposal)
                continue
            if not self._fits([*batch, proposal], budget_s):
                break
            batch.append(proposal)
            # A trial that was cut off is repeated alone: if it takes its host down, no other trial is blamed for that.
            if cut_off or self.parallel == 1:
                break
        return batch

    def _fits(self, batch: Sequence[Configuration], budget_s: float) -> bool:
        """Return whether configurations are expected to be built and timed within some time."""
        builds_s = [self._pacing.build_s(candidate, self._spaces[candidate.backend]) for candidate in batch]
        return not builds_s or self._pacing.fits(builds_s, budget_s, looks=any(map(wants_kernels, batch)))

    def _belongs(self, proposal: Configuration, batch: Sequence[Configuration]) -> bool:
        """Return whether a proposal is built with a batch; the sampler's proposals learn from all that come first."""
        if not batch or proposal.digest in self._defaults:
            return True
        if proposal not in self._hints:
            return len(batch) < self.parallel and not self._is_first(batch[0])
        if wants_kernels(proposal):
            return sum(map(wants_kernels, batch)) < self.parallel
        return len(batch) < self.context.request.device.cores

    def _is_first(self, configuration: Configuration) -> bool:
        return configuration.digest in self._defaults or configuration in self._hints

    @property
    def parallel(self) -> int:
        """The number of builds that run at once; a large build keeps about two cores busy."""
        return 1 if self.context.request.device.kind == "cpu" else max(1, self.context.request.device.cores // 2)

    def _generation(
        self, batch: list[Configuration], left_s: float, *, least_build_s: float = SHORTEST_BUILD_S
    ) -> list[Trial]:
        """Build configurations together, then check and time them in turn; ``left_s`` is left of the budget.

        A build may take ``least_build_s`` even if less is left.
        """
        builds: dict[Path, StoredBuild] = {}
        with contextlib.ExitStack() as held:
            finished = self._built_and_finished(batch, left_s, least_build_s, builds, held)
        in_rows = {trial.artifact for trial in finished}
        for digest in {build.digest for build in builds.values() if build.digest is not None} - in_rows:
            self.context.store.trials.drop_unnamed(digest)
        return finished

    def _built_and_finished(
        self, batch: list[Configuration], left_s: float, least_build_s: float, stored: dict[Path, StoredBuild],
        held: contextlib.ExitStack,
    ) -> list[Trial]:  # fmt: skip
        """Return the trials that ended; artifacts of ``stored`` builds are ``held`` until a row names them.

        If only some of the batch want tuned kernels, the others are built and timed before these are tuned. Of the
        others, candidates in full precision wait if one in reduced precision passes, for then they hardly win: they
        are timed when the device would be idle, beside the builds that follow. If too little of the budget is left by
        then, those that want tuned kernels are not begun.
        """
        begin = self.context.clock()
        finished: list[Trial] = []

        def build(claimed: Sequence[Trial], kernels: Mapping[Configuration, KnownKernels | None]) -> list[BuiltTrial]:
            limit_s = max(least_build_s, left_s - self._worked_s(begin))
            return self._built(claimed, kernels, limit_s, stored, held)

        first, second = self._parts(batch)
        claimed = self._claimed(first, finished)
        turns = build(claimed, {})
        later = [turn for turn in turns if self._can_wait(turn.trial.configuration)]
        self._time([turn for turn in turns if turn not in later], stored, finished)
        if not self.context.stop.is_set():
            if not any(trial.state == "complete" and not is_exact(trial.configuration) for trial in finished):
                self._time(later, stored, finished)  # one of these may win
                later = []
            if first and not self._fits(second, left_s - self._worked_s(begin)):
                second = []  # the search proposes them again if the study gets a larger budget
            using = self._claimed(second, finished)
            kernels = self._kernels.prepare([trial.configuration for trial in using], left_s - self._worked_s(begin))
            using = [with_kernels(trial, kernels[trial.configuration]) for trial in using]
            claimed += using
            building = self.context.background(lambda: build(using, kernels))
            try:
                self._time(later, stored, finished)
            finally:
                turns = building.result()  # nothing that was built may outlive this call
            self._time(turns, stored, finished)
        if self.context.stop.is_set():
            uids = {trial.uid for trial in finished}
            self.context.store.trials.hand_back([trial for trial in claimed if trial.uid not in uids])
        return finished

    def _can_wait(self, configuration: Configuration) -> bool:
        request = self.context.request
        on_device = request.objective.name.startswith("latency")  # builds beside it would lower a throughput
        return on_device and is_exact(configuration) and not is_baseline(configuration, request)

    def _parts(self, batch: Sequence[Configuration]) -> tuple[list[Configuration], list[Configuration]]:
        """Return the part of a batch that is built before kernels are tuned, and the rest; the first may be empty."""
        others = [configuration for configuration in batch if not wants_kernels(configuration)]
        if len(others) == len(batch) or not all(map(self._is_first, batch)):
            return [], list(batch)
        return others, [configuration for configuration in batch if wants_kernels(configuration)]

    def _claimed(self, batch: Sequence[Configuration], finished: list[Trial]) -> list[Trial]:
        """Return the trials that are to be built; those that have a result without a build are ``finished``."""
        begin = self.context.clock()
        claimed: list[Trial] = []
        self._kernels.find_problems(batch)  # a trial of another study is adopted only if its kernels are those of now
        for configuration in batch:
            trial = self._adoption.find(configuration)
            if trial is not None:
                finished.append(trial)
                continue
            toolchain = self.context.digest(configuration.backend)
            trial = self.context.store.trials.claim(self.context.row.uid, configuration, toolchain)
            if trial.state != "running":  # it was cut off too often
                finished.append(trial)
                self.context.progress.event("trial_finished", trial=trial, best_ms=self._pace.best_ms)
                continue
            self.context.progress.event("trial_started", number=trial.number, configuration=configuration)
            claimed.append(trial)
        self._pacing.note_look(self._worked_s(begin))
        return claimed

    def _built(
        self, claimed: Sequence[Trial], kernels: Mapping[Configuration, KnownKernels | None], limit_s: float,
        stored: dict[Path, StoredBuild], held: contextlib.ExitStack,
    ) -> list[BuiltTrial]:  # fmt: skip
        """Build trials together, and return them with their builds, in their order."""
        if not claimed:
            return []
        begin = self.context.clock()
        workers = 1 if self.parallel == 1 else len(claimed)
        builds = self.context.executor.build(
            [trial.configuration for trial in claimed], workers, limit_s, kernels=kernels.get,
            then=lambda configuration, result, target: stored.update(
                {target: self._timing.stored(configuration, result, target, held, early=self.parallel > 1)}
            ),
        )  # fmt: skip
        self._pacing.note_builds(self._worked_s(begin), [built for built, _ in builds])
        return [
            BuiltTrial(trial=trial, built=built, target=target)
            for trial, (built, target) in zip(claimed, builds, strict=True)
        ]

    def _time(self, turns: Sequence[BuiltTrial], stored: Mapping[Path, StoredBuild], finished: list[Trial]) -> None:
        """Check and time built trials one after the other, and store their results, until the study is stopped."""
        for turn in turns:
            if self.context.stop.is_set():
                return
            trial, built = turn.trial, turn.built
            if ran_out_of_budget(built):
                self._leave_out(trial, built)
                continue
            self.context.progress.event("trial_timing", number=trial.number, configuration=trial.configuration)
            begin = self.context.clock()
            is_default = trial.configuration.digest in self._defaults
            ended, measurement = self._timing.finish(trial, built, stored.get(turn.target), to_the_end=is_default)
            self._pacing.note_timing(self._worked_s(begin))
            if self.context.stop.is_set():
                return
            self.context.store.trials.finish(ended, {"screening": measurement} if measurement else {})
            self._clock.ended[ended.uid] = self.context.clock()
            finished.append(ended)
            self._pacing.note_build(ended)
            self.context.progress.event("trial_finished", trial=ended, best_ms=self._pace.best_ms)

    def _leave_out(self, trial: Trial, built: StepResult[BuildAnswer]) -> None:
        """Withdraw a trial that the budget ended: it has no result, and is tried if the study gets a larger budget."""
        self.context.store.trials.withdraw(trial)
        self._left_out.append(trial.configuration)
        self.context.progress.event(
            "trial_left_out", trial=trial,
            text=f"{trial.configuration}: left out, because its build did not end in the {built.seconds:.0f} s that "
            "were left of the budget; it is tried if the study gets a larger budget",
        )  # fmt: skip
