"""The parameters that a backend lets us vary, and their legal combinations."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from autotune.records.configuration import Configuration, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A knob with its choices; the first choice is the backend's own default.

    ``build_cost`` is the build time of each choice relative to the default, if it is known to differ.
    """

    name: str
    choices: tuple[Scalar, ...]
    build_cost: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.build_cost) not in (0, len(self.choices)):
            raise ValueError(f"parameter {self.name} has {len(self.choices)} choices and {len(self.build_cost)} costs")
        if not self.choices or len(set(map(repr, self.choices))) != len(self.choices):
            raise ValueError(f"parameter {self.name} needs distinct choices, found {self.choices}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A condition that a legal combination of values satisfies, and its reason."""

    reason: str
    holds: Callable[[Mapping[str, Scalar]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The legal configurations of one backend on one device.

    ``defaults`` are the configurations that a user has off the shelf: they are tried first, and take part in the finals
    unless outclassed. ``hints`` are promising points that are tried before all others of this backend.
    """

    backend: str
    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...] = ()
    defaults: tuple[Configuration, ...] = ()
    hints: tuple[Configuration, ...] = ()

    def __post_init__(self) -> None:
        for configuration in (*self.defaults, *self.hints):
            why = self.refusal(configuration)
            if why:
                raise ValueError(f"{configuration} is not in its own space: {why}")

    def refusal(self, configuration: Configuration) -> str | None:
        """Return why a configuration is not in this space, or ``None`` if it is."""
        if configuration.backend != self.backend:
            return f"backend is {configuration.backend}, expected {self.backend}"
        values = dict(configuration.values)
        expected = {parameter.name for parameter in self.parameters}
        if set(values) != expected:
            return f"parameters are {sorted(values)}, expected {sorted(expected)}"
        for parameter in self.parameters:
            if not any(
                values[parameter.name] == choice and type(values[parameter.name]) is type(choice)
                for choice in parameter.choices
            ):
                return f"{parameter.name} = {values[parameter.name]!r}, expected one of {list(parameter.choices)}"
        return next((c.reason for c in self.constraints if not c.holds(values)), None)

    def build_cost(self, configuration: Configuration) -> float:
        """Return the expected build time of the configuration, relative to a default."""
        cost = 1.0
        for parameter in self.parameters:
            if parameter.build_cost:
                cost *= parameter.build_cost[parameter.choices.index(configuration[parameter.name])]
        return cost

    def __iter__(self) -> Iterator[Configuration]:
        names = [parameter.name for parameter in self.parameters]
        for values in itertools.product(*(parameter.choices for parameter in self.parameters)):
            point = dict(zip(names, values, strict=True))
            if all(constraint.holds(point) for constraint in self.constraints):
                yield Configuration.of(self.backend, point)

    @property
    def digest(self) -> str:
        """SHA-256 over parameters, choices and the reasons of the constraints; part of a study's identity."""
        content = {
            "backend": self.backend,
            "parameters": {p.name: [repr(choice) for choice in p.choices] for p in self.parameters},
            "constraints": sorted(c.reason for c in self.constraints),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
