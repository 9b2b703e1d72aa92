"""An artifact's own description, and the way by which it becomes a runner: in a trial and at deployment alike."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.backend import Runner
from autotune.errors import ArtifactError, AutotuneError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.workload import TensorSpec, Workload

if TYPE_CHECKING:
    import torch

RECORD, EXAMPLE, ANSWER = "artifact.json", "example.safetensors", "answer.safetensors"
SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """The content of ``artifact.json``: the configuration, and the inputs and outputs of its runner.

    ``structure`` and ``weights`` are those of the workload it was built for; ``kernels`` is the digest of the tuned
    kernels that the build got, "" if there were none. ``signature`` describes the arguments of a call as
    :class:`autotune.model.schema.InputSchema` does; artifacts of earlier versions have none.
    """

    structure: str
    weights: str
    configuration: Configuration
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_schema: Mapping[str, object]
    kernels: str = ""
    signature: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """The answer of the fp32 model itself to the example inputs: flat tensors on the CPU.

    ``scales`` has for each tensor the size to which an error is relative, see
    :func:`autotune.accuracy.signal_scales`.
    """

    tensors: "Sequence[torch.Tensor]"
    scales: Sequence[float]


def describe(
    folder: Path,
    configuration: Configuration,
    workload: Workload,
    output_schema: Mapping[str, object],
    *,
    example: "Mapping[str, torch.Tensor]",
    kernels: str = "",
    signature: Mapping[str, object] | None = None,
    answer: ModelAnswer | None = None,
) -> None:
    """Write the description into a folder that a backend has built, with the study's own example inputs by name.

    A runner makes its first calls on the example as it loads: only these values surely lie in the model's range.
    ``answer`` is the model's own to the example, by which a deployed artifact can be judged without the model.
    """
    import torch
    from safetensors.torch import save_file

    own = {spec.name: example[spec.name].detach().cpu().contiguous().clone() for spec in workload.inputs}
    save_file(own, str(folder / EXAMPLE))
    if answer is not None:
        tensors = {str(at): tensor.detach().cpu().contiguous().clone() for at, tensor in enumerate(answer.tensors)}
        save_file({**tensors, "scales": torch.tensor(answer.scales, dtype=torch.float64)}, str(folder / ANSWER))
    specs = workload.as_dict()
    record = {
        "structure": workload.structure,
        "weights": workload.weights,
        "configuration": configuration.as_dict(),
        "inputs": specs["inputs"],
        "outputs": specs["outputs"],
        "output_schema": output_schema,
        "kernels": kernels,
        "schema": SCHEMA,
        **({} if signature is None else {"signature": signature}),
    }
    (folder / RECORD).write_text(json.dumps(record, sort_keys=True))


def read_record(folder: Path) -> ArtifactRecord:
    """Read the description; raises ArtifactError if the folder is no artifact, or one of another schema."""
    try:
        data = json.loads((folder / RECORD).read_text())
        if data["schema"] != SCHEMA:
            raise _of_another_version(data["schema"])
        return ArtifactRecord(
            structure=str(data["structure"]),
            weights=str(data["weights"]),
            configuration=Configuration.from_dict(data["configuration"]),
            inputs=tuple(_spec(spec) for spec in data["inputs"]),
            outputs=tuple(_spec(spec) for spec in data["outputs"]),
            output_schema=data["output_schema"],
            kernels=str(data["kernels"]),
            signature=data.get("signature"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder.name} is not an artifact", found=f"{type(error).__name__}: {error}", expected=f"a valid {RECORD}"
        ) from error


def read_example(folder: Path) -> "tuple[torch.Tensor, ...]":
    """Read the study's own example in the order of the inputs; raises ArtifactError if it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = [spec.name for spec in read_record(folder).inputs]
    try:
        tensors = load_file(str(folder / EXAMPLE))
        return tuple(tensors[name].clone() for name in names)  # the file is deleted, and begins at no round address
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder.name} has no example inputs that can be read",
            found=f"{type(error).__name__}: {error}",
            expected=f"{EXAMPLE} with {', '.join(names)}",
            run="autotune tune with its study file, which builds it again",
        ) from error


def read_answer(folder: Path) -> ModelAnswer | None:
    """Return the model's own answer to the example inputs; ``None`` if an earlier version made the artifact.

    Raises ArtifactError if the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / ANSWER).exists():
        return None
    try:
        stored = {name: tensor.clone() for name, tensor in load_file(str(folder / ANSWER)).items()}
        scales = stored.pop("scales").tolist()
        return ModelAnswer(tensors=tuple(stored[str(at)] for at in range(len(scales))), scales=tuple(scales))
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder.name} has no answer that can be read", found=f"{type(error).__name__}: {error}",
            expected=f"a valid {ANSWER}", run="autotune tune with its study file, which builds it again",
        ) from error  # fmt: skip


def load_runner(folder: Path, device: Device) -> Runner:
    """Load an artifact by its backend; raises ArtifactError if the backend cannot."""
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
            run="" if record.configuration.get("form", "") == "module" else "autotune doctor",
        ) from error


def _of_another_version(schema: object) -> ArtifactError:
    older = isinstance(schema, int) and schema < SCHEMA
    return ArtifactError(
        f"the artifact was written by {'an earlier' if older else 'another'} version of autotune",
        found=f"{RECORD} of schema {schema}",
        expected=f"schema {SCHEMA}",
        run="autotune tune with its study file, or autotune.load with the model: it is built again by either",
    )


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=data["name"], shape=tuple(data["shape"]), dtype=data["dtype"])
