"""Timing a recorded space: every build's plainest launch, then other launches, then the best once more: Recorder.

A median of few short samples is enough to distinguish builds by more than the 3% that a search may miss. But the least
of thousands of such medians is low by chance, so the best of each problem are timed once more, with many samples.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from autotune import registry
from autotune.errors import AutotuneError, WorkError
from autotune.kernel import KernelSpace
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.rates import DeviceRates
from autotune.kernels.timing import TimingLimits
from autotune.programs.kernel_recording.builds import Recording
from autotune.programs.kernel_search.space_file import RecordedSpace
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

log = logging.getLogger(__name__)

SCREENING = {
    "cpu": TimingLimits(sampling_s=0.05, least_samples=7),
    "cuda": TimingLimits(sampling_s=0.005, least_samples=7),
}
"""Limits of a candidate's first times: on a GPU about 15 samples, since one takes a third of a millisecond, flush and
spin included; an interval of the median needs at least seven."""

AGAIN = {"cpu": TimingLimits(sampling_s=0.4, least_samples=20), "cuda": TimingLimits(sampling_s=0.1, least_samples=100)}
BEST = 20
"""The candidates of each problem that are timed once more."""

AGAIN_SHARE = 0.2
"""The share of the time for that."""

LAUNCHES = 12
"""The launches of a build by default: they include all that differ from the plainest in one parameter."""

IN_A_PROCESS = 200
"""The most candidates of one process; starting a process takes about as long as timing a hundred candidates."""

SAMPLE = 16
"""The candidates from whose timing the time of the rest is estimated."""

_TOGETHER = ("decomposition", "splits")

Stage = Literal["screening", "again"]


class Trials:
    """The trials of a recording in a file, one line each, written at once; of a candidate the latest one counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.latest: dict[tuple[GemmProblem, Configuration], tuple[Stage, KernelTrial]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                data = json.loads(line)
            except ValueError:
                log.warning("a line of %s was not written to its end; its candidate is timed again", path)
                continue
            self._keep(data["stage"], KernelTrial.from_dict(data["trial"]))

    def add(self, stage: Stage, trial: KernelTrial) -> None:
        """Write one trial."""
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "trial": trial.as_dict()}, allow_nan=False) + "\n")
        self._keep(stage, trial)

    def has(self, problem: GemmProblem, candidate: Configuration, stage: Stage) -> bool:
        """Return true if a candidate was timed at a stage or a later one, or failed at any."""
        latest = self.latest.get((problem, candidate))
        return latest is not None and (latest[1].failure is not None or stage in ("screening", latest[0]))

    def of(self, problem: GemmProblem) -> list[KernelTrial]:
        """Return the trials of a problem, complete ones first, the fastest first."""
        trials = (trial for (timed, _), (_, trial) in self.latest.items() if timed == problem)
        return sorted(trials, key=lambda trial: (trial.state != "complete", trial.median_us or 0.0))

    def best_us(self, problem: GemmProblem) -> float | None:
        """Return the least median of a problem."""
        return next((trial.median_us for trial in self.of(problem)), None)

    def _keep(self, stage: Stage, trial: KernelTrial) -> None:
        self.latest[trial.problem, trial.configuration] = (stage, trial)


