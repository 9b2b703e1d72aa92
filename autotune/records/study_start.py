"""The state of the database when a study began, with the hints from other studies: StudyStart."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from autotune.records.configuration import Configuration
from autotune.records.stored_record import Readers, StoredRecord, read_values


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
        return cls(**read_values(cls, data, {}))


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
        return cls(**read_values(cls, data, readers))


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
        return cls(**read_values(cls, data, {"packs": tuple, "hints": _hints}))

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


def _sources(entries: Iterable[Mapping[str, object]]) -> tuple[HintSource, ...]:
    return tuple(HintSource.from_dict(entry) for entry in entries)


def _hints(entries: Iterable[Mapping[str, object]]) -> tuple[HintRecord, ...]:
    return tuple(HintRecord.from_dict(entry) for entry in entries)
