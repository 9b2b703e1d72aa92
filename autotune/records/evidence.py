"""The evidence of a plan: its finals, with everything that takes part in them and every raw sample."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from autotune.records import schema
from autotune.records.configuration import Configuration
from autotune.records.plain import values_in

Blocks = tuple[tuple[float, ...] | None, ...]
"""One block of samples a round; ``None`` for a round in which the finalist was frozen."""

Readers = Mapping[str, Callable[[Any], object]]
"""How the plain values of some fields are read."""


class StoredRecord:
    """The base of records that are stored as JSON within a plan; the content and the keys of stored data are kept.

    Schema 1 is the dictionary that version 0.1.0 stored, without a version. ``stored_keys`` are the keys of the data
    that a record was read from, ``None`` for one that was made here; ``beside`` is stored data of no field. So a record
    that is read and written again is the same JSON, also if an older version left keys out. Two records are equal if
    their plain data is.

    The items of the dictionary of version 0.1.0 can still be read by their keys, with a DeprecationWarning.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
    schema: ClassVar[int] = 1
    names: ClassVar[tuple[str, ...]] = ()
    """The fields that are stored, in their order."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Fields that are not stored if they are ``None``."""
    stored_keys: tuple[str, ...] | None
    beside: Mapping[str, object]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        if self.stored_keys is not None:
            return {key: _plain(self._value(key)) for key in self.stored_keys}
        values = {name: getattr(self, name) for name in self.names}
        written = {name: value for name, value in values.items() if value is not None or name not in self.optional}
        version = {} if self.schema == 1 else {schema.KEY: self.schema}
        return {name: _plain(value) for name, value in {**written, **self.beside, **version}.items()}

    def _value(self, key: str) -> object:
        return getattr(self, key) if key in self.names else self.beside[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredRecord) and self.as_dict() == other.as_dict()

    # The dictionary of version 0.1.0; to be removed in 0.3.0.

    def __getitem__(self, key: str) -> object:
        return self._old()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._old()

    def __iter__(self) -> Iterator[str]:
        return iter(self._old())

    def keys(self) -> KeysView[str]:
        """Return the keys of the dictionary of version 0.1.0."""
        return self._old().keys()

    def get(self, key: str, default: object = None) -> object:
        """Return an item of the dictionary of version 0.1.0."""
        return self._old().get(key, default)

    def _old(self) -> dict[str, object]:
        message = f"{type(self).__name__} is a record: read its attributes, or as_dict(); its items go with 0.3.0"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        return self.as_dict()


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
        return cls(**_read(cls, data, {"interval": tuple}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinalistRecord(StoredRecord):
    """A configuration in the finals of a plan.

    ``uid`` is that of its trial. ``objective_value`` is compared, in the objective's own unit; ``figures`` are the
    values that it follows from, a block a round, if they are not the samples themselves. ``flags`` say which conditions
    disturbed its rounds, ``disturbed_rounds`` which of its rounds do not count. ``percentiles`` and ``utilisation`` are
    plain data of :mod:`autotune.measure`.
    """

    names: ClassVar = (
        "uid", "backend", "batch", "configuration", "latency_ms", "interval_ms", "percentiles", "objective_value",
        "objective_interval", "flags", "signal_error", "build_s", "is_baseline", "could_be_baseline", "is_default",
        "utilisation", "samples_ms", "figures", "disturbed_rounds",
    )  # fmt: skip
    optional: ClassVar = frozenset({"figures", "disturbed_rounds"})

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
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "FinalistRecord":
        """Read what :meth:`as_dict` wrote, or the part of it that a file of results keeps."""
        readers: Readers = {
            "configuration": Configuration.from_dict, "interval_ms": tuple, "objective_interval": tuple,
            "flags": tuple, "samples_ms": _blocks, "figures": _blocks, "disturbed_rounds": tuple,
        }  # fmt: skip
        values = _read(cls, data, readers)
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
        return cls(**_read(cls, data, {"configuration": Configuration.from_dict}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HintSource(StoredRecord):
    """A study whose finals speak for a hint."""

    names: ClassVar = ("name", "batch", "device_class")

    name: str
    batch: int
    device_class: str
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "HintSource":
        """Read what :meth:`as_dict` wrote."""
        return cls(**_read(cls, data, {}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HintRecord(StoredRecord):
    """A configuration that a study tried right after the defaults, because it was as good as the best of other studies.

    ``gain`` is the baseline's value over its own in these ``studies``, the geometric mean. The configuration is that of
    the new study's space: other models may lack some of its parameters.
    """

    names: ClassVar = ("configuration", "gain", "studies")

    configuration: Configuration
    gain: float
    studies: tuple[HintSource, ...]
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.studies:
            raise ValueError(f"a hint comes from at least one study, found none for {self.configuration}")

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "HintRecord":
        """Read what :meth:`as_dict` wrote."""
        readers: Readers = {"configuration": Configuration.from_dict, "studies": _sources}
        return cls(**_read(cls, data, readers))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyStart(StoredRecord):
    """The trials that the database had when a study was first begun, and the limits of that run.

    ``kernel_trials`` are those of the study's device class, ``other_kernel_trials`` those of other classes, of which a
    search takes hints. ``model_trials`` are trials of the same structure, on any device class, that have ended.
    ``continued_trials`` and ``continued_budget_s`` are the limits of the last run that continued the search; the
    database may have learned more in between. ``compiled_kernels`` are the compiled kernels for the device that its
    machine had, ``packs`` the digests of the packs that have some; ``None`` if an earlier version began the study.
    ``hints`` are configurations from other studies that its search tries right after the defaults, ``None`` if there
    are none.
    """

    names: ClassVar = (
        "kernel_trials", "other_kernel_trials", "model_trials", "trials", "budget_s", "compiled_kernels", "packs",
        "hints", "continued_trials", "continued_budget_s",
    )  # fmt: skip
    optional: ClassVar = frozenset({"compiled_kernels", "packs", "hints", "continued_trials", "continued_budget_s"})

    kernel_trials: int
    other_kernel_trials: int
    model_trials: int
    trials: int
    budget_s: float
    compiled_kernels: int | None = None
    packs: tuple[str, ...] | None = None
    hints: tuple[HintRecord, ...] | None = None
    continued_trials: int | None = None
    continued_budget_s: float | None = None
    stored_keys: tuple[str, ...] | None = None
    beside: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("kernel_trials", "other_kernel_trials", "model_trials", "trials"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 0):
                raise ValueError(f"{name} at the start of a study is a number that is not negative, found {value!r}")
        for name, budget_s in (("budget_s", self.budget_s), ("continued_budget_s", self.continued_budget_s)):
            if budget_s is not None and not 0 < budget_s < math.inf:
                raise ValueError(f"{name} of a study is a positive number of seconds, found {budget_s!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "StudyStart":
        """Read what :meth:`as_dict` wrote."""
        return cls(**_read(cls, data, {"packs": tuple, "hints": _hints}))

    @property
    def was_continued(self) -> bool:
        """True if a later run continued the search."""
        return self.continued_budget_s is not None

    @property
    def was_empty(self) -> bool:
        """True if the database had nothing that could help the search."""
        return not (self.kernel_trials or self.other_kernel_trials or self.model_trials or self.hints)

    def continued(self, *, trials: int, budget_s: float) -> "StudyStart":
        """Return the record with the limits of a run that continues the search."""
        return replace(self, stored_keys=None, continued_trials=trials, continued_budget_s=budget_s)


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
        return cls(**_read(cls, data, readers))

    @property
    def winner(self) -> FinalistRecord | None:
        """The finalist that was promoted; ``None`` if the evidence does not hold it."""
        if not self.trial:
            return None
        return next((finalist for finalist in self.finalists if finalist.uid == self.trial), None)

    def finalist_of(self, configuration: Configuration) -> FinalistRecord | None:
        """Return the finalist of a configuration; ``None`` if it took no part."""
        return next((finalist for finalist in self.finalists if finalist.configuration == configuration), None)


def _read(kind: type[StoredRecord], data: Mapping[str, object], readers: Readers) -> dict[str, Any]:
    """Return the values of a record's fields in plain data, and the data of no field."""
    content = values_in(data)
    schema.refuse_later(content, kind.schema, what=f"a {kind.__name__}")
    values = {key: value for key, value in content.items() if key in kind.names}
    values |= {
        key: reader(values[key]) for key, reader in readers.items() if values.get(key) is not None
    }  # fmt: skip
    beside = {key: value for key, value in content.items() if key not in kind.names}
    return {**values, "stored_keys": tuple(content), "beside": beside}


def _finalists(entries: Iterable[Mapping[str, object]]) -> tuple[FinalistRecord, ...]:
    return tuple(FinalistRecord.from_dict(entry) for entry in entries)


def _carried(entries: Iterable[Mapping[str, object]]) -> tuple[CarriedRecord, ...]:
    return tuple(CarriedRecord.from_dict(entry) for entry in entries)


def _sources(entries: Iterable[Mapping[str, object]]) -> tuple[HintSource, ...]:
    return tuple(HintSource.from_dict(entry) for entry in entries)


def _hints(entries: Iterable[Mapping[str, object]]) -> tuple[HintRecord, ...]:
    return tuple(HintRecord.from_dict(entry) for entry in entries)


def _blocks(rounds: Iterable[Iterable[float] | None]) -> Blocks:
    return tuple(None if block is None else tuple(block) for block in rounds)


def _plain(value: object) -> object:
    if isinstance(value, StoredRecord | Configuration):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
