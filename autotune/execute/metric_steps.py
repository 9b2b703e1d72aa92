"""Metrics of the user's own: what their code depends on, and how they are called."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.execute.channel import Channel
from autotune.execute.input_sets import read_sets


def metrics(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Import each metric of the user's own, call it once on answers of the model, and say what its code depends on.

    Answers with a digest and a record of what was read for each, in their order. Whether a metric accepts the model's
    own answers is seen when the reference is made.
    """
    from autotune.model import reading
    from autotune.model.source import ANSWERS, CapturedModel
    from autotune.records.canonical import digest

    channel.send({"stage": "check", "at": time.monotonic()})
    folder = Path(request["folder"])
    model = CapturedModel(folder)
    names = [spec.name for spec in model.workload.outputs]
    answers = [dict(zip(names, one, strict=True)) for one in read_sets(folder / ANSWERS, model, outputs=True)]
    found = []
    for function in request["metrics"]:
        with reading.watching() as seen:
            metric = called_in_place(function)
            with contextlib.suppress(Exception):  # here it matters which files it opens; it is judged later
                metric(answers, answers)
        record = seen.record()
        contents = {kind: sorted(map(str, record[kind].values())) for kind in ("files", "folders", "environment")}
        content = [function.rpartition(":")[2], contents, sorted(record["packages"])]
        found.append({"code": digest(content), "read": record})
    return {"metrics": found}


def called_in_place(spec: str) -> Callable[..., Any]:
    """A callable of the user's own that finds, when it is called too, what lies beside its file."""
    from autotune.model.factory import folder_of, resolve

    function = resolve(spec)

    def call(*arguments: Any) -> Any:
        with folder_of(spec):
            return function(*arguments)

    return call
