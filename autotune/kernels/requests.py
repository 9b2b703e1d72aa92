"""The requests of the steps of tuned kernels: one record per step, with a schema version."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from autotune.errors import WorkerError
from autotune.kernels.timing import TimingLimits
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem


class KernelRequest:
    """The base of these records.

    ``schema`` is raised if a field is added, removed, or changes its meaning: the coordinator and its worker must have
    the same one.
    """

    __slots__ = ()
    schema: ClassVar[int] = 1

    @classmethod
    def check(cls, data: Mapping[str, Any]) -> None:
        """Raise WorkerError if the data is of another schema."""
        if data.get("schema") != cls.schema:
            raise WorkerError(
                f"a coordinator and its worker do not agree on {cls.__name__}",
                found=f"schema {data.get('schema')!r}", expected=f"schema {cls.schema}",
                run="the same version of autotune in both processes",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesRequest(KernelRequest):
    """Read the rates of a device."""

    device: Device

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {"schema": self.schema, "device": self.device.as_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RatesRequest":
        """Read the output of :meth:`as_dict`; raises WorkerError if it is of another schema."""
        cls.check(data)
        return cls(device=Device.from_dict(data["device"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest(KernelRequest):
    """Compile the ``builds`` of a problem into the cache ``folder``."""

    backend: str
    device: Device
    problem: GemmProblem
    folder: Path
    builds: tuple[Configuration, ...]

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "schema": self.schema, "backend": self.backend, "device": self.device.as_dict(),
            "problem": self.problem.as_dict(), "folder": str(self.folder),
            "builds": [build.as_dict() for build in self.builds],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CompileRequest":
        """Read the output of :meth:`as_dict`; raises WorkerError if it is of another schema."""
        cls.check(data)
        return cls(
            backend=data["backend"], device=Device.from_dict(data["device"]), folder=Path(data["folder"]),
            problem=GemmProblem.from_dict(data["problem"]), builds=tuple(map(Configuration.from_dict, data["builds"])),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRequest(KernelRequest):
    """Check and time the ``candidates`` of a problem, whose builds are in the cache ``folder``.

    ``best_us`` is the fastest time so far; a candidate that is hopelessly slower is not timed to the end.
    """

    backend: str
    device: Device
    problem: GemmProblem
    folder: Path
    candidates: tuple[Configuration, ...]
    seed: int
    best_us: float | None
    limits: TimingLimits

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "schema": self.schema, "backend": self.backend, "device": self.device.as_dict(),
            "problem": self.problem.as_dict(), "folder": str(self.folder),
            "candidates": [candidate.as_dict() for candidate in self.candidates], "seed": self.seed,
            "best_us": self.best_us, "limits": asdict(self.limits),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TimeRequest":
        """Read the output of :meth:`as_dict`; raises WorkerError if it is of another schema."""
        cls.check(data)
        return cls(
            backend=data["backend"], device=Device.from_dict(data["device"]), folder=Path(data["folder"]),
            problem=GemmProblem.from_dict(data["problem"]), seed=data["seed"], best_us=data["best_us"],
            candidates=tuple(map(Configuration.from_dict, data["candidates"])), limits=TimingLimits(**data["limits"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemFinalists:
    """One problem with the candidates that are timed against each other."""

    problem: GemmProblem
    finalists: tuple[Configuration, ...]

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {"problem": self.problem.as_dict(), "finalists": [finalist.as_dict() for finalist in self.finalists]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ProblemFinalists":
        """Read the output of :meth:`as_dict`."""
        finalists = tuple(map(Configuration.from_dict, data["finalists"]))
        return cls(problem=GemmProblem.from_dict(data["problem"]), finalists=finalists)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsRequest(KernelRequest):
    """Time finalists against each other, problem by problem: ``rounds`` of ``samples`` calls of each."""

    backend: str
    device: Device
    folder: Path
    rounds: int
    samples: int
    seed: int
    work: tuple[ProblemFinalists, ...]

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "schema": self.schema, "backend": self.backend, "device": self.device.as_dict(),
            "folder": str(self.folder), "rounds": self.rounds, "samples": self.samples, "seed": self.seed,
            "work": [problem.as_dict() for problem in self.work],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RoundsRequest":
        """Read the output of :meth:`as_dict`; raises WorkerError if it is of another schema."""
        cls.check(data)
        return cls(
            backend=data["backend"], device=Device.from_dict(data["device"]), folder=Path(data["folder"]),
            rounds=data["rounds"], samples=data["samples"], seed=data["seed"],
            work=tuple(map(ProblemFinalists.from_dict, data["work"])),
        )  # fmt: skip
