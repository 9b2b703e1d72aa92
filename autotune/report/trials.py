"""The trials of a study for people to read."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.report import words
from autotune.trial import Trial

STYLES = {"complete": "", "pruned": "dim", "infeasible": "yellow", "failed": "red", "running": "cyan"}


def trials_table(
    study: str, batch: int, device_class: str, trials: Sequence[Trial], *, with_log: bool = False
) -> RenderableType:
    """One row a trial; ``with_log`` adds the tail of each failed trial's log below."""
    counts = Counter(trial.state for trial in trials)
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no trial"
    table = Table(title=f"{study}, batch {batch}, on {device_class}: {told}", title_justify="left")
    table.add_column("no", justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column("configuration", overflow="fold", ratio=3)
    for column in ("latency ms", "signal error", "build s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=2)
    for trial in trials:
        table.add_row(
            str(trial.number),
            Text(trial.state, style=STYLES[trial.state]),
            f"{trial.configuration.backend}: {words.knobs(trial.configuration)}",
            "–" if trial.latency_ms is None else words.milliseconds(trial.latency_ms),
            words.signal_error(trial.signal_error),
            "–" if trial.build_s is None else f"{trial.build_s:.1f}",
            Text("" if trial.failure is None else str(trial.failure)),
        )
    logs = [
        Text(f"\ntrial {trial.number}, the end of its log:\n{trial.failure.log_tail.rstrip()}")
        for trial in trials
        if with_log and trial.failure is not None and trial.failure.log_tail.strip()
    ]
    return Group(table, *logs)
