"""What ``autotune tune`` shows while it works, on standard error."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autotune.report import words

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.configuration import Configuration
    from autotune.study_request import StudyRequest
    from autotune.trial import Trial


class TuneProgress:
    """Prints a line for each finished trial; on a terminal also a live line with what is going on and the budget."""

    def __init__(self, console: "Console", request: "StudyRequest") -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = console
        self._request = request
        self._running: dict[int, Configuration] = {}
        self._best_ms: float | None = None
        self._searching_since: float | None = None
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
        self._live = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._live.add_task("starting", total=None)

    def __enter__(self) -> "TuneProgress":
        request, device = self._request, self._request.device
        self._say(
            f"{request.name}, batch {request.batch}, on {device.name} ({device.device_class}): at most "
            f"{request.trials} trials and {words.seconds(request.budget_s)} of search"
        )
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, kind: str, **data: Any) -> None:
        """Show one event; a kind that is not known here is left out."""
        if kind == "capture":
            self._now("capturing the model")
        elif kind == "captured":
            self._say("captured the model, and its reference is there")
            self._searching_since = time.monotonic()
        elif kind == "trial_started":
            self._running[data["number"]] = data["configuration"]
            self._trials()
        elif kind == "trial_finished":
            self._running.pop(data["trial"].number, None)
            self._best_ms = data["best_ms"]
            self._say(_trial_line(data["trial"]))
            self._trials()
        elif kind == "trial_left_out":
            self._running.pop(data["trial"].number, None)
            self._say(data["text"])
            self._trials()
        elif kind == "finals_started":
            self._say(f"finals between {data['count']}, interleaved, in fresh processes")
            self._live.update(self._task, total=None)
            self._now("finals")
        elif kind == "finals_round":
            self._now(f"finals: {data['rounds']} rounds in {words.seconds(data['elapsed_s'])}")
        elif kind == "message":
            self._say(data["text"])

    def _trials(self) -> None:
        best = "" if self._best_ms is None else f"; best so far {words.milliseconds(self._best_ms)} ms"
        running = "; ".join(
            f"trial {number}: {each.backend} ({words.knobs(each)})" for number, each in self._running.items()
        )
        if self._searching_since is not None:
            spent = min(self._request.budget_s, time.monotonic() - self._searching_since)
            self._live.update(self._task, total=self._request.budget_s, completed=spent)
        self._now((running or "choosing the next trial") + best)

    def _now(self, text: str) -> None:
        room = max(20, self._console.width - 45)
        self._live.update(self._task, description=text if len(text) <= room else f"{text[: room - 1]}…")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _trial_line(trial: "Trial") -> str:
    what = f"trial {trial.number}: {trial.configuration.backend} ({words.knobs(trial.configuration)})"
    if trial.state == "complete" and trial.latency_ms is not None:
        built = f", built in {trial.build_s:.1f} s" if trial.build_s is not None else ""
        known = ", known from an earlier study" if trial.reused else ""
        error = words.signal_error(trial.signal_error)
        return f"{what}: {words.milliseconds(trial.latency_ms)} ms, signal error {error}{built}{known}"
    if trial.state == "pruned" and trial.latency_ms is not None:
        return f"{what}: about {words.milliseconds(trial.latency_ms)} ms, far behind the best, so not timed to the end"
    if trial.failure is not None:
        return f"{what}: {trial.state}: {trial.failure}"
    return f"{what}: {trial.state}"
