"""autotune finds, proves and remembers the fastest way to run a model on a device.

``import autotune`` loads no large library; each name below is imported at its first use.
"""

from typing import TYPE_CHECKING

from autotune import renamed

if TYPE_CHECKING:
    from autotune import measure
    from autotune.cli.optimize_file import optimize_file
    from autotune.comparison.api import compare
    from autotune.deploy.api import load, optimize, tune
    from autotune.deploy.bundle import load_bundle
    from autotune.deploy.measuring import Measured
    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.portability import Portability, portability
    from autotune.deploy.study_model import from_study
    from autotune.records.objective import Metric, Objective

__version__ = "0.2.0"

_HOMES = {
    "compare": "autotune.comparison.api",
    "load": "autotune.deploy.api",
    "load_bundle": "autotune.deploy.bundle",
    "optimize": "autotune.deploy.api",
    "optimize_file": "autotune.cli.optimize_file",
    "tune": "autotune.deploy.api",
    "Measured": "autotune.deploy.measuring",
    "OptimizedModel": "autotune.deploy.model",
    "Portability": "autotune.deploy.portability",
    "portability": "autotune.deploy.portability",
    "from_study": "autotune.deploy.study_model",
    "Metric": "autotune.records.objective",
    "Objective": "autotune.records.objective",
}

__all__ = [
    "Measured",
    "Metric",
    "Objective",
    "OptimizedModel",
    "Portability",
    "__version__",
    "compare",
    "from_study",
    "load",
    "load_bundle",
    "measure",
    "optimize",
    "optimize_file",
    "portability",
    "tune",
]

renamed.install()


def __getattr__(name: str) -> object:
    import importlib

    if name == "measure":
        return importlib.import_module("autotune.measure")  # a package that can be called
    if name not in _HOMES:
        raise AttributeError(f"module 'autotune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
