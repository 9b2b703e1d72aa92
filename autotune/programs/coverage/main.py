"""Estimates the share of models that is left to torch: ``python -m autotune.programs.coverage studies/*/study.yaml``.

A model is captured and its graph rewritten on the CPU as the native backend rewrites it for an H200; no GPU is needed.
Prints the launches before and after, the products that kernels of the engine can compute, the estimated time, and for
each operator that is left to torch the functions that refused it, with their reasons.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autotune import registry
from autotune.errors import AutotuneError, RequestError
from autotune.model.capture import capture
from autotune.model.factory import make_module
from autotune.model.inputs import generate
from autotune.model.source import CapturedModel, write
from autotune.programs.check_result import CheckResult
from autotune.programs.coverage.estimate import ModelCoverage, Rates
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, positive, run_program, say
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.records.device import Device, slug
from autotune.study.file import StudyFile, parse_study, read_study

NAME, BACKEND = "coverage", "native"
PRECISIONS = ("fp16", "bf16")
H200 = Device(kind="cuda", name="NVIDIA H200", uuid="none", capability=(9, 0))
"""The device that graphs are rewritten for."""
INPUTS_FORM = "[{name: x, shape: [batch, 3, 224, 224]}]"
GROUPS = 10
"""The most groups of operators that are printed for a model; the file of ``--json`` has all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _report_models, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write every launch with its bytes, its operations and the reasons why it was left")
    parser.add_argument("models", nargs="+", metavar="STUDY_FILE_OR_MODEL", help="a study file, or file.py:function")
    parser.add_argument("--batch", type=positive, metavar="N", help="the batch (default: the first of the study)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help=f"({PRECISIONS[0]})")
    parser.add_argument(
        "--inputs", metavar="YAML", help="the inputs of file.py:function, in the form of a study file: "
        f"'{INPUTS_FORM}'"
    )  # fmt: skip
    parser.add_argument("--db", metavar="URL", help="take the rates from the roofs of an H200 in this database")
    return parser


def _report_models(run: Run) -> int:
    options = run.options
    rates = _rates(options.db, options.precision)
    studies = [study_of(model, options.inputs) for model in options.models]
    covered: list[ModelCoverage] = []
    results = []
    for study in studies:
        batch = options.batch or study.batch[0]
        try:
            model = cover(study, batch, options.precision, rates)
        except AutotuneError as error:
            say(str(error))
            results.append(_result(study.name, batch, str(error), passed=False))
            continue
        covered.append(model)
        results.append(_result(study.name, batch, _summary(model), passed=True))
    more = {"models": [model.as_dict() for model in covered]}
    return run.report(rows_of(results), environment("cpu"), text=markdown(covered), more=more)


def _result(name: str, batch: int, figure: str, *, passed: bool) -> CheckResult:
    return CheckResult(check=f"{name}, batch {batch}", figure=figure, limit="the graph can be rewritten", passed=passed)


def study_of(model: str, inputs: str | None) -> StudyFile:
    """Read a study file; or make the study of a factory and its inputs, which raises RequestError without inputs."""
    if not _is_factory(model):
        return read_study(model)
    if inputs is None:
        raise RequestError(
            f"the inputs of {model}", found="no --inputs", expected=f"--inputs '{INPUTS_FORM}'"
        )  # fmt: skip
    name = slug(model.rpartition(":")[2]) or "model"
    return parse_study(f"name: {name}\nmodel: {{factory: '{model}'}}\ninputs: {inputs}\n", Path.cwd() / "--inputs")


def _is_factory(model: str) -> bool:
    return ":" in model and not model.endswith((".yaml", ".yml"))


def cover(study: StudyFile, batch: int, precision: str, rates: Rates) -> ModelCoverage:
    """Capture the model of a study on its own example inputs, and rewrite its graph for an H200."""
    backend = registry.reporting_coverage(BACKEND)
    assert backend is not None
    seed = study.search.seed
    (example,) = generate(study.input_specs(), batch, seed, 1, "example")
    module = make_module(study.factory, seed)
    say(f"{study.name}: capturing at batch {batch}")
    captured = capture(study.name, batch, module, example)
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        write(Path(folder), captured, example, factory=None, seed=seed)
        coverage = backend.coverage(CapturedModel(Path(folder)), _configuration(precision), H200)
    return ModelCoverage(name=study.name, batch=batch, precision=precision, coverage=coverage, rates=rates)


def _configuration(precision: str) -> Configuration:
    """Return the configuration of the backend with every fusion and with tuned kernels."""
    hints = registry.backend(BACKEND).space(H200, None, has_factory=False).hints
    tuned = next(hint for hint in hints if hint["kernels"] == "tuned")
    return Configuration.of(BACKEND, {**dict(tuned.values), "precision": precision})


def _rates(db: str | None, precision: str) -> Rates:
    if db is None:
        return Rates()
    from autotune.database.store import Store

    with Store.open(db) as store:
        roofs = store.roofs.list()
    of_device = [entry for entry in roofs if entry.device_class.partition("/")[0] == H200.sku]
    if not of_device:
        raise RequestError(
            f"the rates of {H200.name}", found=f"roofs of {', '.join(r.device_class for r in roofs) or 'no device'}",
            expected=f"roofs of {H200.sku}", run="autotune roofs measure",
        )  # fmt: skip
    return Rates.of(max(of_device, key=lambda entry: entry.created), precision)


def markdown(models: Sequence[ModelCoverage]) -> str:
    """Write a table with a row for each model, and for each a table of the operators that are left to torch."""
    lines = [
        "| model, batch | launches before → after | products with a tile | left to torch | µs before → after |",
        "| --- | ---: | ---: | ---: | ---: |",
        *map(_row, models),
    ]
    for model in models:
        lines += ["", f"**{model.name}, batch {model.batch}**: {_summary(model)}"]
        if model.left:
            lines += ["", "| left to torch | launches | share | decided by |", "| --- | ---: | ---: | --- |"]
            lines += _group_rows(model)
    return "\n".join([*lines, ""])


def _row(model: ModelCoverage) -> str:
    coverage = model.coverage
    cells = [
        f"{model.name}, {model.batch}", f"{len(coverage.before)} → {len(coverage.after)}",
        f"{coverage.own_products} of {coverage.products}", f"{model.torch_share:.0%}",
        f"{model.before_us:.0f} → {model.after_us:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _summary(model: ModelCoverage) -> str:
    coverage = model.coverage
    return (
        f"{len(coverage.before)} → {len(coverage.after)} launches; {coverage.own_products} of {coverage.products} "
        f"products have a tile; {model.torch_share:.0%} of about {model.after_us:.0f} µs is left to torch"
    )


def _group_rows(model: ModelCoverage) -> list[str]:
    groups = model.groups()
    rows = []
    for group in groups[:GROUPS]:
        reasons = "; ".join(
            f"`{refusal.function}`: {refusal.reason}" + (f" ({count})" if count != group.launches else "")
            for refusal, count in group.refusals.items()
        )
        rows.append(f"| {group.operator} | {group.launches} | {group.share:.1%} | {reasons} |")
    rest = groups[GROUPS:]
    if rest:
        launches, share = sum(group.launches for group in rest), sum(group.share for group in rest)
        rows.append(f"| {len(rest)} others | {launches} | {share:.1%} | |")
    return rows
