"""Timing that takes seconds and always decides, for tests that are about something else than measuring.

A study spends most of its time in its finals, and once more in timing its plan alone: on a CPU in five processes each.
Two processes with the fewest rounds that show a difference are enough to have every part of a study run. Each trial
warms up and samples for seconds if the host is noisy; a moment is enough.
"""

import math

import pytest

PROCESSES, LIMIT_S = 2, 2.0
SAMPLING_S, WARM_UP_S = 0.3, 0.1
VARIABLE = "AUTOTUNE_TESTS_SHORT_TIMING"
"""If it is set, processes that tests start time as briefly, too: tests/child_processes/sitecustomize.py reads it."""


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Shorten all timing of this process, and of those that it starts, until the patch is undone."""
    for shorten_module in BY_MODULE.values():
        shorten_module(patch)
    patch.setenv(VARIABLE, "1")


def _shorten_finals(patch: pytest.MonkeyPatch) -> None:
    from autotune.execute import finals
    from autotune.measure import paired

    # The progress display imports these dictionaries by name, so their items change and not the names.
    patch.setitem(finals.PROCESSES, "cpu", PROCESSES)
    patch.setitem(finals.LIMIT_S, "cpu", LIMIT_S)
    # Two processes that differ, as on a busy host, could show no difference between finalists below a factor of many.
    patch.setitem(paired.PROCESS_ERRORS, PROCESSES, 1.0)
    patch.setattr(paired, "MATERIAL", math.inf)
    patch.setattr(paired.RoundFigures, "_in_doubt", lambda *_: False)


def _shorten_screening(patch: pytest.MonkeyPatch) -> None:
    from autotune.measure import screening

    rule, warm_up = screening.screening_rule, screening.warm_up

    def short_rule(clock, limit_s, grouped):
        return rule(clock, min(limit_s, SAMPLING_S), grouped)

    def short_warm_up(*arguments, min_ms=math.inf, limit_s=math.inf, **options):
        short = {"min_ms": min(min_ms, 1e3 * WARM_UP_S), "limit_s": min(limit_s, WARM_UP_S)}
        return warm_up(*arguments, **short, **options)

    # Functions and not the limit of a study, which is part of what decides whether measurements compare.
    patch.setattr(screening, "screening_rule", short_rule)
    patch.setattr(screening, "warm_up", short_warm_up)


def _shorten_throughput(patch: pytest.MonkeyPatch) -> None:
    from autotune.execute import meters

    patch.setattr(meters, "THROUGHPUT_WINDOWS", 3)
    patch.setattr(meters, "THROUGHPUT_WINDOW_S", 0.05)
    patch.setattr(meters, "THROUGHPUT_WARM_UP_S", 0.05)


BY_MODULE = {
    "autotune.execute.finals": _shorten_finals,
    "autotune.measure.screening": _shorten_screening,
    "autotune.execute.meters": _shorten_throughput,
}
"""The function that shortens the timing of each module."""
