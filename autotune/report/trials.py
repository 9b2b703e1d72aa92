"""The trials of a study, and reproductions of trials, for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.records.trial import Trial
from autotune.report import words
from autotune.report.fitting_table import FittingTable

if TYPE_CHECKING:
    from autotune.study.reproduce import Reproduction

STYLES = {"complete": "", "pruned": "dim", "infeasible": "yellow", "failed": "red", "running": "cyan"}


def trials_table(
    study: str,
    batch: int,
    device_class: str,
    trials: Sequence[Trial],
    *,
    with_log: bool = False,
    commands: Mapping[str, str] = MappingProxyType({}),
) -> RenderableType:
    """Show one row per trial; ``with_log`` adds the end of each failed trial's log, and the command to reproduce it."""
    counts = Counter(trial.state for trial in trials)
    summary = ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no trial"
    table = FittingTable(title=f"{study}, batch {batch}, on {device_class}: {summary}", title_justify="left")
    table.add_column("no", justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for column in ("latency ms", "signal error", "build s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
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
    below = []
    for trial in trials:
        if with_log and trial.failure is not None and trial.failure.log_tail.strip():
            below.append(Text(f"\ntrial {trial.number}, the end of its log:\n{trial.failure.log_tail.rstrip()}"))
        if with_log and trial.uid in commands:
            command = f"\nto reproduce trial {trial.number}:\n{commands[trial.uid]}"
            below.append(Text(command, no_wrap=True, overflow="ignore"))
    return Group(table, *below)


def reproduction_view(reproduction: "Reproduction") -> RenderableType:
    """Show the result of a trial and that of its reproduction."""
    trial = reproduction.trial
    then = str(trial.failure) if trial.failure is not None else _ended(trial.state, trial.latency_ms)
    now = str(reproduction.failure) if reproduction.failure is not None else _ended("complete", reproduction.latency_ms)
    lines = [
        f"trial {trial.number} of {reproduction.study} at batch {reproduction.batch}",
        f"{trial.configuration.backend}: {words.knobs(trial.configuration)}",
        f"then: {then}",
        f"now:  {now}",
        *(f"note: {note}" for note in reproduction.notes),
        "it ended as it did then" if reproduction.same else "it did not end as it did then",
    ]
    return Text("\n".join(lines))


def _ended(state: str, latency_ms: float | None) -> str:
    return state if latency_ms is None else f"{state}, {words.milliseconds(latency_ms)} ms"
