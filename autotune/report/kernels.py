"""Tuned kernels for people and programs to read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.kernels.report import TunedProblem
from autotune.measure.conditions import recorded
from autotune.measure.flags import stored_flags
from autotune.measure.statistics import median_interval
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.report import words
from autotune.report.fitting_table import FittingTable

if TYPE_CHECKING:
    from autotune.database.kernel_trials import KernelProblemRow
    from autotune.kernels.rates import DeviceRates
    from autotune.records.device import Device


def problem_words(problem: GemmProblem) -> str:
    """Name a problem: ``128×3072×768 fp16, bias, gelu``; of a convolution with its window."""
    parts = [f"{problem.m}×{problem.n}×{problem.k} {problem.dtype}"]
    if problem.window is not None:
        window = problem.window
        stride = "" if window.stride == (1, 1) else f" / {window.stride[0]}×{window.stride[1]}"
        parts[0] += f" ({window.kernel[0]}×{window.kernel[1]}{stride} of {window.height}×{window.width})"
    if problem.output != problem.dtype:
        parts[0] += f" to {problem.output}"
    parts += [f"{name} {major}-major" for name, major in _unusual(problem)]
    parts += ["bias"] if problem.bias else []
    parts += [problem.activation] if problem.activation != "none" else []
    parts += ["residual"] if problem.residual else []
    return ", ".join(parts)


def roofline_us(problem: GemmProblem, rates: "DeviceRates | None") -> float | None:
    """The least time that a device's arithmetic and memory allow; ``None`` where its rates for the type are unknown."""
    if rates is None or problem.dtype == "fp32":
        return None
    return 1e6 * max(problem.flops / rates.flops_per_s, problem.bytes / rates.memory_bytes_per_s)


def trial_document(trial: KernelTrial, tuned: TunedProblem, rates: "DeviceRates | None") -> dict[str, Any]:
    """One candidate of ``autotune kernels tune --json``; figures are ``None`` where it failed before it had them."""
    us, least_us = trial.median_us, roofline_us(trial.problem, rates)
    library_us = tuned.library.median_us if tuned.library else None
    return {
        "kind": trial.configuration.backend,
        "configuration": trial.configuration.as_dict(),
        "state": trial.state,
        "median_us": us,
        "interval_us": list(median_interval(trial.samples_us)) if us is not None else None,
        "samples": len(trial.samples_us),
        "tflops": trial.problem.flops / us / 1e6 if us is not None else None,
        "roofline_share": least_us / us if us is not None and least_us is not None else None,
        "library_ratio": library_us / us if us is not None and library_us is not None else None,
        "error": trial.error,
        "made": dict(trial.made),
        "stopped": recorded(trial.conditions, "stopped"),
        "clock": recorded(trial.conditions, "clock"),
        "l2": recorded(trial.conditions, "l2"),
        "flags": list(stored_flags(trial.conditions)),
        "failure": None if trial.failure is None else trial.failure.as_dict(),
    }


def tuned_document(tuned: TunedProblem, rates: "DeviceRates | None") -> dict[str, Any]:
    """One problem of ``autotune kernels tune --json``, its candidates best first and failed ones last."""
    return {
        "problem": tuned.problem.as_dict(),
        "digest": tuned.problem.digest,
        "roofline_us": roofline_us(tuned.problem, rates),
        "best_us": tuned.best.median_us if tuned.best else None,
        "library_us": tuned.library.median_us if tuned.library else None,
        "saved": tuned.saved,
        "measured": tuned.measured,
        "compiled": tuned.compiled,
        "cached": tuned.measured == 0,
        "trouble": None if tuned.trouble is None else str(tuned.trouble),
        "candidates": [trial_document(trial, tuned, rates) for trial in tuned.trials],
    }


def tuned_view(tuned: TunedProblem, device: "Device", rates: "DeviceRates | None") -> RenderableType:
    """The candidates of one problem, best first; below them those that failed, with the reason."""
    known = len(tuned.trials) - tuned.measured
    title = f"{problem_words(tuned.problem)} on {device.device_class}: {tuned.measured} timed now, {known} known before"
    table = FittingTable(title=title, title_justify="left")
    table.add_column("kind", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for column in ("median µs [95% interval]", "TFLOP/s", "of roofline", "vs best library"):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in tuned.complete:
        figures = trial_document(trial, tuned, rates)
        table.add_row(
            trial.configuration.backend,
            words.knobs(trial.configuration),
            words.latency(figures["median_us"], figures["interval_us"]),
            f"{figures['tflops']:.4g}",
            "–" if figures["roofline_share"] is None else f"{figures['roofline_share']:.0%}",
            "–" if figures["library_ratio"] is None else words.speedup(figures["library_ratio"]),
        )
    failed = [trial for trial in tuned.trials if trial.state == "failed"]
    below = [Text(f"{trial.configuration}: {trial.failure}", style="red") for trial in failed]
    return Group(table, *below)


def problems_document(rows: "Sequence[KernelProblemRow]") -> list[dict[str, Any]]:
    """What ``autotune kernels list --json`` prints."""
    return [
        {
            "problem": row.problem.as_dict(),
            "digest": row.problem.digest,
            "device_class": row.device_class,
            "toolchain": row.toolchain,
            "trials": row.trials,
            "failed": row.failed,
            "best": row.best.configuration.as_dict() if row.best else None,
            "best_us": row.best.median_us if row.best else None,
            "library_us": row.library_us,
            "saved": _saved(row),
        }
        for row in rows
    ]


def problems_table(rows: "Sequence[KernelProblemRow]") -> RenderableType:
    """Every known problem with its best kernel."""
    table = FittingTable(title=f"{len(rows)} kernel problems", title_justify="left")
    table.add_column("problem", overflow="fold")
    table.add_column("device", overflow="fold")
    table.add_column("toolchain", no_wrap=True)
    table.add_column("tried", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("best kernel", overflow="fold")
    table.add_column("µs", justify="right", no_wrap=True)
    table.add_column("saved against library", justify="right", no_wrap=True)
    for row in rows:
        saved, best = _saved(row), row.best
        table.add_row(
            problem_words(row.problem),
            row.device_class,
            row.toolchain[:8],
            str(row.trials),
            str(row.failed),
            "–" if best is None else f"{best.configuration.backend}: {words.knobs(best.configuration)}",
            "–" if best is None or best.median_us is None else words.milliseconds(best.median_us),
            "–" if saved is None else f"{saved:.1%}",
        )
    return table


def _saved(row: "KernelProblemRow") -> float | None:
    best_us = row.best.median_us if row.best else None
    return None if best_us is None or row.library_us is None else 1 - best_us / row.library_us


def _unusual(problem: GemmProblem) -> list[tuple[str, str]]:
    majors = {"A": problem.a_major, "B": problem.b_major}
    return [(name, major) for name, major in majors.items() if major != "k"]
