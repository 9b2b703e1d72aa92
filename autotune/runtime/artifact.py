"""An artifact's own description, and the one way by which it becomes a runner: in a trial and at deployment alike."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.backend import Runner
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.errors import ArtifactError, AutotuneError
from autotune.workload import TensorSpec, Workload

RECORD = "artifact.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """What stands in ``artifact.json``: which backend loads it, and what its runner takes and answers.

    ``structure`` and ``weights`` are those of the workload it was built for.
    """

    structure: str
    weights: str
    configuration: Configuration
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_schema: Mapping[str, Any]


def describe(folder: Path, configuration: Configuration, workload: Workload, output_schema: Mapping[str, Any]) -> None:
    """Write the description into a folder that a backend has built."""
    specs = workload.as_dict()
    record = {
        "structure": workload.structure,
        "weights": workload.weights,
        "configuration": configuration.as_dict(),
        "inputs": specs["inputs"],
        "outputs": specs["outputs"],
        "output_schema": output_schema,
        "schema": 1,
    }
    (folder / RECORD).write_text(json.dumps(record, sort_keys=True))


def read_record(folder: Path) -> ArtifactRecord:
    """Read the description; raises ArtifactError where the folder is not an artifact."""
    try:
        data = json.loads((folder / RECORD).read_text())
        return ArtifactRecord(
            structure=str(data["structure"]),
            weights=str(data["weights"]),
            configuration=Configuration.from_dict(data["configuration"]),
            inputs=tuple(_spec(spec) for spec in data["inputs"]),
            outputs=tuple(_spec(spec) for spec in data["outputs"]),
            output_schema=data["output_schema"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder.name} is not an artifact", found=f"{type(error).__name__}: {error}", expected=f"a valid {RECORD}"
        ) from error


def load_runner(folder: Path, device: Device) -> Runner:
    """Load an artifact by its backend; raises ArtifactError where the backend cannot."""
    from autotune import registry

    record = read_record(folder)
    try:
        return registry.backend(record.configuration.backend).load(folder, device)
    except AutotuneError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"the artifact of {record.configuration} does not load",
            found=f"{type(error).__name__}: {error}",
            expected=f"a working {record.configuration.backend} on {device.name}",
            run="autotune doctor",
        ) from error


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=data["name"], shape=tuple(data["shape"]), dtype=data["dtype"])
