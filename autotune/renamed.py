"""Old names of modules, which work for one version with a DeprecationWarning.

:func:`install` puts a finder behind Python's own, so that it is asked only for names that no file has. An old name can
be imported and run by ``python -m``; it offers the very objects of the new one.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
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


class RenamedLoader(InspectLoader):
    """Loads a module under its old name."""

    def __init__(self, new_name: str) -> None:
        self._new_name = new_name

    def exec_module(self, module: ModuleType) -> None:
        """Give the module what the new one has, and warn whoever imports it."""
        warn(module.__name__, self._new_name)
        new = vars(importlib.import_module(self._new_name))
        vars(module).update({name: value for name, value in new.items() if not name.startswith("__")})

    def get_source(self, fullname: str) -> str:
        """Return a program that runs the new one, for ``python -m``."""
        return (
            "import runpy\n"
            "from autotune import renamed\n"
            f"renamed.warn({fullname!r}, {self._new_name!r})\n"
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


def warn(old_name: str, new_name: str) -> None:
    """Warn that a module moved; the warning names the line that imports it."""
    message = f"{old_name} is now {new_name}; the old name goes with version 0.3.0"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def install() -> None:
    """Let old names be found."""
    if not any(isinstance(finder, RenamedFinder) for finder in sys.meta_path):
        sys.meta_path.append(RenamedFinder())
