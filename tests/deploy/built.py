"""Models opened as plans, each built by a backend without a study."""

import dataclasses
from pathlib import Path

import torch

from autotune import registry
from autotune.deploy.model import OptimizedModel, open_folder
from autotune.model import capture, source
from autotune.records.plan import Plan
from autotune.runtime.artifact import read_record
from autotune.runtime.discovery import cpu
from autotune.testing.sample_records import PLAN
from autotune.testing.toy_models import build_artifact, plain_configuration

CPU_BACKENDS = ("eager", "torchscript", "inductor", "onnxruntime", "openvino", "native")


def built(backend: str, module: torch.nn.Module, inputs: dict[str, torch.Tensor], folder: Path) -> Path:
    """Build a module by a backend in fp32 on the CPU, and return the artifact's folder."""
    captured = capture.capture("net", 2, module, inputs, {name: torch.rand_like(x) for name, x in inputs.items()})
    source.write(folder / "model", captured, inputs, factory=None, seed=0)
    model = source.CapturedModel(folder / "model")
    artifact = folder / "artifact"
    artifact.mkdir()
    owner, here = registry.backend(backend), cpu()
    build_artifact(owner, model, plain_configuration(owner, here, model), here, artifact)
    return artifact


def plan_of(artifact: Path) -> Plan:
    """Return a plan whose artifact is in a folder."""
    record = read_record(artifact)
    return dataclasses.replace(
        PLAN, name="net", device=cpu(), configuration=record.configuration, structure=record.structure,
        weights=record.weights, kernels=record.kernels,
    )  # fmt: skip


def opened(artifact: Path) -> OptimizedModel:
    """Load an artifact as the one of a plan."""
    return open_folder(plan_of(artifact), artifact)
