"""The settings of a torch-based artifact, for the code that loads it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.errors import ArtifactError
from autotune.records.configuration import Configuration
from autotune.records.workload import TensorSpec, Workload
from autotune.runtime.switches import Switches, tf32_of

FILE = "settings.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings under which an artifact runs: written by a build, read by a load.

    ``form`` is the backend's own name for the kind of artifact; ``inputs`` are the flat inputs it was built for.
    """

    precision: str
    inputs: tuple[TensorSpec, ...]
    threads: int | None = None
    form: str = ""
    channels_last: bool = False
    cuda_graph: bool = False
    cudnn_benchmark: bool = False
    optimize: bool = False

    @classmethod
    def of(cls, configuration: Configuration, workload: Workload) -> "Settings":
        """Read the settings of a runner from a configuration; a parameter that it does not have is off."""
        return cls(
            precision=str(configuration["precision"]),
            inputs=workload.inputs,
            threads=int(configuration.get("threads", 0)) or None,
            form=str(configuration.get("form", "")),
            channels_last=bool(configuration.get("channels_last", False)),
            cuda_graph=bool(configuration.get("cuda_graph", False)),
            cudnn_benchmark=bool(configuration.get("cudnn_benchmark", False)),
            optimize=bool(configuration.get("optimize", False)),
        )

    @property
    def switches(self) -> Switches:
        """The global switches under which the artifact runs."""
        return Switches(tf32=tf32_of(self.precision), threads=self.threads, cudnn_benchmark=self.cudnn_benchmark)

    def write(self, folder: Path) -> None:
        """Write them as ``settings.json``."""
        (folder / FILE).write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True))

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """Read the file of :meth:`write`; raises ArtifactError if it is missing or damaged."""
        try:
            values: Mapping[str, Any] = json.loads((folder / FILE).read_text())
            if values["schema"] != SCHEMA:
                raise ValueError(f"schema {values['schema']}")
            specs = [TensorSpec(name=s["name"], shape=tuple(s["shape"]), dtype=s["dtype"]) for s in values["inputs"]]
            rest = {name: value for name, value in values.items() if name not in ("schema", "inputs")}
            return cls(inputs=tuple(specs), **rest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"the artifact in {folder.name} has no settings that can be read",
                found=f"{type(error).__name__}: {error}",
                expected=f"{FILE} of schema {SCHEMA}",
            ) from error
