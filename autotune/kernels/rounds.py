"""The results of rounds in which the kernels of one problem are timed against each other: ComparedProblem."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autotune.execute.channel import ChannelClosed, Message
from autotune.execute.session import Session
from autotune.kernels.requests import ProblemFinalists
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

log = logging.getLogger(__name__)

Blocks = tuple[tuple[float, ...], ...]
"""The microseconds of a finalist's calls in each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedProblem:
    """One problem's rounds in one process: the blocks of each finalist, and the conditions, which they share.

    With ``failures`` nothing was timed: one finalist that fails ends the comparison of its problem.
    """

    problem: GemmProblem
    blocks_us: Mapping[Configuration, Blocks] = field(default_factory=dict)
    conditions: Mapping[str, object] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


class RoundsReader:
    """Reads the results of the step ``kernel_rounds`` from its session; ``waiting`` has the problems without one."""

    def __init__(self, session: Session, work: Sequence[ProblemFinalists], samples: int) -> None:
        self._session, self._samples = session, samples
        self.waiting = {entry.problem.digest: entry for entry in work}
        self._unseen = set(self.waiting)
        self._results: dict[str, Message] = {}
        self._failures: list[str] = []

    def read(self, problem_limit_s: float, limit_s: float) -> Iterator[ComparedProblem]:
        """Yield each problem as soon as it is complete, until the step ends in any way.

        ``problem_limit_s`` is the time limit of each problem, ``limit_s`` that of the whole step.
        """
        try:
            while "result" not in (message := self._session.receive(problem_limit_s, limit_s)):
                if "turn" in message:
                    yield from self._end_problem()
                    self._begin(message["turn"])
                elif "kernel" in message:
                    yield from self._note(message["kernel"])
                elif "error" in message:
                    return
        except ChannelClosed:
            log.debug("a process that compared kernels is gone")
            return
        yield from self._end_problem()

    def _begin(self, digest: str) -> None:
        self._session.turn, self._results = digest, {}
        if digest in self._unseen:
            self._unseen.remove(digest)
            self._session.begin_part()

    def _note(self, result: Message) -> Iterator[ComparedProblem]:
        digest, _, finalist = result["candidate"].partition("/")
        entry = self.waiting.get(digest)
        if entry is None:
            return
        if "failure" in result:
            self._failures.append(f"{finalist[:12]} {result['failure']['detail']}".strip())
            return
        self._results[finalist] = result
        if all(each.digest in self._results for each in entry.finalists):
            del self.waiting[digest]
            yield self._compared(entry)

    def _end_problem(self) -> Iterator[ComparedProblem]:
        """Yield the problem whose finalists failed."""
        failures, self._failures = tuple(self._failures), []
        entry = self.waiting.pop(self._session.turn or "", None) if failures else None
        if entry is not None:
            yield ComparedProblem(problem=entry.problem, failures=failures)

    def _compared(self, entry: ProblemFinalists) -> ComparedProblem:
        results = {finalist: self._results[finalist.digest] for finalist in entry.finalists}
        return ComparedProblem(
            problem=entry.problem, conditions=next(iter(results.values())).get("conditions", {}),
            blocks_us={finalist: _blocks(result["samples_us"], self._samples) for finalist, result in results.items()},
        )  # fmt: skip


def _blocks(samples_us: Sequence[float], samples: int) -> Blocks:
    return tuple(tuple(samples_us[first : first + samples]) for first in range(0, len(samples_us), samples))
