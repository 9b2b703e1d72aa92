"""Configurations that were best in other studies, as hints for a new one: warm_start."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autotune.records.configuration import Configuration
from autotune.records.search_space import SearchSpace

MOST = 5
"""The most hints: on a CPU each costs as much as a default."""

NEAR = 1.03
"""A finalist that took at most this multiple of the best of its study was as good as the best."""

LONGEST_BUILD = 2.0
"""A build that takes a larger multiple of a default's is no hint: inductor's ``max_autotune`` took 240 s on an H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastFinals:
    """The finals of another study: each finalist with its value, and the baseline's, in the unit of the objective."""

    name: str
    batch: int
    device_class: str
    baseline: float
    finalists: tuple[tuple[Configuration, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmHint:
    """A configuration to try early, and the studies that speak for it.

    ``studies`` are those in which it was as good as the best (:data:`NEAR`), and ``gain`` is the baseline's value over
    its own, the geometric mean over them.
    """

    configuration: Configuration
    studies: tuple[PastFinals, ...]
    gain: float


def warm_start(
    past: Sequence[PastFinals], spaces: Sequence[SearchSpace], *, name: str, device_class: str
) -> tuple[WarmHint, ...]:
    """Return at most :data:`MOST` hints for a study of the model ``name``, those of the nearest studies first.

    Nearest are studies of the same model (at another batch, say) on the same device class, then those of other models
    on it, then the same for other device classes. In each of these groups every backend proposes the configuration that
    was as good as the best in most studies, then by its gain; the backends follow in the same order. A backend that has
    proposed does not propose again. No default is proposed, because a study tries these first, and nothing that builds
    for more than :data:`LONGEST_BUILD` times as long as a default.
    """
    by_backend = {space.backend: space for space in spaces}
    defaults = {configuration for space in spaces for configuration in space.defaults}
    hints: dict[str, WarmHint] = {}
    ordered = sorted(past, key=lambda finals: _distance(finals, name, device_class))
    for _, group in itertools.groupby(ordered, key=lambda finals: _distance(finals, name, device_class)):
        for hint in sorted(_candidates(list(group), by_backend), key=_promise):
            if hint.configuration not in defaults:
                hints.setdefault(hint.configuration.backend, hint)
    return tuple(hints.values())[:MOST]


def adapted(configuration: Configuration, space: SearchSpace) -> Configuration | None:
    """Return the point of a space that has the values of a configuration; ``None`` if the space has no such point.

    Spaces of one backend differ by model: a parameter that this space does not have is left out, and one that the
    configuration does not have gets its first choice, which is the backend's own default.
    """
    values = dict(configuration.values)
    point = {parameter.name: values.get(parameter.name, parameter.choices[0]) for parameter in space.parameters}
    fitting = Configuration.of(space.backend, point)
    return fitting if space.refusal(fitting) is None else None


def _distance(finals: PastFinals, name: str, device_class: str) -> tuple[bool, bool]:
    return finals.device_class != device_class, finals.name != name


def _candidates(past: Sequence[PastFinals], spaces: Mapping[str, SearchSpace]) -> Iterator[WarmHint]:
    """Yield every configuration that the spaces have and that was as good as the best of one of these finals."""
    results: dict[Configuration, dict[int, float]] = defaultdict(dict)
    for place, finals in enumerate(past):
        best = min((value for _, value in finals.finalists), default=0.0)
        for configuration, value in finals.finalists:
            space = spaces.get(configuration.backend)
            fitting = None if space is None or value > NEAR * best else adapted(configuration, space)
            if fitting is not None and space is not None and space.build_cost(fitting) <= LONGEST_BUILD:
                results[fitting][place] = min(value, results[fitting].get(place, value))
    for configuration, values in results.items():
        gains = [math.log(past[place].baseline / value) for place, value in values.items()]
        studies = tuple(past[place] for place in values)
        yield WarmHint(configuration=configuration, studies=studies, gain=math.exp(fmean(gains)))


def _promise(hint: WarmHint) -> tuple[int, float, str]:
    return -len(hint.studies), -hint.gain, hint.configuration.canonical
