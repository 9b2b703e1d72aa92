"""Old names of modules and of a backend's optional methods; they work for one version with a DeprecationWarning.

Modules: :func:`install` puts a finder behind Python's own finders, so it gets only names for which there is no file. An
old name can be imported, and run by ``python -m``; it offers the very objects of the new one.
Methods: :func:`under_new_names` gives a plug-in of version 0.1 the members of :mod:`autotune.backend`'s abilities.
"""

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

RECORDS = ("configuration", "device", "kernel_problem", "kernel_trial", "objective", "plan", "trial", "workload")

NEW_NAMES = {
    **{f"autotune.{name}": f"autotune.records.{name}" for name in RECORDS},
    "autotune.space": "autotune.records.search_space",
    "autotune.kernel_comparison": "autotune.programs.kernel_comparison",
    "autotune.kernel_recording": "autotune.programs.kernel_recording",
    "autotune.measure.selftest": "autotune.programs.selftest",
    "autotune.reliability": "autotune.programs.reliability",
    "autotune.report.agreement": "autotune.programs.agreement",
    "autotune.report.kernel_search": "autotune.programs.kernel_search",
    "autotune.report.table": "autotune.programs.results_table",
}
"""New names of modules that moved in version 0.2.0, by the old ones; to be removed in 0.3.0."""

NEW_METHODS = {"features": "graph_features", "problems": "kernel_problems", "explain": "explain_artifact"}
"""New names of a backend's optional methods that were renamed in version 0.2.0, by the old ones; removed in 0.3.0."""

OLD_GRAPH_INVARIANTS = ("kernels", "cuda_graph", "cudnn_benchmark", "programmatic_launch", "threads")
"""The parameters that version 0.1 took not to change the kernel problems of a graph, for every backend."""


class RenamedLoader(InspectLoader):
    """Loads a module under its old name."""

    def __init__(self, new_name: str) -> None:
        self._new_name = new_name

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the names of the new one, and warn at the line that imports it."""
        warn(module.__name__, self._new_name)
        new = vars(importlib.import_module(self._new_name))
        vars(module).update({name: value for name, value in new.items() if not name.startswith("__")})

    def get_source(self, fullname: str) -> str:
        """Return a program that runs the new one, for ``python -m``."""
        return (
            "import runpy\n"
            "from autotune import renamed\n"
            f"renamed.warn({fullname!r}, {self._new_name!r}, stacklevel=2)\n"
            f"runpy.run_module({self._new_name!r}, run_name='__main__', alter_sys=True)\n"
        )


class RenamedFinder(MetaPathFinder):
    """Finds modules by their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of :data:`NEW_NAMES`; ``None`` for any other."""
        new_name = NEW_NAMES.get(fullname)
        return None if new_name is None else ModuleSpec(fullname, RenamedLoader(new_name))


def warn(old_name: str, new_name: str, *, stacklevel: int = 3) -> None:
    """Warn that a module moved; the warning names the line that imports it, or the program that is run."""
    message = f"{old_name} is now {new_name}; version 0.3.0 removes the old name"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def install() -> None:
    """Make the old names of modules importable."""
    if not any(isinstance(finder, RenamedFinder) for finder in sys.meta_path):
        sys.meta_path.append(RenamedFinder())


def under_new_names(backend: object) -> object:
    """Return a backend that has its optional methods under their new names; the same object if nothing is old.

    Each old name is reported by a DeprecationWarning, which names the module of the backend's class.
    """
    has = set(dir(backend))
    renamed = {old: new for old, new in NEW_METHODS.items() if old in has and new not in has}
    additions: dict[str, object] = {new: _read(backend, old) for old, new in renamed.items()}
    if "kernels" in has and "kernel_problems" not in has:
        # Version 0.1 looked for `kernels` and `problems` one by one, and had neither of the other two.
        defaults = {"kernel_kinds": (), "graph_invariants": OLD_GRAPH_INVARIANTS, "kernel_problems": _no_problems}
        additions = {**defaults, **additions}
    if not additions:
        return backend
    for old, new in renamed.items():
        _warn_of_method(backend, old, new)
    # Properties of a class, so that the members are seen also by a Python that looks them up statically (from 3.12).
    members = {name: _read(backend, name) for name in has if not name.startswith("_")}
    return type(type(backend).__name__, (), {**members, **additions, "__module__": type(backend).__module__})()


def _read(backend: object, name: str) -> property:
    """Return a property that reads an attribute of a backend when it is used."""
    return property(lambda _: getattr(backend, name))


def _no_problems(*_: object) -> Mapping[object, int]:
    return {}


def _warn_of_method(backend: object, old_name: str, new_name: str) -> None:
    module = type(backend).__module__
    message = (
        f"{type(backend).__name__}.{old_name} of a backend is now {new_name}; version 0.3.0 removes the old name"
        " (see autotune.backend)"
    )
    source = getattr(sys.modules.get(module), "__file__", None) or module
    warnings.warn_explicit(message, DeprecationWarning, source, 1, module=module)
