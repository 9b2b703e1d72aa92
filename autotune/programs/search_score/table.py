"""The spaces of a recorded study, limited to the configurations that were recorded: Table, table_of."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from autotune import registry
from autotune.programs.search_score.recording import RecordedTrial, StudyRecording
from autotune.records.configuration import Configuration, Scalar
from autotune.records.search_space import Constraint, SearchSpace
from autotune.records.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpace(SearchSpace):
    """A backend's space with the constraint that a configuration was recorded.

    Parameters and choices are those of the whole space, so that a sampler sees the same axes; a proposal that was not
    recorded is illegal here.
    """

    points: tuple[Configuration, ...]

    def __iter__(self) -> Iterator[Configuration]:
        return iter(self.points)  # a whole space on a GPU has 12,288 points, and a replay begins many searches


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The recorded outcomes and costs by configuration, and the spaces to search them in; ``whole`` are not limited.

    ``outside`` is the number of recorded configurations that the spaces of this version do not have: carried plans, and
    those of versions with other parameters. They are left out.
    """

    recording: StudyRecording
    spaces: tuple[TableSpace, ...]
    whole: tuple[SearchSpace, ...]
    trials: Mapping[Configuration, RecordedTrial]
    outside: int

    @property
    def size(self) -> int:
        """The number of configurations of the whole spaces."""
        return sum(1 for space in self.whole for _ in space)

    @property
    def defaults(self) -> tuple[Configuration, ...]:
        """The recorded defaults of the backends."""
        return tuple(configuration for space in self.spaces for configuration in space.defaults)

    def best_of(self, configurations: Iterable[Configuration]) -> float | None:
        """Return the smallest latency of complete trials among configurations; ``None`` if there is none."""
        outcomes = [self.trials[configuration].outcome for configuration in configurations]
        complete = [outcome.score for outcome in outcomes if outcome.state == "complete"]
        return min((score for score in complete if score is not None), default=None)


def table_of(recording: StudyRecording) -> Table:
    """Return the table of a recording; backends without a recorded trial take no part."""
    by_configuration = {trial.outcome.configuration: trial for trial in recording.trials}
    workload = _with_recorded_features(recording.workload, by_configuration)
    spaces, wholes = [], []
    for name in registry.names():
        whole = registry.backend(name).space(recording.device, workload, has_factory=recording.has_factory)
        points = tuple(
            configuration for configuration in sorted(by_configuration, key=lambda point: point.canonical)
            if configuration.backend == name and whole.refusal(configuration) is None
        )  # fmt: skip
        if points:
            spaces.append(_limited(whole, points))
            wholes.append(whole)
    inside = {configuration for space in spaces for configuration in space.points}
    return Table(
        recording=recording,
        spaces=tuple(spaces),
        whole=tuple(wholes),
        trials={configuration: trial for configuration, trial in by_configuration.items() if configuration in inside},
        outside=len(by_configuration) - len(inside),
    )


def _with_recorded_features(workload: Workload, recorded: Iterable[Configuration]) -> Workload:
    """Return a workload with a feature for each parameter that was recorded.

    A database keeps the features that were matched when a workload was first captured. A later version may match more,
    and then has a parameter for each of them.
    """
    names = {f"{configuration.backend}.{name}" for configuration in recorded for name, _ in configuration.values}
    later = tuple(f"{name}:1" for name in sorted(names) if not workload.matches(name))
    return replace(workload, features=(*workload.features, *later))


def _limited(whole: SearchSpace, points: tuple[Configuration, ...]) -> TableSpace:
    recorded = set(points)

    def was_recorded(values: Mapping[str, Scalar]) -> bool:
        return Configuration.of(whole.backend, values) in recorded

    constraint = Constraint(reason="it was recorded", holds=was_recorded)
    return TableSpace(
        backend=whole.backend,
        parameters=whole.parameters,
        constraints=(*whole.constraints, constraint),
        defaults=tuple(default for default in whole.defaults if default in recorded),
        hints=tuple(hint for hint in whole.hints if hint in recorded),
        points=points,
    )
