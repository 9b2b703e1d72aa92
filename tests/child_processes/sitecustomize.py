"""Python runs this file when a process of the tests starts: finals are as short there as in the tests themselves.

Nothing is imported for it unless the process imports the finals.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class ShortenOnImport(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "autotune.execute.finals":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_shorten(module):
            execute(module)
            from pytest import MonkeyPatch

            from tests.short_finals import shorten

            shorten(MonkeyPatch())

        spec.loader.exec_module = execute_and_shorten
        return spec


if os.environ.get("AUTOTUNE_TESTS_SHORT_FINALS"):
    sys.meta_path.insert(0, ShortenOnImport())
