"""Tuned kernels as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from autotune import registry
from autotune.kernels.report import TunedProblem
from autotune.measure.conditions import recorded
from autotune.measure.flags import stored_flags
from autotune.measure.statistics import median_interval
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal, KernelFinalist
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.report import words
from autotune.report.fitting_table import FittingTable

if TYPE_CHECKING:
    from autotune.database.kernel_trials import KernelProblemRow
    from autotune.kernels.rates import DeviceRates
    from autotune.records.device import Device


def problem_words(problem: GemmProblem) -> str:
    """Return the words for a problem: ``128×3072×768 fp16, bias, gelu``; for a convolution with its window."""
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
    """Return the least time that a device's arithmetic and memory allow; ``None`` if its rates are unknown."""
    if rates is None or problem.dtype == "fp32":
        return None
    return 1e6 * max(problem.flops / rates.flops_per_s, problem.bytes / rates.memory_bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFigures:
    """The figures of a timed kernel: its median time with the 95% interval, and what follows from it.

    ``roofline_share`` is the least time on the device divided by the median, ``library_ratio`` the time of the best
    library call divided by it; ``None`` if one is unknown.
    """

    median_us: float
    interval_us: tuple[float, float]
    tflops: float
    roofline_share: float | None
    library_ratio: float | None


def kernel_figures(trial: KernelTrial, tuned: TunedProblem, rates: "DeviceRates | None") -> KernelFigures | None:
    """Return the figures of a trial; ``None`` if it was not timed."""
    us, least_us = trial.median_us, roofline_us(trial.problem, rates)
    library_us = tuned.library_us
    if us is None:
        return None
    return KernelFigures(
        median_us=us,
        interval_us=median_interval(trial.samples_us),
        tflops=trial.problem.flops / us / 1e6,
        roofline_share=None if least_us is None else least_us / us,
        library_ratio=None if library_us is None else library_us / us,
    )


def trial_document(trial: KernelTrial, tuned: TunedProblem, rates: "DeviceRates | None") -> dict[str, object]:
    """Return one candidate of ``autotune kernels tune --json``; its figures are ``None`` if it was not timed."""
    figures = kernel_figures(trial, tuned, rates)
    return {
        "kind": trial.configuration.backend,
        "configuration": trial.configuration.as_dict(),
        "state": trial.state,
        "median_us": figures and figures.median_us,
        "interval_us": figures and list(figures.interval_us),
        "samples": len(trial.samples_us),
        "tflops": figures and figures.tflops,
        "roofline_share": figures and figures.roofline_share,
        "library_ratio": figures and figures.library_ratio,
        "error": trial.error,
        "made": dict(trial.made),
        "final_us": _final_us(trial, tuned.final),
        "stopped": recorded(trial.conditions, "stopped"),
        "clock": recorded(trial.conditions, "clock"),
        "l2": recorded(trial.conditions, "l2"),
        "flags": list(stored_flags(trial.conditions)),
        "failure": None if trial.failure is None else trial.failure.as_dict(),
    }


def tuned_document(tuned: TunedProblem, rates: "DeviceRates | None") -> dict[str, object]:
    """Return one problem of ``autotune kernels tune --json``; the best candidate is first, failed ones are last."""
    return {
        "problem": tuned.problem.as_dict(),
        "digest": tuned.problem.digest,
        "roofline_us": roofline_us(tuned.problem, rates),
        "best_us": tuned.best_us,
        "library_us": tuned.library_us,
        "saved": tuned.saved,
        "final": final_document(tuned.final),
        "measured": tuned.measured,
        "compiled": tuned.compiled,
        "cached": tuned.measured == 0,
        "trouble": None if tuned.trouble is None else str(tuned.trouble),
        "candidates": [trial_document(trial, tuned, rates) for trial in tuned.trials],
    }


def tuned_view(tuned: TunedProblem, device: "Device", rates: "DeviceRates | None") -> RenderableType:
    """Show the candidates of a problem, the best first; below them those that failed, with the reason."""
    stored = len(tuned.trials) - tuned.measured
    counts = f"{tuned.measured} timed now, {stored} from the database"
    title = f"{problem_words(tuned.problem)} on {device.device_class}: {counts}"
    table = FittingTable(title=title, title_justify="left")
    table.add_column("kind", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    # Medians of the search and of the final stand side by side, because they do not compare with each other.
    final = tuned.final
    if final is not None:
        table.add_column("final µs [95% interval]", justify="right", no_wrap=True)
    for column in ("median µs [95% interval]", "TFLOP/s", "of roofline", "vs best library"):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in tuned.complete:
        figures = kernel_figures(trial, tuned, rates)
        if figures is None:
            continue
        table.add_row(
            trial.configuration.backend,
            words.knobs(trial.configuration),
            *([_final_words(trial, final)] if final is not None else []),
            words.latency(figures.median_us, figures.interval_us),
            f"{figures.tflops:.4g}",
            "–" if figures.roofline_share is None else f"{figures.roofline_share:.0%}",
            "–" if figures.library_ratio is None else words.speedup(figures.library_ratio),
        )
    failed = [trial for trial in tuned.trials if trial.state == "failed"]
    below = [Text(f"{trial.configuration}: {trial.failure}", style="red") for trial in failed]
    return Group(table, *below)


def final_document(final: KernelFinal | None) -> dict[str, object] | None:
    """Return a final in JSON, the fastest kernel first; ``None`` if the search alone decides."""
    if final is None:
        return None
    best, library = final.ranked[0], _library(final)
    return {
        "best": best.configuration.as_dict(),
        "best_us": best.median_us,
        "library_us": None if library is None else library.median_us,
        "saved": None if library is None else 1 - best.median_us / library.median_us,
        "rounds": final.rounds,
        "finalists": [
            {
                "configuration": finalist.configuration.as_dict(),
                "median_us": finalist.median_us,
                "interval_us": list(median_interval(finalist.round_medians_us)),
            }
            for finalist in final.ranked
        ],
    }


def _library(final: KernelFinal) -> KernelFinalist | None:
    """Return the fastest library call of a final."""
    library_kinds = registry.library_kinds()
    return next((finalist for finalist in final.ranked if finalist.configuration.backend in library_kinds), None)


def _final_us(trial: KernelTrial, final: KernelFinal | None) -> float | None:
    """Return the median of a kernel in the final; ``None`` if it took no part."""
    finalist = final.of(trial.configuration) if final is not None else None
    return None if finalist is None else finalist.median_us


def _final_words(trial: KernelTrial, final: KernelFinal) -> str:
    finalist = final.of(trial.configuration)
    if finalist is None:
        return "–"
    return words.latency(finalist.median_us, median_interval(finalist.round_medians_us))


def problems_document(rows: "Sequence[KernelProblemRow]") -> list[dict[str, object]]:
    """Return the document of ``autotune kernels list --json``."""
    return [
        {
            "problem": row.problem.as_dict(),
            "digest": row.problem.digest,
            "device_class": row.device_class,
            "toolchain": row.best.toolchain if row.best else None,
            "trials": row.trials,
            "failed": row.failed,
            "best": row.best.configuration.as_dict() if row.best else None,
            "best_us": row.best.median_us if row.best else None,
            "library_us": row.library_us,
            "saved": _saved(row),
            "final": final_document(row.final),
        }
        for row in rows
    ]


def problems_table(rows: "Sequence[KernelProblemRow]") -> RenderableType:
    """Show each problem with its best kernel, and its time in the final that chose it, if there is one."""
    table = FittingTable(title=f"{len(rows)} kernel problems", title_justify="left")
    table.add_column("problem", overflow="fold")
    table.add_column("device", overflow="fold")
    table.add_column("tried", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("best kernel", overflow="fold")
    table.add_column("µs", justify="right", no_wrap=True)
    table.add_column("chosen by", no_wrap=True)
    table.add_column("saved against library", justify="right", no_wrap=True)
    for row in rows:
        kernel, us, saved = _chosen(row)
        table.add_row(
            problem_words(row.problem),
            row.device_class,
            str(row.trials),
            str(row.failed),
            "–" if kernel is None else f"{kernel.backend}: {words.knobs(kernel)}",
            "–" if us is None else words.milliseconds(us),
            "–" if kernel is None else "search" if row.final is None else "final",
            "–" if saved is None else f"{saved:.1%}",
        )
    return table


def _chosen(row: "KernelProblemRow") -> tuple[Configuration | None, float | None, float | None]:
    """Return the kernel that a build gets, its time, and what it saves against the libraries.

    All three are those of the final, if there is one. If no library call was near enough for the final, the saving is
    that of the search.
    """
    if row.final is None:
        best = row.best
        return (None, None, None) if best is None else (best.configuration, best.median_us, _saved(row))
    finalist, library = row.final.ranked[0], _library(row.final)
    return (
        finalist.configuration,
        finalist.median_us,
        1 - finalist.median_us / library.median_us if library else _saved(row),
    )


def _saved(row: "KernelProblemRow") -> float | None:
    best_us = row.best.median_us if row.best else None
    return None if best_us is None or row.library_us is None else 1 - best_us / row.library_us


def _unusual(problem: GemmProblem) -> list[tuple[str, str]]:
    majors = {"A": problem.a_major, "B": problem.b_major}
    return [(name, major) for name, major in majors.items() if major != "k"]
