"""Finals that take seconds and always decide, for tests that are about something else than measuring.

A study spends most of its time in its finals, and once more in timing its plan alone: on a CPU in five processes each.
Two processes with the fewest rounds that show a difference are enough to have every part of a study run.
"""

import math

import pytest

PROCESSES, LIMIT_S = 2, 2.0
VARIABLE = "AUTOTUNE_TESTS_SHORT_FINALS"
"""If it is set, processes that tests start have short finals, too: tests/child_processes/sitecustomize.py reads it."""


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Shorten the finals of this process, and of those that it starts, until the patch is undone."""
    from autotune.execute import finals
    from autotune.measure import paired

    # The progress display imports these dictionaries by name, so their items change and not the names.
    patch.setitem(finals.PROCESSES, "cpu", PROCESSES)
    patch.setitem(finals.LIMIT_S, "cpu", LIMIT_S)
    # Two processes that differ, as on a busy host, could show no difference between finalists below a factor of many.
    patch.setitem(paired.PROCESS_ERRORS, PROCESSES, 1.0)
    patch.setattr(paired, "MATERIAL", math.inf)
    patch.setattr(paired.RoundFigures, "_in_doubt", lambda *_: False)
    patch.setenv(VARIABLE, "1")
