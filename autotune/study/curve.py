"""The curve of a study's search, from its trials and the moments at which they ended: search_curve."""

from collections.abc import Sequence

from autotune.database.rows import StudyRow
from autotune.records.search_curve import CurvePoint, SearchCurve
from autotune.records.trial import Trial
from autotune.study.request import StudyRequest
from autotune.study.space import is_baseline, is_unserved


def search_curve(row: StudyRow, trials: Sequence[Trial], request: StudyRequest) -> SearchCurve | None:
    """Return the curve of a study's complete trials that can be its plan; those of other studies ended at 0 s.

    ``None`` without a complete baseline, if an earlier version began the study, or if a trial has no moment, such as
    one that came by ``autotune db merge``.
    """
    if row.start is None:
        return None
    ended_s = row.ended_s
    points: list[CurvePoint] = []
    baselines: dict[bool, list[float]] = {False: [], True: []}
    for trial in trials:
        if trial.state != "complete" or trial.ranked_by is None or is_unserved(trial.configuration, request):
            continue
        seconds = 0.0 if trial.reused else ended_s.get(trial.uid)
        if seconds is None:
            return None
        points.append(CurvePoint(seconds=seconds, best=trial.ranked_by, backend=trial.configuration.backend))
        for stand_in, figures in baselines.items():
            if is_baseline(trial.configuration, request, stand_in=stand_in):
                figures.append(trial.ranked_by)
    figures = baselines[False] or baselines[True]  # the captured graph, only if the user's own module has no time
    if not figures:
        return None
    return SearchCurve.of(points, baseline=min(figures), searched_s=row.active_s, unit=request.objective.unit)
