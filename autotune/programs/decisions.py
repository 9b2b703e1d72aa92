"""Simulates finals under noise and counts right decisions: ``python -m autotune.programs.decisions``.

Finals of a baseline and one candidate are simulated and decided by the product's own rules, look by look, with three
processes to the first look as on a GPU and five as on a CPU. Prints a row for each kind of noise and number of
processes: the share of simulations in which two equal candidates are distinguished (at most 5% may be), or in which a
true lead is found.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from autotune import standard_streams
from autotune.measure.block import Block
from autotune.measure.finals import Finals
from autotune.measure.verdict import Verdict
from autotune.programs.check_result import CheckResult
from autotune.programs.document import Row
from autotune.programs.frame import Run, add_seed, add_workers, parser_of, positive, run_program, say
from autotune.programs.surroundings import environment

NAME = "decisions"
REPEATS = 2000
PROCESSES = (3, 5)
MOST_PROCESSES = 20
MOST_FALSE, FEWEST_FOUND = 0.05, 0.99
ROUND_NOISE, PROCESS_NOISE = 0.01, 0.01
"""Standard deviations of a log-ratio: of rounds in one process, and of processes."""
BASELINE, CANDIDATE = "baseline", "candidate"
BUSY: Mapping[str, Mapping[str, object]] = {"host": {"available": True, "device": "cpu", "competing_share": 0.5}}

Rng = np.random.Generator


class Noise:
    """The noise of one race of two finalists: one object a race, which draws one round after the other.

    ``lead`` is the log-ratio by which the candidate is truly faster.
    """

    process_noise = PROCESS_NOISE

    def __init__(self, rng: Rng, lead: float, processes: int) -> None:
        self.rng, self.lead, self.first_processes = rng, lead, processes
        # Two log-times: of the baseline and of the candidate.
        self.offset = np.zeros(2)
        self.begin()

    def begin(self) -> None:
        """Draw the noise of the whole race."""

    def process(self, index: int) -> None:
        """Draw the noise of one process."""
        self.offset = self.rng.normal(0, self.process_noise / math.sqrt(2), 2)

    def round(self, number: int) -> dict[str, Block]:
        """Draw one round; the two finalists run in random order."""
        order = [0, 1] if self.rng.random() < 0.5 else [1, 0]
        times = np.array([0.0, -self.lead]) + self.offset + self.rng.normal(0, ROUND_NOISE / math.sqrt(2), 2)
        struck = [False, False]
        for place, which in enumerate(order):
            extra, struck[which] = self.block(number + place / 2, which)
            times[which] += extra
        return {name: self._block(times[i], struck[i]) for i, name in enumerate((BASELINE, CANDIDATE))}

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """Return the slowdown of a block, as a logarithm, and whether others are seen to use the device."""
        return 0.0, False

    @staticmethod
    def _block(log_ms: float, struck: bool) -> Block:
        return Block(samples_ms=(math.exp(log_ms),), switches=(int(struck),), readings=BUSY if struck else {})


class Quiet(Noise):
    """Nothing but the noise of rounds and of processes."""


class UnlikeProcesses(Noise):
    """Processes that differ five times as much."""

    process_noise = 5 * PROCESS_NOISE


class LinearDrift(Noise):
    """Everything becomes slower in a straight line, by a tenth in a hundred rounds."""

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """See the class."""
        return 0.1 * at / 100, False


class TwoSpeeds(Noise):
    """A clock that switches between two speeds, 8% apart, at each block with a chance of one in ten."""

    slow = False

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """See the class."""
        self.slow ^= bool(self.rng.random() < 0.1)
        return 0.08 * self.slow, False


class OutlyingProcesses(Noise):
    """One process in five runs one of the two 1.5 to 10 times slower, and nothing shows why."""

    def process(self, index: int) -> None:
        """See the class."""
        super().process(index)
        if self.rng.random() < 0.2:
            self.offset[self.rng.integers(2)] += math.log(self.rng.uniform(1.5, 10))


class OneProcess(Noise):
    """One of the processes to the first look runs one of the two, or both, ten times slower."""

    def begin(self) -> None:
        """See the class."""
        self.bad = int(self.rng.integers(self.first_processes))
        self.slowed = ([0], [1], [0, 1])[int(self.rng.integers(3))]

    def process(self, index: int) -> None:
        """See the class."""
        super().process(index)
        if index == self.bad:
            self.offset[self.slowed] += math.log(10)


class Neighbour(Noise):
    """Another program starts and stops, and slows each block that it meets by 1.2 to 3 times; it is seen."""

    chance = 0.05
    weights = (1.0, 1.0)

    def begin(self) -> None:
        """See the class."""
        self.active = bool(self.rng.random() < 0.5)

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """See the class."""
        self.active ^= bool(self.rng.random() < self.chance)
        return (self.weights[which] * math.log(self.rng.uniform(1.2, 3)) if self.active else 0.0), self.active


class UnseenNeighbour(Neighbour):
    """The same, but nothing sees it."""

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """See the class."""
        return super().block(at, which)[0], False


class UnfairNeighbour(Neighbour):
    """The same, seen, but it hurts only the baseline, whose threads wait for one another."""

    weights = (1.0, 0.0)


class LastingLoad(UnfairNeighbour):
    """A load that stays, is seen, and hurts only the baseline: by 1.2 to 1.5, within what the rule allows for."""

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """See the class."""
        return self.weights[which] * math.log(self.rng.uniform(1.2, 1.5)), True


class SparingLoad(LastingLoad):
    """The same, but one block in five of the baseline's escapes it."""

    def block(self, at: float, which: int) -> tuple[float, bool]:
        """See the class."""
        return (0.0, False) if self.rng.random() < 0.2 else super().block(at, which)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of noise with one true lead, and the limit of its share of decisions: at most or at least."""

    name: str
    noise: type[Noise]
    lead: float = 0.0
    limit: float = MOST_FALSE
    judged: bool = True


SCENARIOS = (
    Scenario(name="equals, quiet", noise=Quiet),
    Scenario(name="equals, processes that differ by 5%", noise=UnlikeProcesses, judged=False),
    Scenario(name="equals, drift", noise=LinearDrift),
    Scenario(name="equals, two clock speeds", noise=TwoSpeeds),
    Scenario(name="equals, outlying processes", noise=OutlyingProcesses),
    Scenario(name="equals, one process ten times slower", noise=OneProcess),
    Scenario(name="equals, a neighbour that comes and goes", noise=Neighbour),
    Scenario(name="equals, an unseen neighbour", noise=UnseenNeighbour),
    Scenario(name="equals, a neighbour that hurts one of them", noise=UnfairNeighbour),
    Scenario(name="equals, a lasting load that hurts one of them", noise=LastingLoad),
    Scenario(name="2% faster, quiet", noise=Quiet, lead=math.log(1.02), limit=0.0, judged=False),
    Scenario(
        name="1.5x faster, one process ten times slower", noise=OneProcess, lead=math.log(1.5), limit=FEWEST_FOUND
    ),
    Scenario(
        name="1.5x faster, outlying processes", noise=OutlyingProcesses, lead=math.log(1.5), limit=0.0, judged=False
    ),
    Scenario(
        name="1.5x faster, a neighbour that comes and goes", noise=Neighbour, lead=math.log(1.5), limit=FEWEST_FOUND
    ),
    Scenario(name="3x faster, an unseen neighbour", noise=UnseenNeighbour, lead=math.log(3), limit=FEWEST_FOUND),
    Scenario(
        name="3x faster, a lasting load that spares a fifth", noise=SparingLoad, lead=math.log(3), limit=FEWEST_FOUND
    ),
    Scenario(name="3x faster, a lasting load", noise=LastingLoad, lead=math.log(3), limit=0.0, judged=False),
    Scenario(name="5x faster, a lasting load", noise=LastingLoad, lead=math.log(5), limit=FEWEST_FOUND),
)


def decide(noise: Noise, processes: int) -> tuple[Verdict, int]:
    """Run one race to its end, and return the verdict and the number of its looks."""
    finals = Finals([BASELINE, CANDIDATE], baselines=[BASELINE], processes=processes)
    for index in range(MOST_PROCESSES):
        noise.process(index)
        for _ in range(finals.next_rounds()):
            finals.add(index, [noise.round(finals.rounds)])
        verdict = finals.look()
        if verdict is not None:
            return verdict, index + 2 - processes
    raise RuntimeError(f"finals ended in no verdict after {MOST_PROCESSES} processes")


def simulate(row: Scenario, processes: int, repeats: int, seed: int) -> dict[str, float]:
    """Run the races and return the shares of their outcomes.

    ``faster`` and ``slower`` count the races in which the verdict found a difference between candidate and
    baseline. After an ``undecided`` one the user has to run the finals again.
    """
    counts = dict.fromkeys(("faster", "slower", "undecided", "first_look"), 0)
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, processes, repeat])
        verdict, looks = decide(row.noise(rng, row.lead, processes), processes)
        counts["faster"] += verdict.status in ("promoted", "tie")
        counts["slower"] += verdict.status == "baseline" and CANDIDATE not in verdict.tied_with
        counts["undecided"] += verdict.status == "undecided"
        counts["first_look"] += looks == 1
    return {name: count / repeats for name, count in counts.items()}


def result_of(row: Scenario, processes: int, shares: Mapping[str, float]) -> CheckResult:
    """Hold the shares of a row against its limit."""
    distinguished = shares["faster"] + shares["slower"]
    if row.lead:
        limit = f"at least {row.limit:.0%} found, {MOST_FALSE:.0%} found slower" if row.judged else "not judged"
        passed = not row.judged or (shares["faster"] >= row.limit and shares["slower"] <= MOST_FALSE)
        shown = f"{shares['faster']:.1%} found, {shares['slower']:.1%} found slower"
    else:
        limit = f"at most {row.limit:.0%} told apart" if row.judged else "not judged"
        passed = not row.judged or distinguished <= row.limit
        shown = f"{distinguished:.1%} told apart"
    return CheckResult(
        check=f"{row.name}; {processes} processes",
        figure=f"{shown}, {shares['undecided']:.1%} undecided; {shares['first_look']:.0%} ended at the first look",
        limit=limit, passed=passed, raw={"processes": processes, "lead": row.lead, **shares},
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _simulate_rows, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the environment and the shares")
    parser.add_argument("--repeats", type=positive, default=REPEATS, metavar="N", help=f"races a row ({REPEATS})")
    add_seed(parser)
    add_workers(parser)
    return parser


def _simulate_rows(run: Run) -> int:
    options = run.options
    tasks = [(row, processes) for row in SCENARIOS for processes in PROCESSES]
    simulated = partial(_simulated, repeats=options.repeats, seed=options.seed)
    rows = []
    for (row, processes), shares in zip(tasks, _mapped(simulated, tasks, options.workers), strict=True):
        result = result_of(row, processes, shares)
        say(f"{result.check}: {result.figure}")
        rows.append(Row(group=row.name, result=result))
    return run.report(
        rows, environment("cpu"), quick=options.repeats < REPEATS, seed=options.seed, more={"repeats": options.repeats}
    )


def _simulated(task: tuple[Scenario, int], *, repeats: int, seed: int) -> dict[str, float]:
    return simulate(*task, repeats, seed)


def _mapped(
    run: Callable[[tuple[Scenario, int]], dict[str, float]], tasks: Sequence[tuple[Scenario, int]], workers: int
) -> Iterator[dict[str, float]]:
    if workers == 1:
        yield from map(run, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(run, tasks)


if __name__ == "__main__":
    standard_streams.run(main)
