"""The request that a study answers, and its outcome: StudyRequest, StudyOutcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from autotune import registry
from autotune.errors import RequestError
from autotune.model.file_kind import TORCH
from autotune.records.device import Device
from autotune.records.evidence import FinalistRecord
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.search_curve import SearchCurve
from autotune.records.study_start import StudyStart

if TYPE_CHECKING:
    from autotune.model.inputs import InputSpec

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DEFAULT_TRIALS = 60
DEFAULT_BUDGET_S = 180.0

OutcomeStatus = Literal["promoted", "tie", "baseline", "undecided"]


def accepted_formats() -> tuple[str, ...]:
    """List the values of ``serve_as``: ``any``, which admits every backend, and the formats that backends declare."""
    return ("any", *registry.serving_formats())


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRequest:
    """One search: a model at one batch on one device.

    The model is a ``factory`` with ``inputs``, or it is ``prepared``: a folder that a process has written which holds
    the captured module and, with ``own_file``, the module itself as a model file. A factory is ``path.py:callable``,
    ``package.module:callable``, or ``file:`` with the path of a model file, which takes its place; ``model_format`` is
    that of the file (:data:`autotune.model.file_kind.ONNX`). ``trials`` counts
    distinct builds, ``budget_s`` seconds of active search (builds included, finals not); both count over all runs of
    the study. If ``backends`` or ``precisions`` is ``None``, all take part. Without ``tune_kernels``, builds get the
    tuned kernels that the database has already. Without ``warm_start``, the search gets no hints from other studies.
    With ``again``, finals are run also if the study has a plan. ``carry`` names devices, or ``all``, whose plans of
    this model take part in the finals.
    """

    name: str
    batch: int
    device: Device
    objective: Objective = field(default_factory=Objective)
    factory: str | None = None
    inputs: "tuple[InputSpec, ...]" = ()
    prepared: Path | None = None
    own_file: bool = False
    model_format: str = TORCH
    serve_as: str = "any"
    backends: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    trials: int = DEFAULT_TRIALS
    budget_s: float = DEFAULT_BUDGET_S
    seed: int = 0
    tune_kernels: bool = True
    warm_start: bool = True
    again: bool = False
    carry: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, names in (("backends", self.backends), ("precisions", self.precisions)):
            if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
                raise RequestError(f"{option}={names!r}", found=type(names).__name__, expected="a tuple of names")
        unknown = sorted(set(self.precisions or ()) - set(PRECISIONS))
        if unknown:
            raise RequestError(f"unknown precision {', '.join(unknown)}", expected=f"some of {', '.join(PRECISIONS)}")
        if (self.factory is None) == (self.prepared is None):
            raise RequestError("a study needs a model", expected="either a factory or a prepared folder")
        if self.trials < 1:
            raise RequestError("trials must be at least 1", found=str(self.trials), expected="a positive number")
        if not self.budget_s > 0:
            raise RequestError("budget must be positive", found=f"{self.budget_s:g} s", expected="a duration like 3m")
        if self.batch < 1:
            raise RequestError("batch must be at least 1", found=str(self.batch), expected="a positive number")
        if self.objective.name == "energy" and self.device.kind == "cpu":
            raise RequestError(
                f"energy cannot be measured on {self.device.name}",
                found="a CPU; autotune has no counter of its energy",
                expected="an NVIDIA GPU with an energy counter, or another objective",
                run="autotune tune --device cuda:0",
            )
        if self.serve_as != "any" and self.serve_as not in accepted_formats():
            accepted = ", ".join(accepted_formats())
            raise RequestError(f"serve_as {self.serve_as!r} is not a format", expected=f"one of {accepted}")

    @property
    def has_module(self) -> bool:
        """True if workers can make the user's own module, which is the baseline then: by a factory or from a file."""
        return self.model_format == TORCH and (self.factory is not None or self.own_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOutcome:
    """The result of a study: the plan in force, the number of trials in each state, and the time of each activity.

    ``status`` is ``undecided`` if the finals could not distinguish the finalists. Then ``reason`` says why, ``run`` is
    the command that repeats only the finals, and ``plan`` is the incumbent, or ``None`` if there is no plan yet.
    Otherwise ``plan`` is the plan that was promoted now or was in the database, and ``status`` is its own. ``split``
    holds the seconds of building, checking, sampling and other (imports, loading, starting, database, waiting).
    ``finalists`` has one record a finalist, in order of latency. ``untried`` are the backends that work here and
    offer the study a configuration, and that its limits left no trial. ``known_at_start`` and ``curve`` are those of
    the study that the plan is from; ``None`` if an earlier version began it.
    """

    name: str
    batch: int
    device: Device
    objective: Objective
    plan: Plan | None
    status: OutcomeStatus
    reason: str = ""
    run: str = ""
    cached: bool
    trials: Mapping[str, int]
    seconds: float
    split: Mapping[str, float] = field(default_factory=dict)
    finalists: tuple[FinalistRecord, ...] = ()
    untried: tuple[str, ...] = ()
    known_at_start: StudyStart | None = None
    curve: SearchCurve | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(OutcomeStatus):
            raise ValueError(f"outcome status {self.status!r} is not one of {get_args(OutcomeStatus)}")
        if self.undecided and not (self.reason and self.run):
            raise ValueError(f"outcome of {self.name}: undecided needs a reason, and the command to run again")
        if not self.undecided and (self.plan is None or self.plan.status != self.status):
            actual = "no plan" if self.plan is None else f"a plan of status {self.plan.status}"
            message = f"outcome of {self.name}: status {self.status} needs a plan of that status, found {actual}"
            raise ValueError(message)

    @property
    def undecided(self) -> bool:
        """True if the finals have to be repeated."""
        return self.status == "undecided"

    def as_dict(self) -> dict[str, object]:
        """Return one entry of the list ``studies`` that ``autotune tune --json`` prints."""
        plan = self.plan
        return {
            "name": self.name,
            "batch": self.batch,
            "device": self.device.sku,
            "objective": self.objective.name,
            "status": self.status,
            **({"reason": self.reason, "run": self.run} if self.undecided else {}),
            "baseline_latency_ms": None if plan is None else plan.baseline_latency_ms,
            "plan": None
            if plan is None
            else {
                "backend": plan.configuration.backend,
                "configuration": plan.configuration.as_dict(),
                "latency_ms": plan.latency_ms,
                "interval_ms": list(plan.interval_ms),
                "speedup": plan.speedup,
                "signal_error": plan.signal_error,
                "status": plan.status,
                "cached": self.cached,
            },
            "untried": list(self.untried),
            "known_at_start": None if self.known_at_start is None else self.known_at_start.as_dict(),
            "curve": None if self.curve is None else self.curve.as_dict(),
            "trials": {state: self.trials.get(state, 0) for state in ("complete", "pruned", "infeasible", "failed")},
            "seconds": self.seconds,
            "split_s": dict(self.split),
            "finalists": [finalist.as_dict() for finalist in self.finalists],
        }
