"""The division of a study's time into building, checking, sampling and waiting: TimeSplit."""

from collections.abc import Iterable, Sequence

from autotune.execute.message import WAIT
from autotune.execute.session import QUEUED

KINDS = ("sampling", "checking", "building", "waiting")
OTHER_KINDS = ("loading", "starting", "queued")
"""The kinds of work within ``other``; the rest of it is ``between``: no step ran, or one had nothing to do."""
_STAGES = {
    "measure": "sampling", "check": "checking", "build": "building", WAIT: "waiting", "load": "loading",
    "starting": "starting", QUEUED: "queued",
}  # fmt: skip


class TimeSplit:
    """Collects the stages of all steps and splits a stretch of time among them.

    Steps overlap if builds run in parallel; a moment counts once: as sampling before checking before building, as
    waiting if steps only waited for a device that another study used, and as other if nothing of this happened.
    """

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*KINDS, *OTHER_KINDS)}

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
        split = self._split(KINDS, begin, end)
        split["other"] = max(0.0, end - begin - sum(split.values()))
        return {kind: split[kind] for kind in ("building", "checking", "sampling", "waiting", "other")}

    def other_seconds(self, begin: float, end: float) -> dict[str, float]:
        """Return the division of the other seconds between two moments; they add up to those.

        A step is starting from its order until its first stage, queued while another step of this study has the device.
        """
        split = self._split((*KINDS, *OTHER_KINDS), begin, end)
        between_s = max(0.0, end - begin - sum(split.values()))
        return {**{kind: split[kind] for kind in OTHER_KINDS}, "between": between_s}

    def _split(self, kinds: Iterable[str], begin: float, end: float) -> dict[str, float]:
        """Return the seconds of each kind; a moment counts for the first of them that it belongs to."""
        covered: list[tuple[float, float]] = []
        split: dict[str, float] = {}
        before = 0.0
        for kind in kinds:
            covered = _union([*covered, *((max(b, begin), min(e, end)) for b, e in self._spans[kind])])
            total = sum(e - b for b, e in covered)
            split[kind] = total - before
            before = total
        return split


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(span for span in spans if span[1] > span[0]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
