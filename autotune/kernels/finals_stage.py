"""The last stage of a tuning, in which the best kernels of a problem are timed against each other: FinalsStage."""

from collections.abc import Sequence

from autotune.errors import StudyInterruptedError, StudyTakenOverError, WorkError
from autotune.kernels.bench import KernelBench
from autotune.kernels.build_stage import SESSION_S
from autotune.kernels.contenders import contenders, deciding_final
from autotune.kernels.requests import ProblemFinalists
from autotune.kernels.rounds import ComparedProblem
from autotune.kernels.work import TunedWork
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal, KernelFinalist

SHARE = 0.1
"""The share of the budget that is reserved for finals."""

ROUNDS, SAMPLES = 10, 3
"""The rounds of a final, and the calls of each finalist in a round."""

CHECKS = 10
"""The calls in which a finalist is checked and its timing is prepared."""

SAMPLE_S = 0.0015
"""The time of a sample besides the kernel's own: an H200 flushes its cache and spins, a CPU groups short calls."""


class FinalsStage:
    """Times the contenders of each problem against each other, those with the most weight and time first.

    A problem that is clear, or has a final of its contenders, needs none. So does one with a contender that is not
    compiled on this machine: its trial is of another. Each final is stored at once.
    """

    def __init__(self, bench: KernelBench, works: Sequence[TunedWork]) -> None:
        self._bench, self._works = bench, {work.problem: work for work in works if work.trouble is None}

    def run(self, limit_s: float) -> None:
        """Run the finals that end in time, and set those that decide; an error costs finals only."""
        undecided = self._undecided()
        if limit_s <= 0 or self._bench.stopped:
            return
        order = self._affordable(undecided, limit_s)
        if not order:
            return
        try:
            self._bench.executor.compare(order, self._note, rounds=ROUNDS, samples=SAMPLES, limit_s=limit_s)
        except (StudyInterruptedError, StudyTakenOverError):
            raise
        except WorkError as error:
            self._bench.say(f"the best kernels are chosen by the search alone: {error}")

    def _undecided(self) -> list[ProblemFinalists]:
        """Set the finals that decide already; return the finalists of the other problems, by weight and time."""
        stored = self._bench.finals(self._works)
        undecided = []
        for work in sorted(self._works.values(), key=lambda work: -work.weight * (work.best_us or 0.0)):
            trials = tuple(work.trials.values())
            finalists = contenders(trials)
            work.final = deciding_final(trials, stored.get(work.problem.digest, ()), self._bench.executor.toolchains)
            if work.final is None and len(finalists) > 1:
                undecided.append(ProblemFinalists(problem=work.problem, finalists=finalists))
        return undecided

    def _affordable(self, undecided: Sequence[ProblemFinalists], limit_s: float) -> list[ProblemFinalists]:
        """Return the problems whose finals fit into the time, in their order."""
        affordable = []
        for entry in undecided:
            needed_s = self._needed_s(entry)
            if needed_s <= limit_s and self._is_here(entry):
                affordable.append(entry)
                limit_s -= needed_s
        return affordable

    def _needed_s(self, entry: ProblemFinalists) -> float:
        trials = self._works[entry.problem].trials
        times_us = (trials[finalist].median_us or 0.0 for finalist in entry.finalists)
        return SESSION_S + sum((CHECKS + ROUNDS * SAMPLES) * (SAMPLE_S + us / 1e6) for us in times_us)

    def _is_here(self, entry: ProblemFinalists) -> bool:
        """Return whether all finalists can be loaded on this machine."""
        work = self._works[entry.problem]
        assert work.space is not None  # it has trials
        search, ready = self._bench.search(work), set(work.space.ready)
        builds: list[Configuration] = []
        for finalist in entry.finalists:
            if finalist not in ready:
                build = search.build_of(finalist)
                if build is None:
                    return False
                builds.append(build)
        return len(self._bench.executor.compiled(work.problem, builds)) == len(builds)

    def _note(self, compared: ComparedProblem) -> None:
        """Store a final; if finalists failed, say so."""
        work, executor = self._works[compared.problem], self._bench.executor
        if compared.failures:
            self._bench.say(
                f"{work.problem.canonical}: its best kernel is chosen by the search alone, for a final failed: "
                + "; ".join(compared.failures)
            )
            return
        work.final = KernelFinal(
            problem=work.problem, device_class=self._bench.device.device_class, conditions=compared.conditions,
            finalists=tuple(
                KernelFinalist(
                    configuration=finalist, toolchain=executor.toolchains.of(finalist.backend), rounds_us=blocks
                )
                for finalist, blocks in compared.blocks_us.items()
            ),
        )  # fmt: skip
        self._bench.record_final(work.final)
