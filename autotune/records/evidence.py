"""The evidence of a plan: its finals, with everything that takes part in them and every raw sample."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from autotune.records.configuration import Configuration
from autotune.records.stored_record import Readers, StoredRecord, read_values
from autotune.records.study_start import StudyStart

Blocks = tuple[tuple[float, ...] | None, ...]
"""One block of samples a round; ``None`` for a round in which the finalist was frozen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveFigures(StoredRecord):
    """The objective's name and unit, its values for the plan and for the baseline, and the plan's 95% interval.

    ``concurrency`` and ``items_per_s`` are there if the objective is throughput.
    """

    names: ClassVar = ("name", "unit", "value", "interval", "baseline", "concurrency", "items_per_s")
    optional: ClassVar = frozenset({"concurrency", "items_per_s"})

    name: str
    unit: str
    value: float
    interval: tuple[float, float]
    baseline: float
    concurrency: int | None = None
    items_per_s: float | None = None
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "ObjectiveFigures":
        """Read what :meth:`as_dict` wrote."""
        return cls(**read_values(cls, data, {"interval": tuple}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinalistRecord(StoredRecord):
    """A configuration in the finals of a plan.

    ``uid`` is that of its trial. ``objective_value`` is compared, in the objective's own unit; ``figures`` are the
    values that it follows from, a block a round, if they are not the samples themselves. ``flags`` say which conditions
    disturbed its rounds, ``disturbed_rounds`` which of its rounds do not count. One that ``is_unserved`` is not in the
    plan's serving format, and could not win. ``percentiles`` and ``utilisation`` are
    plain data of :mod:`autotune.measure`.
    """

    names: ClassVar = (
        "uid", "backend", "batch", "configuration", "latency_ms", "interval_ms", "percentiles", "objective_value",
        "objective_interval", "flags", "signal_error", "build_s", "is_baseline", "could_be_baseline", "is_default",
        "utilisation", "samples_ms", "figures", "disturbed_rounds", "is_unserved",
    )  # fmt: skip
    optional: ClassVar = frozenset({"figures", "disturbed_rounds", "is_unserved"})

    configuration: Configuration
    latency_ms: float
    interval_ms: tuple[float, float]
    uid: str = ""
    batch: int = 1
    percentiles: Mapping[str, Any] | None = None
    objective_value: float | None = None
    objective_interval: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()
    signal_error: float | None = None
    build_s: float | None = None
    is_baseline: bool = False
    could_be_baseline: bool = False
    is_default: bool = False
    utilisation: Mapping[str, Any] | None = None
    samples_ms: Blocks = ()
    figures: Blocks | None = None
    disturbed_rounds: tuple[int, ...] | None = None
    is_unserved: bool | None = None
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "FinalistRecord":
        """Read what :meth:`as_dict` wrote, or the part of it that a file of results keeps."""
        readers: Readers = {
            "configuration": Configuration.from_dict, "interval_ms": tuple, "objective_interval": tuple,
            "flags": tuple, "samples_ms": _blocks, "figures": _blocks, "disturbed_rounds": tuple,
        }  # fmt: skip
        values = read_values(cls, data, readers)
        values.setdefault("could_be_baseline", bool(values.get("is_baseline")))
        return cls(**{name: value for name, value in values.items() if name != "backend"})

    @property
    def backend(self) -> str:
        """The backend of its configuration."""
        return self.configuration.backend

    @property
    def compared(self) -> float:
        """The value that it is compared by: the objective's, or its latency if that is not there."""
        return self.latency_ms if self.objective_value is None else self.objective_value

    @property
    def disturbed(self) -> list[bool]:
        """For each round if its block is disturbed."""
        disturbed = frozenset(self.disturbed_rounds or ())
        return [index in disturbed for index in range(len(self.samples_ms))]

    def without(self, *names: str) -> "FinalistRecord":
        """Return the record without some of its fields in its plain data."""
        keys = tuple(key for key in self.as_dict() if key not in names)
        return replace(self, stored_keys=keys)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CarriedRecord(StoredRecord):
    """A plan of another device class, carried to the device of these finals: its configuration was built as it is.

    ``plan`` is the uid of that plan, ``trial`` the uid of the finalist here. Without a trial it took no part in the
    finals: it failed, for the reason in ``failure``, or it was far slower in screening, with ``screened`` in the unit
    of the objective.
    """

    names: ClassVar = ("device_class", "plan", "configuration", "trial", "screened", "failure")
    optional: ClassVar = frozenset({"screened", "failure"})

    device_class: str
    plan: str
    configuration: Configuration
    trial: str = ""
    screened: float | None = None
    failure: str | None = None
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "CarriedRecord":
        """Read what :meth:`as_dict` wrote."""
        return cls(**read_values(cls, data, {"configuration": Configuration.from_dict}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanEvidence(StoredRecord):
    """The finals that promoted a plan, and how they can be repeated.

    ``trial`` is the uid of the winner, ``tied_with`` are those of finalists that nothing distinguishes from it.
    ``processes`` holds the process of each round; ``disturbed_processes`` are those in which others used the device.
    ``study`` is the uid of the study; ``inputs`` say how its inputs are made (empty for tensors that were given in
    Python), under ``seed``. ``toolchain`` holds all versions of that time, not only those that the plan depends on.
    ``carried`` are the plans of other device classes that were asked to take part. ``known_at_start`` is ``None`` if an
    earlier version began the study.
    """

    names: ClassVar = (
        "study", "trial", "objective", "finalists", "tied_with", "rounds", "processes", "disturbed_processes", "inputs",
        "seed", "toolchain", "carried", "known_at_start",
    )  # fmt: skip
    optional: ClassVar = frozenset({"study", "objective", "inputs", "seed", "toolchain", "carried", "known_at_start"})

    trial: str = ""
    objective: ObjectiveFigures | None = None
    finalists: tuple[FinalistRecord, ...] = ()
    tied_with: tuple[str, ...] = ()
    rounds: int | None = None
    processes: tuple[int, ...] = ()
    disturbed_processes: tuple[int, ...] = ()
    study: str | None = None
    inputs: tuple[Mapping[str, Any], ...] | None = None
    seed: int | None = None
    toolchain: Mapping[str, str] | None = None
    carried: tuple[CarriedRecord, ...] | None = None
    known_at_start: StudyStart | None = None
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "PlanEvidence":
        """Read what :meth:`as_dict` wrote; ``ValueError`` if a later version of autotune wrote it."""
        readers: Readers = {
            "objective": ObjectiveFigures.from_dict, "finalists": _finalists, "tied_with": tuple, "processes": tuple,
            "disturbed_processes": tuple, "inputs": tuple, "carried": _carried,
            "known_at_start": StudyStart.from_dict,
        }  # fmt: skip
        return cls(**read_values(cls, data, readers))

    @property
    def winner(self) -> FinalistRecord | None:
        """The finalist that was promoted; ``None`` if the evidence does not hold it."""
        if not self.trial:
            return None
        return next((finalist for finalist in self.finalists if finalist.uid == self.trial), None)

    def finalist_of(self, configuration: Configuration) -> FinalistRecord | None:
        """Return the finalist of a configuration; ``None`` if it took no part."""
        return next((finalist for finalist in self.finalists if finalist.configuration == configuration), None)


def _finalists(entries: Iterable[Mapping[str, object]]) -> tuple[FinalistRecord, ...]:
    return tuple(FinalistRecord.from_dict(entry) for entry in entries)


def _carried(entries: Iterable[Mapping[str, object]]) -> tuple[CarriedRecord, ...]:
    return tuple(CarriedRecord.from_dict(entry) for entry in entries)


def _blocks(rounds: Iterable[Iterable[float] | None]) -> Blocks:
    return tuple(None if block is None else tuple(block) for block in rounds)
