"""The search over several backends: defaults, hints, then an allocator over the candidates of each backend."""

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration, Scalar
from autotune.records.search_space import SearchSpace
from autotune.search.allocator import Allocator
from autotune.search.history import TrialOutcome
from autotune.search.latency_model import LatencyModel
from autotune.search.sampler import BackendSampler, Refusal

log = logging.getLogger(__name__)

INACCURATE = 2
"""Refusals by the gate after which a precision is hopeless in a backend: layouts and fusions change its error little.

A study of ResNet-50 on a CPU spent twelve of 24 trials on bf16 in four backends, up to four in one, with errors of 1.04
to 1.4 times the limit.
"""


class Search:
    """Proposes the next configuration to try, never the same one twice.

    A proposal is a function of the spaces, the seed, the set of outcomes and what is running. The search itself
    remembers outcomes only, so the caller names a proposal in ``running`` until its outcome is observed. Defaults come
    first, every backend's first before any backend's second; then the ``hints`` that are in a space, in their order.
    Then the allocator chooses a backend. The next configuration of that backend is the next hint of its space, or the
    proposal of its sampler if there is no hint left. Configurations that the trials so far show to be hopeless come
    after all others: those that are much too slow (:class:`~autotune.search.latency_model.LatencyModel`), and those of
    a precision that the gate refused :data:`INACCURATE` times in the backend and never accepted. Not thread-safe.

    Raises :class:`~autotune.errors.SpaceError` if no space is given, or two of one backend.
    """

    def __init__(self, spaces: Sequence[SearchSpace], seed: int, hints: Sequence[Configuration] = ()) -> None:
        backends = [space.backend for space in spaces]
        if not backends:
            raise SpaceError("a search over no backend", expected="at least one backend with a space")
        if len(set(backends)) != len(backends):
            raise SpaceError("a search needs one space a backend", found=", ".join(backends))
        self._samplers = {space.backend: BackendSampler(space, seed) for space in spaces}
        self._allocator = Allocator(backends)
        # A space's hints wait until its backend promises most. Tried at once, in the order of the backends, they cost
        # the recorded studies of `programs.search_score` 56 s until a configuration was good instead of 19 s.
        self._own_hints = {space.backend: space.hints for space in spaces}
        self._first = (*_round_robin([space.defaults for space in spaces]), *self._fitting(hints))
        self._seen: set[str] = set()
        self._outcomes: list[TrialOutcome] = []
        self._accuracy: dict[tuple[str, Scalar], list[TrialOutcome]] = defaultdict(list)
        self._model: LatencyModel | None = None

    @property
    def uniform_draws(self) -> int:
        """The number of proposals that the samplers drew uniformly, because TPE's were illegal or already tried."""
        return sum(sampler.uniform_draws for sampler in self._samplers.values())

    @property
    def exhausted(self) -> bool:
        """Return whether every legal configuration of every backend has an outcome."""
        return all(sampler.exhausted for sampler in self._samplers.values())

    def observe(self, outcome: TrialOutcome) -> None:
        """Add the outcome of a trial, of this run or of an earlier one; a repeated configuration counts once."""
        configuration = outcome.configuration
        if configuration.digest in self._seen:
            log.debug("a second outcome of %s is left out", configuration)
            return
        self._seen.add(configuration.digest)
        sampler = self._samplers.get(configuration.backend)
        if sampler is None or sampler.space.refusal(configuration):
            log.debug("%s is in no space of this search and is not used", configuration)
            return
        sampler.observe(outcome)
        self._allocator.observe(outcome)
        self._outcomes.append(outcome)
        self._model = None
        self._accuracy[_precision(configuration)].append(outcome)

    def propose(
        self, running: Sequence[Configuration] = (), excluding: Sequence[Configuration] = ()
    ) -> Configuration | None:
        """Return the next configuration to try; ``None`` if every other one has an outcome or is running.

        Those of ``excluding`` are not proposed either, and are not running.
        """
        excluded = self._seen | {configuration.digest for configuration in (*running, *excluding)}
        for configuration in self._first:
            if configuration.digest not in excluded:
                return configuration
        under_way = Counter(c.backend for c in running if c.digest not in self._seen)
        ranked = self._allocator.ranked(under_way)
        model = self._latency_model()
        # A hint may have a value for which it was made a hint, such as tuned kernels: without a trial that has the
        # value, no model knows its effect.
        refusals: tuple[tuple[Refusal, Refusal], ...] = (
            (self._or_inaccurate(model.hopeless_as_known), self._or_inaccurate(model.hopeless)),
            (_never, _never),
        )
        for hint_fails, fails in refusals:
            hints = {
                backend: next((hint for hint in own if hint.digest not in excluded and not hint_fails(hint)), None)
                for backend, own in self._own_hints.items()
            }
            if proposal := self._next(ranked, hints, excluded, fails, side_by_side=bool(under_way)):
                return proposal
        return None

    def _next(
        self, ranked: Sequence[str], hints: Mapping[str, Configuration | None], excluded: Container[str],
        refuses: Refusal, *, side_by_side: bool,
    ) -> Configuration | None:  # fmt: skip
        """Return the hint of the most promising backend, or the proposal of its sampler that is not refused."""
        # Candidates that are built side by side do not learn from one another: hints come before draws in the dark.
        if side_by_side and (hint := next(filter(None, (hints[backend] for backend in ranked)), None)):
            return hint
        for backend in ranked:
            if proposal := hints[backend] or self._samplers[backend].propose(excluded, refuses):
                return proposal
        return None

    def _or_inaccurate(self, refuses: Refusal) -> Refusal:
        return lambda configuration: self._is_inaccurate(configuration) or refuses(configuration)

    def _is_inaccurate(self, configuration: Configuration) -> bool:
        """Return whether the gate refuses all of this precision in this backend, as far as the trials show."""
        outcomes = self._accuracy.get(_precision(configuration), [])
        return len(outcomes) >= INACCURATE and all(outcome.inaccurate for outcome in outcomes)

    def _latency_model(self) -> LatencyModel:
        if self._model is None:
            self._model = LatencyModel(self._outcomes)
        return self._model

    def _fitting(self, hints: Sequence[Configuration]) -> Iterator[Configuration]:
        for hint in hints:
            sampler = self._samplers.get(hint.backend)
            why = sampler.space.refusal(hint) if sampler else f"backend {hint.backend} takes no part"
            if why is None:
                yield hint
            else:
                log.info("hint %s is left out: %s", hint, why)


def _precision(configuration: Configuration) -> tuple[str, Scalar]:
    return configuration.backend, configuration.get("precision", "")


def _never(configuration: Configuration) -> bool:
    return False


def _round_robin(groups: Sequence[Sequence[Configuration]]) -> Iterator[Configuration]:
    """Yield the first of every group, then the second of every group, and so on."""
    for row in itertools.zip_longest(*groups):
        yield from (configuration for configuration in row if configuration is not None)
