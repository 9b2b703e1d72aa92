"""Trials between their build and their timing: BuiltTrial, StoredBuild."""

from dataclasses import dataclass, replace
from pathlib import Path

from autotune.execute.answers import BuildAnswer
from autotune.execute.executor import BUILD_TIMEOUT_S, EarlyLoad
from autotune.execute.step_result import StepResult
from autotune.kernel import KnownKernels
from autotune.records.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBuild:
    """The result of a build: its artifact (``None`` if it failed), and its load if that began at once."""

    digest: str | None
    loading: EarlyLoad | None


def with_kernels(trial: Trial, kernels: KnownKernels | None) -> Trial:
    """Return a trial with the digest of the tuned kernels that its build gets."""
    return trial if kernels is None else replace(trial, kernels=kernels.digest)


def ran_out_of_budget(built: StepResult[BuildAnswer]) -> bool:
    """Return true if the budget ended a build before the time limit of any build."""
    failure = built.failure
    return failure is not None and failure.kind == "timeout" and (failure.figure or 0.0) < BUILD_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltTrial:
    """A trial that was built, and the folder of its build."""

    trial: Trial
    built: StepResult[BuildAnswer]
    target: Path
