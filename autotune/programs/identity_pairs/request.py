"""A request for a drawn model, apart from the model: Request."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.records.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything beside the model that its keys depend on."""

    objective: Objective = field(default_factory=Objective)
    serve_as: str = "any"
    device_class: str = "toy-2c/avx2"
    toolchain: Mapping[str, str] = field(default_factory=lambda: {"torch": "2.13.0", "compiler": "13.2"})
    measuring: str = "rules"
    tune_kernels: bool = True
    kernels: str = ""
    space: str = "space"
    seed: int = 0
    files: str = ""
