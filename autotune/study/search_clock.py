"""The seconds of active search at which the trials of a study end: SearchClock."""

from collections.abc import Sequence

from autotune.database.rows import StudyLimits
from autotune.records.trial import Trial
from autotune.study.context import StudyContext
from autotune.study.curve import search_curve


class SearchClock:
    """Stores the search time of a study, the moments of its trials on that clock, and its curve.

    Waiting for the device, and the time between two runs, do not count. ``ended`` holds the monotonic time at the end
    of trials, by their uids, until :meth:`add` stores their moments.
    """

    def __init__(self, context: StudyContext) -> None:
        self._context = context
        self._studies = context.store.studies
        self.ended: dict[str, float] = {}

    def mark_unmarked(self, earlier: Sequence[Trial]) -> None:
        """Give trials without a moment the search time of the study now, which is the latest that they can have ended.

        Their coordinator died before it stored their moments, or they came from another database.
        """
        row = self._context.row
        complete = [trial for trial in earlier if trial.state == "complete" and not trial.reused]
        unmarked = {trial.uid: row.active_s for trial in complete if trial.uid not in row.ended_s}
        if unmarked and row.start is not None:
            self._studies.add_active_time(row.uid, 0.0, unmarked)

    def add(self, elapsed_s: float, spent_s: float, begin: float) -> None:
        """Store the search time of trials that were begun together, after ``spent_s``, and the moments of their ends.

        ``begin`` is the monotonic time of their begin. ``elapsed_s`` is 0 for trials that the budget does not pay for.
        """
        # Only now the executor knows all their waiting: a step reports it when it ends.
        split = self._context.executor.split
        ended_s = {uid: spent_s + min(elapsed_s, split.worked_s(begin, moment)) for uid, moment in self.ended.items()}
        self.ended.clear()
        self._studies.add_active_time(self._context.row.uid, elapsed_s, ended_s)

    def note_continued(self) -> None:
        """Store that this run continues the search, with its limits."""
        request = self._context.request
        limits = StudyLimits(trials=request.trials, budget_s=request.budget_s)
        self._studies.note_continued(self._context.row.uid, limits)

    def note_curve(self, trials: Sequence[Trial]) -> None:
        """Store the curve of the search from the study's trials under the present toolchain."""
        row = self._studies.get(self._context.row.uid)
        self._studies.note_curve(row.uid, search_curve(row, trials, self._context.request))
