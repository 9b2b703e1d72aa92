"""Our kernels beside the libraries' calls, as a Markdown table."""

from collections.abc import Mapping, Sequence

from autotune.programs.kernel_comparison.finals import Overall, RaceResult, Ratio
from autotune.programs.kernel_comparison.shapes import ComparedShape
from autotune.records.configuration import Configuration
from autotune.report import words


def comparison_table(
    results: Mapping[ComparedShape, RaceResult], joined: Overall | None, missing: Sequence[tuple[ComparedShape, str]]
) -> str:
    """Return a line for each product, then the means, then the products that were not compared, with the reason."""
    lines = [
        "| product | m×n×k | epilogue | library, µs | ours, µs | library ÷ ours | library ÷ chosen | library's call "
        "| our kernel |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for shape, result in results.items():
        problem = result.problem
        lines.append(
            f"| {shape.model} {shape.batch}, {shape.what} | {problem.m}×{problem.n}×{problem.k} | {shape.epilogue} "
            f"| {result.library_us:.2f} | {result.ours_us:.2f} | {_ratio(result.of_ours)} | {_ratio(result.of_chosen)} "
            f"| {_kernel(result.library)} | {_kernel(result.ours)} |"
        )
    if joined is not None:
        slower = ", ".join(f"{problem.m}×{problem.n}×{problem.k}" for problem in joined.slower) or "none"
        lines += [
            "",
            f"Geometric mean over {len(results)} products, library ÷ ours: {_ratio(joined.ours)}",
            f"Geometric mean, library ÷ chosen (a library's call may be chosen): {_ratio(joined.chosen)}",
            f"Products on which the choice is significantly slower: {slower}",
        ]
    lines += [f"- not compared: {shape.name}: {why}" for shape, why in missing]
    return "\n".join(lines)


def ratio_document(ratio: Ratio) -> dict[str, object]:
    """Return plain data for JSON."""
    return {"ratio": ratio.ratio, "interval": list(ratio.interval), "p_value": ratio.p_value}


def _ratio(ratio: Ratio) -> str:
    low, high = ratio.interval
    return f"{ratio.ratio:.3f} ({low:.3f} to {high:.3f})"


def _kernel(configuration: Configuration) -> str:
    return f"{configuration.backend} {words.knobs(configuration)}"