class Recorder:
    """Times the compiled builds of a recording on a device, within a time limit; those in ``trials`` are not repeated.

    ``launches`` is the number of a build's launches that are timed on each problem; ``tell`` gets lines of progress.
    """

    def __init__(
        self,
        recording: Recording,
        executor: KernelExecutor,
        trials: Trials,
        *,
        launches: int = LAUNCHES,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recording, self.executor, self.trials, self.launches = recording, executor, trials, launches
        self.troubles: dict[int, AutotuneError] = {}
        self._tell, self._clock = tell, clock
        self._kind = executor.device.kind
        provider = registry.kernels(recording.backend)
        self._spaces: list[KernelSpace] = [provider.space(executor.device, problem) for problem in recording.problems]
        self._start_s = self._candidate_s = 0.0
        self._note_refused()

    def run(self, limit_s: float) -> bool:
        """Time the missing candidates; returns true if all were timed before the time was up."""
        begin = self._clock()
        screened = begin + (1 - AGAIN_SHARE) * limit_s
        places = range(len(self.recording.problems))
        self._estimate(limit_s)
        for place in places:
            self._time(place, self._plain(place), "screening", screened)
        for place in places:
            share_s = max(0.0, screened - self._clock()) / (len(places) - place)
            self._time(place, self._others(place), "screening", self._clock() + share_s)
        for place in places:
            share_s = max(0.0, begin + limit_s - self._clock()) / (len(places) - place)
            self._time(place, self._best(place), "again", self._clock() + share_s)
        return not any(self._left(place) for place in places)

    def launches_of(self, place: int, build: Configuration) -> list[Configuration]:
        """Return the launches of a build that are timed on a problem, the plainest first."""
        return spread_launches(self._spaces[place].launches(build), self.launches)

    def record(self, rates: DeviceRates) -> RecordedSpace:
        """Return the trials so far as a recorded space; raises WorkError if there is none."""
        recording = self.recording
        everywhere = {
            build: next(iter(reasons.values()))
            for build, reasons in recording.refused().items()
            if len(reasons) == len(recording.problems)
        }
        trials: list[KernelTrial] = []
        launches: dict[Configuration, dict[Configuration, None]] = {}
        for place, problem in enumerate(recording.problems):
            for chosen in recording.builds:
                if place not in chosen.places or chosen.build in everywhere:
                    continue
                for launch in self.launches_of(place, chosen.build):
                    latest = self.trials.latest.get((problem, launch))
                    if latest is not None:
                        trials.append(latest[1])
                        launches.setdefault(chosen.build, {})[launch] = None
        if not trials:
            raise WorkError("a recorded space", found="no build that was timed", expected="one at least")
        builds = {build: (recording.compile_s(build), tuple(some)) for build, some in launches.items()}
        return RecordedSpace.of(trials, builds, rates=rates, refusals=everywhere)

    def _note_refused(self) -> None:
        """Add a failed trial of each problem for which the compiler refused a build that it compiled for others."""
        for build, reasons in self.recording.refused().items():
            if len(reasons) == len(self.recording.problems):
                continue
            for place, why in reasons.items():
                problem, plainest = self.recording.problems[place], self._spaces[place].launches(build)[0]
                if not self.trials.has(problem, plainest, "screening"):
                    failure = Failure(stage="build", kind="error", detail=why)
                    self.trials.add("screening", self.executor.failed(problem, plainest, failure))

    def _left(self, place: int) -> bool:
        return bool(self._plain(place) or self._others(place) or self._best(place))

    def _plain(self, place: int) -> list[Configuration]:
        """Return the first candidates: the libraries' calls, and the plainest launch of every build."""
        space = self._spaces[place]
        plain = [space.launches(build)[0] for build in self.recording.compiled(place)]
        return self._untimed(place, [*space.ready, *plain], "screening")

    def _others(self, place: int) -> list[Configuration]:
        """Return the other launches, those of the fastest builds first, since the last ones may be left out."""
        problem = self.recording.problems[place]
        plain_us: dict[Configuration, float] = {}
        for build in self.recording.compiled(place):
            latest = self.trials.latest.get((problem, self._spaces[place].launches(build)[0]))
            if latest is not None and latest[1].median_us is not None:
                plain_us[build] = latest[1].median_us
        ranked = sorted(plain_us, key=lambda build: plain_us[build])
        others = [launch for build in ranked for launch in self.launches_of(place, build)[1:]]
        return self._untimed(place, others, "screening")

    def _best(self, place: int) -> list[Configuration]:
        """Return the best so far, in random order, so that changes over time favour none."""
        complete = [trial for trial in self.trials.of(self.recording.problems[place]) if trial.state == "complete"]
        best = self._untimed(place, [trial.configuration for trial in complete[:BEST]], "again")
        random.Random(self.recording.seed).shuffle(best)
        return best

    def _untimed(self, place: int, candidates: Sequence[Configuration], stage: Stage) -> list[Configuration]:
        if place in self.troubles:
            return []
        problem = self.recording.problems[place]
        return [candidate for candidate in candidates if not self.trials.has(problem, candidate, stage)]

    def _estimate(self, limit_s: float) -> None:
        """Time a few candidates, and print the estimated time of the rest."""
        waiting = {place: candidates for place in range(len(self._spaces)) if (candidates := self._plain(place))}
        if not waiting:
            return
        place, candidates = next(iter(waiting.items()))
        self._time(place, candidates[:SAMPLE], "screening", self._clock() + limit_s)
        count = sum(
            len(self._untimed(place, [*self._spaces[place].ready, *self._all_launches(place)], "screening"))
            for place in range(len(self._spaces))
        )
        processes = len(self._spaces) + count // IN_A_PROCESS
        seconds = count * self._candidate_s + processes * self._start_s
        self._tell(
            f"{count} more candidates on {len(self._spaces)} problems: about {seconds:.0f} s at "
            f"{1e3 * self._candidate_s:.1f} ms each and {self._start_s:.1f} s a process, before the best are timed "
            f"once more; there are {(1 - AGAIN_SHARE) * limit_s:.0f} s for them"
        )

    def _all_launches(self, place: int) -> Iterator[Configuration]:
        for build in self.recording.compiled(place):
            yield from self.launches_of(place, build)

    def _time(self, place: int, candidates: Sequence[Configuration], stage: Stage, until: float) -> None:
        """Time candidates, process by process; no process begins that would not end in time."""
        problem, rest, done = self.recording.problems[place], list(candidates), 0
        limits = (SCREENING if stage == "screening" else AGAIN)[self._kind]
        while rest and not self.executor.server.closed:
            each_s = self._candidate_s + (limits.sampling_s if stage == "again" else 0.0)
            room_s = until - self._clock() - self._start_s
            fit = min(len(rest), IN_A_PROCESS, int(room_s / each_s) if each_s else SAMPLE)
            if room_s <= 0 or fit < 1:
                break
            some, rest = rest[:fit], rest[fit:]
            ends = [self._clock()]

            def take(trial: KernelTrial, ends: list[float] = ends) -> None:
                self.trials.add(stage, trial)
                ends.append(self._clock())

            try:
                self.executor.time(problem, some, self.trials.best_us(problem), take, limits=limits)
            except WorkError as error:
                self.troubles[place] = error
                self._tell(f"{problem.canonical}: {error}")
                return
            done += len(ends) - 1
            if stage == "screening" and len(ends) > 2:
                self._candidate_s = (ends[-1] - ends[1]) / (len(ends) - 2)
                self._start_s = max(0.0, ends[1] - ends[0] - self._candidate_s)
        best_us = self.trials.best_us(problem)
        if candidates and best_us is not None:
            shape = f"{problem.m}×{problem.n}×{problem.k}"
            self._tell(f"{shape}: {done} of {len(candidates)} timed ({stage}), the best takes {best_us:.2f} µs")


def spread_launches(launches: Sequence[Configuration], count: int) -> list[Configuration]:
    """Return ``count`` launches: the plainest, then those that differ from it in one parameter, in two, in more.

    Of those that differ in the same number of parameters, the combinations of parameters take turns.
    """
    plainest = launches[0]
    groups: dict[frozenset[str], list[Configuration]] = {}
    for launch in launches[1:]:
        pairs = zip(launch.values, plainest.values, strict=True)
        differing = {
            _TOGETHER[0] if name in _TOGETHER else name for (name, value), (_, plain) in pairs if value != plain
        }
        groups.setdefault(frozenset(differing), []).append(launch)
    chosen = [plainest]
    for size in sorted({len(differing) for differing in groups}):
        waiting = [list(group) for differing, group in groups.items() if len(differing) == size]
        while waiting:
            chosen += [group.pop(0) for group in waiting]
            waiting = [group for group in waiting if group]
    return chosen[:count]
