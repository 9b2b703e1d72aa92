"""Python runs this file when a process of the tests starts: it times as briefly as the tests themselves.

Nothing is imported for it unless the process imports what times.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class ShortenOnImport(MetaPathFinder):
    def __init__(self):
        self._waiting = {"autotune.execute.finals", "autotune.execute.meters", "autotune.measure.screening"}

    def find_spec(self, name, path, target=None):
        if name not in self._waiting:
            return None
        self._waiting.remove(name)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_shorten(module):
            execute(module)
            from pytest import MonkeyPatch

            from tests.short_timing import BY_MODULE

            BY_MODULE[name](MonkeyPatch())

        spec.loader.exec_module = execute_and_shorten
        return spec


if os.environ.get("AUTOTUNE_TESTS_SHORT_TIMING"):
    sys.meta_path.insert(0, ShortenOnImport())
