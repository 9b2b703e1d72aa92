"""The time that the next builds of a search will take: GenerationPace."""

from collections import deque
from collections.abc import Sequence
from statistics import fmean

from autotune.execute.answers import BuildAnswer
from autotune.execute.message import WAIT
from autotune.execute.session import QUEUED
from autotune.execute.step_result import StepResult
from autotune.records.configuration import Configuration
from autotune.records.search_space import SearchSpace
from autotune.records.trial import Trial

LAST = 3
"""The number of generations whose starts and turns count: the first one of a study also waits for imports."""


class GenerationPace:
    """Expects how long candidates that are built together will take, from those before.

    Builds run side by side, and checks and timings one after the other. A study of ViT-B/16 that counted builds alone
    began eight candidates 36 s before the end of its budget; they took 64 s, of which 16 s were the search for the
    kernel problems of their graphs.
    """

    def __init__(self) -> None:
        self._build_s: dict[str, float] = {}
        self._beside_s: deque[float] = deque([0.0], maxlen=LAST)
        self._looking_s = 0.0
        self._timings_s: list[float] = []

    def build_s(self, configuration: Configuration, space: SearchSpace) -> float:
        """Return the time that a build is expected to take: that of the longest of its backend, times its cost."""
        return self._build_s.get(configuration.backend, 0.0) * space.build_cost(configuration)

    def fits(self, builds_s: Sequence[float], budget_s: float, *, looks: bool) -> bool:
        """Return whether candidates with some build times are expected to be timed within the budget.

        ``looks`` says that the kernel problems of some graphs have to be looked for first.
        """
        timing_s = fmean(self._timings_s) if self._timings_s else 0.0
        beside_s = max(self._beside_s) if max(builds_s) else 0.0
        beside_s += self._looking_s if looks else 0.0
        return max(builds_s) + beside_s + len(builds_s) * timing_s <= budget_s

    def note_look(self, seconds: float) -> None:
        """Take into account how long candidates were looked for in the database, with the problems of their graphs."""
        self._looking_s = max(self._looking_s, seconds)

    def note_build(self, trial: Trial) -> None:
        """Take the build time of a trial into account."""
        backend = trial.configuration.backend
        self._build_s[backend] = max(self._build_s.get(backend, 0.0), trial.build_s or 0.0)

    def note_builds(self, builds: Sequence[StepResult[BuildAnswer]]) -> None:
        """Take into account what starts of processes added to some builds that ran side by side.

        Waits for the device do not count: in the first generation kernels are tuned beside the builds, and later not.
        A study of EfficientNet-B0 that counted them began no candidate with tuned kernels, with 58 s left.
        """
        if builds and all(built.value is not None for built in builds):
            beside_s = (built.seconds - built.answer.build_s - _waited_s(built) for built in builds)
            self._beside_s.append(max(0.0, *beside_s))

    def note_timing(self, seconds: float) -> None:
        """Take the time of checking and timing a candidate into account."""
        self._timings_s.append(seconds)


def _waited_s(built: StepResult[BuildAnswer]) -> float:
    return sum(end - begin for stage, begin, end in built.spans if stage in (WAIT, QUEUED))
