"""One point of a search space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.records.canonical import canonical, digest

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A backend and the value of each of its parameters; immutable, canonical, hashed.

    ``values`` are sorted pairs, so that two configurations that mean the same are equal.
    """

    backend: str
    values: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if not self.backend.isidentifier():
            raise ValueError(f"backend {self.backend!r} is not a name")
        for name, value in self.values:
            if not name.isidentifier() or name == "backend":
                raise ValueError(f"parameter {name!r} of {self.backend} is not a name")
            if not isinstance(value, str | int | float | bool):
                raise ValueError(f"{self.backend}.{name} = {value!r} is neither text, number nor truth value")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.backend}.{name} = {value!r} is not a finite number")
        names = [name for name, _ in self.values]
        if names != sorted(set(names)):
            raise ValueError(f"parameters of {self.backend} must be sorted and distinct, found {names}")

    @classmethod
    def of(cls, backend: str, values: Mapping[str, Scalar]) -> "Configuration":
        """Build one from a mapping in any order."""
        return cls(backend=backend, values=tuple(sorted(values.items())))

    @classmethod
    def from_dict(cls, data: Mapping[str, Scalar]) -> "Configuration":
        """Read what :meth:`as_dict` wrote."""
        values = dict(data)
        backend = values.pop("backend")
        if not isinstance(backend, str):
            raise ValueError(f"backend must be text, found {backend!r}")
        return cls.of(backend, values)

    def as_dict(self) -> dict[str, Scalar]:
        """Plain data, ``backend`` first."""
        return {"backend": self.backend, **dict(self.values)}

    def __getitem__(self, name: str) -> Scalar:
        for key, value in self.values:
            if key == name:
                return value
        raise KeyError(f"{self.backend} has no parameter {name!r}; it has {[key for key, _ in self.values]}")

    def get(self, name: str, default: Scalar) -> Scalar:
        """Return the value of a parameter, or ``default`` if the backend has no such parameter."""
        return dict(self.values).get(name, default)

    @property
    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no white space."""
        return canonical(self.as_dict())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest(self.as_dict())

    def __str__(self) -> str:
        return f"{self.backend}({', '.join(f'{name}={value}' for name, value in self.values)})"
