"""Timer, stopping rules, statistics, observers and finals; called itself, the package times a callable.

``autotune.measure(function, inputs)`` and ``import autotune.measure.timer`` share one name, so the module is callable:
see :func:`autotune.deploy.measuring.measure` for its arguments and its result.
"""

import importlib
import sys
import types


class _Callable(types.ModuleType):
    def __call__(self, *args: object, **kwargs: object) -> object:
        return importlib.import_module("autotune.deploy.measuring").measure(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
