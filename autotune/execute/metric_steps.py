"""Metrics of the user's own: what their code depends on, and how they are called."""

import contextlib
from collections.abc import Callable

from autotune.execute.answers import MetricCode, MetricsAnswer
from autotune.execute.channel import Channel
from autotune.execute.input_sets import read_sets
from autotune.execute.requests import MetricsRequest
from autotune.execute.stages import enter
from autotune.records.objective import Metric, Objective


def metrics(request: MetricsRequest, channel: Channel) -> MetricsAnswer:
    """Import each metric of the user's own, call it once on answers of the model, and digest what its code depends on.

    The reference shows later if a metric accepts the model's own answers.
    """
    from autotune.model import reading
    from autotune.model.source import ANSWERS, CapturedModel
    from autotune.records.canonical import digest

    enter(channel, "check")
    model = CapturedModel(request.folder)
    names = [spec.name for spec in model.workload.outputs]
    sets = read_sets(request.folder / ANSWERS, model, outputs=True)
    answers = [dict(zip(names, tensors, strict=True)) for tensors in sets]
    codes = []
    for function in request.metrics:
        with reading.watching() as seen:
            metric = called_in_place(function)
            # Only the files that it opens matter here; it is judged with the reference.
            with contextlib.suppress(Exception):
                metric(answers, answers)
        record = seen.record()
        contents = {kind: sorted(map(str, record[kind].values())) for kind in ("files", "folders", "environment")}
        content = [function.rpartition(":")[2], contents, sorted(record["packages"])]
        codes.append(MetricCode(code=digest(content), read=record))
    return MetricsAnswer(metrics=tuple(codes))


def functions_of(objective: Objective) -> list[tuple[Metric, Callable[[object, object], object]]]:
    """Return each metric of an objective with its function."""
    return [(metric, called_in_place(metric.function)) for metric in objective.metrics]


def called_in_place(spec: str) -> Callable[[object, object], object]:
    """Return a callable of the user's own that finds what lies beside its file, also when it is called."""
    from autotune.model.factory import folder_of, resolve

    function = resolve(spec)

    def call(outputs: object, references: object) -> object:
        with folder_of(spec):
            return function(outputs, references)

    return call
