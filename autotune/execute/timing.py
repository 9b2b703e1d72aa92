"""The division of a study's time into building, checking, sampling and waiting: TimeSplit."""

from collections.abc import Sequence

from autotune.execute.message import WAIT

KINDS = ("sampling", "checking", "building", "waiting")
_STAGES = {"measure": "sampling", "check": "checking", "build": "building", WAIT: "waiting"}


class TimeSplit:
    """Collects the stages of all steps and splits a stretch of time among them.

    Steps overlap if builds run in parallel; a moment counts once: as sampling before checking before building, as
    waiting if steps only waited for a device that another study used, and as other if nothing of this happened.
    """

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}

    def add(self, spans: Sequence[tuple[str, float, float]]) -> None:
        """Add the stages of one step: name, begin and end in monotonic seconds."""
        for stage, begin, end in spans:
            if stage in _STAGES:
                self._spans[_STAGES[stage]].append((begin, end))

    def worked_s(self, begin: float, end: float) -> float:
        """Return the seconds between two moments without those of waiting, which count for no limit."""
        return end - begin - self.seconds(begin, end)["waiting"]

    def seconds(self, begin: float, end: float) -> dict[str, float]:
        """Return the seconds of each kind of work, and of other, between two moments; they add up to the whole."""
        covered: list[tuple[float, float]] = []
        split: dict[str, float] = {}
        before = 0.0
        for kind in KINDS:
            covered = _union([*covered, *((max(b, begin), min(e, end)) for b, e in self._spans[kind])])
            total = sum(e - b for b, e in covered)
            split[kind] = total - before
            before = total
        split["other"] = max(0.0, end - begin - before)
        return {kind: split[kind] for kind in ("building", "checking", "sampling", "waiting", "other")}


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(span for span in spans if span[1] > span[0]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
