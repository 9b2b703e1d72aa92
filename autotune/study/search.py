"""The search of a study: propose, build, check, time, learn: StudySearch."""

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autotune import registry
from autotune.errors import AutotuneError
from autotune.execute.answers import BuildAnswer
from autotune.execute.executor import BUILD_TIMEOUT_S
from autotune.execute.step_result import StepResult
from autotune.kernel import wants_kernels
from autotune.records.configuration import Configuration
from autotune.records.trial import Trial
from autotune.search.search import Search
from autotune.study.adoption import TrialAdoption
from autotune.study.built_trial import BuiltTrial, StoredBuild, ran_out_of_budget
from autotune.study.cache import as_outcome
from autotune.study.context import StudyContext
from autotune.study.generation import Generation, GenerationSteps, Kernels
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
        """Return the trials that ended; artifacts of ``stored`` builds are ``held`` until a row names them."""
        run = _Run(begin=self.context.clock(), left_s=left_s, least_build_s=least_build_s, stored=stored, held=held)
        first, second = self._parts(batch)
        steps = GenerationSteps(
            look=self._look, claim=lambda batch: self._claimed(batch, run.finished),
            tune=functools.partial(self._tuned, run), build=functools.partial(self._build, run),
            in_time=lambda: not first or self._rest_s(run) > 0,
            withdraw=self._give_up, time=functools.partial(self._time, run),
            can_wait=self._can_wait,
        )  # fmt: skip
        generation = Generation(
            steps, first, second, overlap=self._overlaps, stop=self.context.stop, background=self.context.background,
            doorbell=self.context.doorbell(), abort=self.context.executor.server.stop,
        )  # fmt: skip
        try:
            generation.run()
        except BaseException:
            with contextlib.suppress(AutotuneError):  # the error may be that of the database
                self._hand_back(generation, run)
            raise
        if self.context.stop.is_set():
            self._hand_back(generation, run)
        return run.finished

    def _hand_back(self, generation: Generation, run: "_Run") -> None:
        """Let the trials without a result not count as ended by a death."""
        uids = {trial.uid for trial in run.finished}
        self.context.store.trials.hand_back([trial for trial in generation.claimed if trial.uid not in uids])

    @property
    def _overlaps(self) -> bool:
        """Whether trials are timed while others are built: a latency of a GPU hardly depends on what its host does."""
        request = self.context.request
        return request.device.kind == "cuda" and request.objective.name.startswith("latency")

    def _parts(self, batch: Sequence[Configuration]) -> tuple[list[Configuration], list[Configuration]]:
        """Return the part of a batch that is built before kernels are tuned, and the rest; the first may be empty."""
        if not (self._overlaps or all(map(self._is_first, batch))):
            return [], list(batch)
        others = [configuration for configuration in batch if not wants_kernels(configuration)]
        return others, [configuration for configuration in batch if wants_kernels(configuration)]

    def _claimed(self, batch: Sequence[Configuration], finished: list[Trial]) -> list[Trial]:
        """Return the trials that are to be built; those that have a result without a build are ``finished``."""
        claimed: list[Trial] = []
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
        return claimed

    def _look(self, batch: Sequence[Configuration]) -> None:
        begin = self.context.clock()
        self._kernels.find_problems(batch)
        self._pacing.note_look(self._worked_s(begin))

    def _can_wait(self, configuration: Configuration) -> bool:
        return self._overlaps and is_exact(configuration) and not is_baseline(configuration, self.context.request)

    def _rest_s(self, run: "_Run") -> float:
        return run.left_s - self._worked_s(run.begin)

    def _tuned(self, run: "_Run", trials: Sequence[Trial], crowded: Callable[[], bool]) -> Kernels:
        return self._kernels.prepare([trial.configuration for trial in trials], self._rest_s(run), crowded)

    def _build(
        self, run: "_Run", trials: Sequence[Trial], kernels: Kernels, then: Callable[[BuiltTrial], None]
    ) -> None:  # fmt: skip
        """Build trials together; store each as soon as it is built, and hand it over."""
        workers = 1 if self.parallel == 1 else len(trials)
        trial_of = {trial.configuration: trial for trial in trials}

        def keep(configuration: Configuration, result: StepResult[BuildAnswer], target: Path) -> None:
            early = self.parallel > 1
            run.stored[target] = self._timing.stored(configuration, result, target, run.held, early=early)
            then(BuiltTrial(trial=trial_of[configuration], built=result, target=target))

        limit_s = max(run.least_build_s, self._rest_s(run))
        builds = self.context.executor.build(list(trial_of), workers, limit_s, kernels=kernels.get, then=keep)
        self._pacing.note_builds([built for built, _ in builds])

    def _time(self, run: "_Run", turn: BuiltTrial) -> bool:
        """Check and time a built trial, and store its result; return whether it passed in reduced precision."""
        trial, built = turn.trial, turn.built
        if ran_out_of_budget(built):
            self._leave_out(trial, built)
            return False
        self.context.progress.event("trial_timing", number=trial.number, configuration=trial.configuration)
        begin = self.context.clock()
        is_default = trial.configuration.digest in self._defaults
        ended, measurement = self._timing.finish(trial, built, run.stored.get(turn.target), to_the_end=is_default)
        self._pacing.note_timing(self._worked_s(begin))
        if self.context.stop.is_set():
            return False
        self.context.store.trials.finish(ended, {"screening": measurement} if measurement else {})
        self._clock.ended[ended.uid] = self.context.clock()
        run.finished.append(ended)
        self._pacing.note_build(ended)
        self.context.progress.event("trial_finished", trial=ended, best_ms=self._pace.best_ms)
        return ended.state == "complete" and not is_exact(ended.configuration)

    def _give_up(self, trial: Trial) -> None:
        """Withdraw a trial whose kernels were tuned until too little of the budget was left for its build."""
        self.context.store.trials.withdraw(trial)
        self.context.progress.event(
            "trial_left_out", trial=trial,
            text=f"{trial.configuration}: left out, because too little of the budget was left when its kernels were "
            "tuned; it is tried if the study gets a larger budget",
        )  # fmt: skip

    def _leave_out(self, trial: Trial, built: StepResult[BuildAnswer]) -> None:
        """Withdraw a trial that the budget ended: it has no result, and is tried if the study gets a larger budget."""
        self.context.store.trials.withdraw(trial)
        self._left_out.append(trial.configuration)
        self.context.progress.event(
            "trial_left_out", trial=trial,
            text=f"{trial.configuration}: left out, because its build did not end in the {built.seconds:.0f} s that "
            "were left of the budget; it is tried if the study gets a larger budget",
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A generation that runs: its begin on the study's clock, the limits of its builds, and what has become of it.

    ``left_s`` is left of the budget; a build may take ``least_build_s`` even if less is left. The artifacts of
    ``stored`` builds are ``held`` until a row names them.
    """

    begin: float
    left_s: float
    least_build_s: float
    stored: dict[Path, StoredBuild]
    held: contextlib.ExitStack
    finished: list[Trial] = field(default_factory=list)
