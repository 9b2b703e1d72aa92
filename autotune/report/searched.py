"""The knowledge of a study at its start, and the gain of more seconds of search, in one line each."""

from autotune.kernels.pack import SHOWN
from autotune.records.search_curve import SearchCurve
from autotune.records.study_start import HintRecord, StudyStart
from autotune.report import words

SHARE = 0.9
"""The share of the gain whose time is shown."""

LAST = 1 / 3
"""The last part of the search whose gain is shown, as a share of its time."""


def known_at_start(start: StudyStart | None) -> str:
    """Describe the trials that the database had when a study began, and its limits; ``None`` means unknown."""
    if start is None:
        return "unknown: an earlier version began the study"
    kernels = _count(start.kernel_trials, "kernel trial")
    if start.other_kernel_trials:
        kernels += f" and {start.other_kernel_trials} of other devices"
    if start.compiled_kernels:
        kernels += f", {_count(start.compiled_kernels, 'compiled kernel')}{_of_packs(start.packs or ())}"
    trials = f"{_count(start.model_trials, 'trial')} of this model{_hints(start.hints or ())}"
    text = f"{kernels}, {trials}; budget {_duration(start.budget_s)}"
    if not start.was_continued:
        return text
    continued_s = start.continued_budget_s or 0.0
    return f"{text}; continued{f', budget {_duration(continued_s)}' if continued_s != start.budget_s else ''}"


def _hints(hints: tuple[HintRecord, ...]) -> str:
    """Name the backends of hints and the studies that they come from; empty without hints."""
    if not hints:
        return ""
    return f", {_count(len(hints), 'hint')} ({'; '.join(map(_origin, hints))})"


def _origin(hint: HintRecord) -> str:
    first, others = hint.studies[0], len(hint.studies) - 1
    more = "" if not others else f" and {_count(others, 'other')}"
    return f"{hint.configuration.backend} of {first.name} b{first.batch}{more}"


def curve_line(curve: SearchCurve | None) -> list[str]:
    """Return a line with the time after which most of the gain was there; nothing without a curve or a search."""
    if curve is None or curve.searched_s <= 0:
        return []
    total = _in_search(curve.searched_s)
    reached_s = curve.reached_s(SHARE)
    if reached_s is None:
        return [f"in screening: nothing was faster than the baseline in {total} of search"]
    text = f"in screening: {SHARE:.0%} of the gain after {_in_search(reached_s)} of {total} of search"
    last_s = LAST * curve.searched_s
    lowered = curve.lowered_in_last(last_s)
    return [text if lowered is None else f"{text}; the last {_in_search(last_s)} brought {lowered:.1%}"]


def _in_search(seconds: float) -> str:
    """Write seconds of search, all of one line in the same unit."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _of_packs(packs: tuple[str, ...]) -> str:
    names = ", ".join(digest[:SHOWN] for digest in packs)
    return f" ({'pack' if len(packs) == 1 else 'packs'} {names})" if packs else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else words.seconds(seconds).removesuffix(" 0 s")
