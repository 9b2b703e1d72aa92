"""The next configuration of one backend: Optuna's TPE by ask and tell, rebuilt from history at every ask."""

import hashlib
import logging
import math
import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.records.configuration import Configuration, Scalar
from autotune.records.search_space import Parameter, SearchSpace
from autotune.search.history import TrialOutcome

STARTUP_TRIALS = 5
"""Outcomes of a backend before TPE takes over from uniform draws; Optuna's 10 would be most of its share of a study."""

ASKS = 16
"""Proposals that TPE is asked for, while they are illegal or already tried, before a uniform draw replaces them."""

LOOKED_AT = 256
"""Configurations that are shown to the caller of a proposal; a space on a GPU has more than 10,000."""

Refusal = Callable[[Configuration], bool]
"""Returns whether a configuration must not be proposed now."""

BROKEN = "broken"
"""Name of the constraint that a failed or infeasible outcome breaks."""

log = logging.getLogger(__name__)


class BackendSampler:
    """Proposes configurations of one backend's space, each at most once, until none is left.

    A proposal depends on the seed, the *set* of outcomes and the set of excluded configurations alone, not on the order
    in which outcomes arrived or on earlier proposals: a study that is resumed makes the proposals it would have made.
    Optuna sees the logarithm of the latency; a failed or infeasible outcome breaks a constraint, so that TPE models its
    neighbourhood as bad without inventing a figure; a pruned one ranks behind every complete one. Not thread-safe.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self._seed = seed
        self._axes = tuple(_Axis(parameter) for parameter in space.parameters)
        self._outcomes: dict[str, TrialOutcome] = {}
        self.uniform_draws = 0

    @cached_property
    def points(self) -> Mapping[str, Configuration]:
        """Every legal configuration by its digest."""
        return {configuration.digest: configuration for configuration in self.space}

    @property
    def exhausted(self) -> bool:
        """Return whether every legal configuration has an outcome."""
        return len(self._outcomes) == len(self.points)

    def observe(self, outcome: TrialOutcome) -> None:
        """Add an outcome; a second one of the same configuration replaces the first.

        Raises ``ValueError`` if the configuration is not in the space.
        """
        if why := self.space.refusal(outcome.configuration):
            raise ValueError(f"{outcome.configuration} is not in the space of {self.space.backend}: {why}")
        self._outcomes[outcome.configuration.digest] = outcome

    def propose(
        self, exclude: Container[str] = (), refuses: Refusal = lambda configuration: False
    ) -> Configuration | None:
        """Return the next configuration whose digest is not excluded, or ``None`` if none is left.

        Excluded configurations without an outcome count as running; TPE keeps away from them too. A configuration that
        ``refuses`` is true for is not returned; ``None`` if it is true for :data:`LOOKED_AT` of those that are left.
        """
        open_points = {digest: point for digest, point in self.points.items() if digest not in self._outcomes}
        running = [point for digest, point in open_points.items() if digest in exclude]
        untried = [digest for digest in open_points if digest not in exclude]
        state = self._random_state(len(self._outcomes) + len(running))
        looked_at = untried if len(untried) <= LOOKED_AT else random.Random(state).sample(untried, LOOKED_AT)
        accepted = [digest for digest in looked_at if not refuses(open_points[digest])]
        if len(accepted) <= 1:
            return open_points[accepted[0]] if accepted else None
        for proposal in self._proposals(running, state):
            if proposal.digest in open_points and proposal.digest not in exclude and not refuses(proposal):
                return proposal
        self.uniform_draws += 1
        log.debug("%s: %d proposals were known or illegal, drawing uniformly", self.space.backend, ASKS)
        return open_points[random.Random(state).choice(accepted)]

    def _random_state(self, trials: int) -> int:
        """Derive a 32-bit seed from the study's seed, the backend and the number of its trials."""
        text = f"{self._seed}/{self.space.backend}/{trials}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def _proposals(self, running: Iterable[Configuration], state: int) -> Iterator[Configuration]:
        """Yield at most :data:`ASKS` proposals; one not taken stays open and so pushes the next away from it."""
        study = self._study(running, state)
        distributions = {axis.name: axis.distribution for axis in self._axes if axis.varies}
        for _ in range(ASKS):
            places = study.ask(distributions).params
            values = {axis.name: axis.choices[places.get(axis.name, 0)] for axis in self._axes}
            yield Configuration.of(self.space.backend, values)

    def _study(self, running: Iterable[Configuration], state: int) -> optuna.Study:
        """Build an Optuna study in memory with every outcome (in canonical order) and every running trial."""
        sampler = optuna.samplers.TPESampler(seed=state, n_startup_trials=STARTUP_TRIALS)
        with _quiet():
            study = optuna.create_study(direction="minimize", sampler=sampler)
        study.add_trials([self._frozen_trial(outcome) for _, outcome in sorted(self._outcomes.items())])
        study.add_trials([self._trial(point, state=TrialState.RUNNING) for point in running])
        return study

    def _frozen_trial(self, outcome: TrialOutcome) -> FrozenTrial:
        """Convert an outcome to Optuna's trial, never with a value that is not finite."""
        point = outcome.configuration
        value = None if outcome.score is None else math.log(outcome.score)
        if outcome.state == "complete":
            return self._trial(point, state=TrialState.COMPLETE, value=value, constraints={BROKEN: 0.0})
        if outcome.state == "pruned":
            steps = {} if value is None else {0: value}
            return self._trial(point, state=TrialState.PRUNED, intermediate_values=steps, constraints={BROKEN: 0.0})
        return self._trial(point, state=TrialState.PRUNED, constraints={BROKEN: 1.0})

    def _trial(
        self,
        configuration: Configuration,
        *,
        state: TrialState,
        value: float | None = None,
        intermediate_values: dict[int, float] | None = None,
        constraints: dict[str, float] | None = None,
    ) -> FrozenTrial:
        values = dict(configuration.values)
        varying = [axis for axis in self._axes if axis.varies]
        return optuna.trial.create_trial(
            params={axis.name: axis.place(values[axis.name]) for axis in varying},
            distributions={axis.name: axis.distribution for axis in varying},
            state=state,
            value=value,
            intermediate_values=intermediate_values,
            constraints=constraints,
        )


class _Axis:
    """A parameter as Optuna sees it: the indices of its choices, in numeric order if they are numbers.

    Indices instead of values keep ``1``, ``1.0`` and ``True`` apart, and show TPE that 4 threads are near 8.
    """

    def __init__(self, parameter: Parameter) -> None:
        numeric = all(isinstance(c, int | float) and not isinstance(c, bool) for c in parameter.choices)
        self.name = parameter.name
        self.choices: tuple[Scalar, ...] = tuple(sorted(parameter.choices)) if numeric else parameter.choices
        self.varies = len(self.choices) > 1
        self.distribution: BaseDistribution = (
            IntDistribution(0, len(self.choices) - 1)
            if numeric and len(self.choices) > 2
            else CategoricalDistribution(tuple(range(len(self.choices))))
        )

    def place(self, value: Scalar) -> int:
        """Return the index of a value among the choices."""
        kinds = [(type(choice), choice) for choice in self.choices]
        return kinds.index((type(value), value))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that lives for one proposal, and leave its verbosity as it was."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
