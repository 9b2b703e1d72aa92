"""The progress that ``autotune tune`` shows on standard error."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autotune.cli.estimate import Estimate, in_words
from autotune.execute.finals import LIMIT_S
from autotune.report import words
from autotune.standard_streams import readable
from autotune.study.space import is_baseline, is_unserved

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult

    from autotune.records.configuration import Configuration
    from autotune.records.trial import Trial
    from autotune.study.request import StudyRequest

    Earlier = Callable[[int, Configuration], "tuple[Sequence[Trial], float]"]
    """A function that returns the finished trials and the seconds of search of the study in which a trial runs."""

BAR = 20
ROOM_FOR_BAR = 60
"""The columns of a terminal that shows the bar; a narrower one shows figures alone."""


class TuneProgress:
    """Prints a line for each finished trial; on a terminal also two live lines.

    They show the share of the search that is over, the time until the end, the best figure and the current step.
    """

    def __init__(
        self,
        console: "Console",
        request: "StudyRequest",
        earlier: "Earlier" = lambda number, configuration: ((), 0.0),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.live import Live

        self._console, self._request, self._earlier, self._now = console, request, earlier, now
        self._estimate = Estimate(
            trials=request.trials, budget_s=request.budget_s, finals_s=LIMIT_S[request.device.kind], now=now
        )
        self._running: dict[int, tuple[str, Configuration, float]] = {}
        self._best: float | None = None
        self._baseline: float | None = None
        self._resumed = False
        self._step, self._since = "starting", now()
        shown = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(self, console=console, transient=True, refresh_per_second=4) if shown else None

    def __enter__(self) -> "TuneProgress":
        request, device = self._request, self._request.device
        self._say(
            f"{request.name}, batch {request.batch}, on {device.name} ({device.device_class}): at most "
            f"{request.trials} trials and {words.seconds(request.budget_s)} of search"
        )
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, kind: str, **data: Any) -> None:
        """Show an event; events of other kinds are left out."""
        if kind == "capture":
            self._do("capturing the model")
        elif kind == "captured":
            self._say("captured the model and computed its reference outputs")
            self._do("choosing the first trial")
        elif kind == "trial_started":
            self._resume(data["number"], data["configuration"])
            self._estimate.begin_search()
            self._run(data["number"], "building", data["configuration"])
        elif kind == "trial_timing":
            self._run(data["number"], "checking and timing", data["configuration"])
        elif kind == "trial_finished":
            self._finish(data["trial"])
        elif kind == "trial_left_out":
            self._running.pop(data["trial"].number, None)
            self._say(data["text"])
        elif kind == "finals_started":
            self._running.clear()
            self._estimate.begin_finals()
            self._say(f"finals of {data['count']} configurations, interleaved, in fresh processes")
            self._do(f"finals of {data['count']} configurations")
        elif kind == "finals_round":
            self._step = f"finals: {data['rounds']} rounds"
        elif kind == "message":
            self._say(data["text"])

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Draw the live lines."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # In ASCII an ellipsis is three characters: cut lines would be too long, and the terminal would break them.
        overflow: OverflowMethod = "crop" if options.ascii_only else "ellipsis"

        def whole(text: str) -> Text:
            return Text(readable(text, console.encoding), no_wrap=True, overflow=overflow)

        figures = whole(self.figures())
        if options.max_width >= ROOM_FOR_BAR:
            line = Table.grid(padding=(0, 1))
            line.add_row(ProgressBar(total=1.0, completed=self._estimate.share, width=BAR), figures)
            yield line
        else:
            yield figures
        yield whole(self.doing())

    def figures(self) -> str:
        """Return the share of the search that is over, the time until the end, and the best figure so far."""
        parts = [f"{self._estimate.share:.0%}"]
        left_s = self._estimate.left_s
        if left_s is not None:
            parts.append(in_words(left_s))
        if self._best is not None:
            best = f"best {words.figure(self._best, self._request.objective.unit)}"
            parts.append(best + (f", {words.speedup(self._baseline / self._best)}" if self._baseline else ""))
        return "; ".join(parts)

    def doing(self) -> str:
        """Return the current step and its seconds: of several trials the one being timed, else the earliest."""
        step, since = self._step, self._since
        if self._running:
            timed = [number for number, (stage, *_) in self._running.items() if stage != "building"]
            number = (timed or sorted(self._running))[0]
            stage, configuration, since = self._running[number]
            step = f"trial {number}, {stage}: {configuration.backend} ({words.knobs(configuration)})"
            if len(self._running) > 1:
                step = f"trial {number} of {len(self._running)}{step.removeprefix(f'trial {number}')}"
        return f"{self._now() - since:.0f} s: {step}"

    def _resume(self, number: int, configuration: "Configuration") -> None:
        """Take over, once, the trials and the time of earlier runs of the study."""
        if self._resumed:
            return
        self._resumed = True
        trials, spent_s = self._earlier(number, configuration)
        self._estimate.resume(trials=sum(not trial.reused for trial in trials), spent_s=spent_s)
        for trial in trials:
            self._take(trial)

    def _run(self, number: int, stage: str, configuration: "Configuration") -> None:
        self._running[number] = stage, configuration, self._now()

    def _finish(self, trial: "Trial") -> None:
        self._running.pop(trial.number, None)
        self._estimate.end_trial(counts=not trial.reused)
        self._take(trial)
        self._say(_trial_line(trial))
        self._do("choosing the next trial")

    def _take(self, trial: "Trial") -> None:
        """Remember the figure that a trial is ranked by, if it was timed to its end and can be the plan."""
        figure = trial.ranked_by
        if trial.state != "complete" or figure is None or is_unserved(trial.configuration, self._request):
            return
        self._best = figure if self._best is None else min(self._best, figure)
        if is_baseline(trial.configuration, self._request):
            self._baseline = figure if self._baseline is None else min(self._baseline, figure)

    def _do(self, text: str) -> None:
        self._step, self._since = text, self._now()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _trial_line(trial: "Trial") -> str:
    title = f"trial {trial.number}: {trial.configuration.backend} ({words.knobs(trial.configuration)})"
    if trial.state == "complete" and trial.latency_ms is not None:
        built = f", built in {trial.build_s:.1f} s" if trial.build_s is not None else ""
        reused = ", from an earlier study" if trial.reused else ""
        error = words.signal_error(trial.signal_error)
        return f"{title}: {words.milliseconds(trial.latency_ms)} ms, signal error {error}{built}{reused}"
    if trial.state == "pruned" and trial.latency_ms is not None:
        latency = f"about {words.milliseconds(trial.latency_ms)} ms"
        return f"{title}: {latency}, much slower than the best, so its timing was stopped"
    if trial.failure is not None:
        return f"{title}: {trial.state}: {trial.failure}"
    return f"{title}: {trial.state}"
