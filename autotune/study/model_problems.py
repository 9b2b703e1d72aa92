"""The kernel problems of a study's model, found on this machine for a GPU that it need not have."""

import tempfile
from collections.abc import Mapping
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
    study: StudyFile, batch: int, backend: str, device: Device, precision: str
) -> Mapping[GemmProblem, int]:
    """Capture the model of a study at a batch and return its kernel problems with their numbers in one call."""
    tuner = registry.kernel_tuner(backend)
    seed = study.search.seed
    (example,) = generate(study.input_specs(), batch, seed, 1, "example")
    captured = capture(study.name, batch, make_module(study.factory, seed), example)
    hints = registry.backend(backend).space(device, None, has_factory=False).hints
    tuned = next(hint for hint in hints if hint["kernels"] == "tuned")
    configuration = Configuration.of(backend, {**dict(tuned.values), "precision": precision})
    with tempfile.TemporaryDirectory(prefix="autotune-problems-") as folder:
        write(Path(folder), captured, example, factory=None, seed=seed)
        return tuner.kernel_problems(CapturedModel(Path(folder)), configuration, device)
