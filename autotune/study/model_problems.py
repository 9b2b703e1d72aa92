"""The kernel problems of a study's model, found on this machine for a GPU that it need not have."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune import registry
from autotune.model.capture import capture
from autotune.model.factory import make_module
from autotune.model.inputs import generate
from autotune.model.source import CapturedModel, write
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.study.file import StudyFile


def problems_of(
    study: StudyFile, batch: int, backend: str, device: Device, precisions: Sequence[str]
) -> Mapping[GemmProblem, int]:
    """Capture a study's model at a batch; return the kernel problems of its graph with every fusion.

    Each has its number in one call, the largest over ``precisions``.
    """
    tuner, seed = registry.kernel_tuner(backend), study.search.seed
    (example,) = generate(study.input_specs(), batch, seed, 1, "example")
    captured = capture(study.name, batch, make_module(study.factory, seed), example)
    hints = registry.backend(backend).space(device, None, has_factory=False).hints
    tuned = next(hint for hint in hints if hint["kernels"] == "tuned")
    counts: dict[GemmProblem, int] = {}
    with tempfile.TemporaryDirectory(prefix="autotune-problems-") as folder:
        write(Path(folder), captured, example, factory=None, seed=seed)
        for precision in precisions:
            configuration = Configuration.of(backend, {**dict(tuned.values), "precision": precision})
            for problem, count in tuner.kernel_problems(CapturedModel(Path(folder)), configuration, device).items():
                counts[problem] = max(count, counts.get(problem, 0))
    return counts
