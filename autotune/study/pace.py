"""The best latency of a search so far, and from which one a candidate is not timed to the end: Pace."""

from autotune.records.configuration import Configuration

ABANDON_FACTOR = 4.0
"""A candidate whose fastest call takes longer than this factor times the best median so far is not timed to the end.

The baseline and the defaults are always timed to the end, because users compare with them. A candidate in fp32 is
compared with the best in fp32: the gain by reduced precision is reported apart, and on a CPU with AMX bf16 alone was 4
times as fast as the best of them.
"""

FULL_PRECISION = "fp32"


class Pace:
    """The best latency so far, of all candidates and of those in full precision."""

    def __init__(self) -> None:
        self.best_ms: float | None = None
        self._exact_ms: float | None = None

    def note(self, configuration: Configuration, latency_ms: float) -> None:
        """Take a candidate's median into account."""
        self.best_ms = latency_ms if self.best_ms is None else min(self.best_ms, latency_ms)
        if is_exact(configuration):
            self._exact_ms = latency_ms if self._exact_ms is None else min(self._exact_ms, latency_ms)

    def abandon_ms(self, configuration: Configuration) -> float | None:
        """Return the time of a call above which a candidate is not timed to the end; ``None`` if none was timed yet."""
        best_ms = self._exact_ms if is_exact(configuration) else self.best_ms
        return None if best_ms is None else ABANDON_FACTOR * best_ms


def is_exact(configuration: Configuration) -> bool:
    """Return whether a configuration computes in full precision; that of a baseline on a GPU has another name."""
    return configuration.get("precision", "") == FULL_PRECISION
