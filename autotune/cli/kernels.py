"""The commands ``autotune kernels``: tuned kernels in the database, and compiled ones in the cache and in packs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from autotune.cli import kernel_packs
from autotune.cli.output import (
    Db,
    DeviceOption,
    Json,
    device_class,
    errors,
    nothing_on_stdout,
    open_store,
    print_json,
    show,
)
from autotune.errors import RequestError, StudyInterruptedError, WorkError

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.kernel import StoredKernel
    from autotune.kernels.report import KernelReport
    from autotune.records.device import Device
    from autotune.records.kernel_problem import GemmProblem

DTYPES = ("fp16", "bf16", "fp32")

app = typer.Typer(no_args_is_help=True, help="Tune single kernels, compile standard ones, and list both.")
app.command("build")(kernel_packs.build)
app.command("export")(kernel_packs.export)
app.command("import")(kernel_packs.import_)


@app.command("list")
def list_kernels(
    pack: Annotated[
        Path | None,
        typer.Argument(metavar="[PACK]", help="A file of autotune kernels export, whose content is listed."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="List the compiled kernels of this user instead.")
    ] = False,
    device: DeviceOption = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """List the kernel problems in the database, each with its best kernel; or the content of a pack or the cache."""
    if pack is not None or compiled:
        _list_compiled(pack, json=json)
        return
    with open_store(db) as store:
        rows = store.kernels.problems(device_class(device))
    from autotune.report.kernels import problems_document, problems_table

    if json:
        print_json(problems_document(rows))
    else:
        show(problems_table(rows))


def _list_compiled(pack: Path | None, *, json: bool) -> None:
    from autotune.kernels.compiled import kernels_folder
    from autotune.kernels.pack import imported_packs, read_manifest
    from autotune.report.compiled_kernels import compiled_document, compiled_table

    if pack is not None:
        manifest = read_manifest(pack)
        kernels: Sequence[StoredKernel] = manifest.kernels
        packs: Sequence[str] = (manifest.digest,)
    else:
        _, provider = kernel_packs.provider()
        kernels, packs = provider.stored(kernels_folder()), imported_packs(kernels_folder())
    if json:
        print_json(compiled_document(kernels, packs))
    else:
        show(compiled_table(kernels, packs))


@app.command("tune")
def tune(
    m: Annotated[int, typer.Argument(metavar="M", help="Rows of A and of the result: batch times tokens.")],
    n: Annotated[int, typer.Argument(metavar="N", help="Columns of the result: a linear layer's outputs.")],
    k: Annotated[int, typer.Argument(metavar="K", help="Columns of A and rows of B: a linear layer's inputs.")],
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="fp16, bf16 or fp32.")] = "fp16",
    epilogue: Annotated[
        str,
        typer.Option(
            "--epilogue",
            metavar="NAME",
            help="none, bias, or a bias and relu, gelu (with erf), gelu_tanh, silu, relu6, "
            "hardswish, hardsigmoid, sigmoid or tanh.",
        ),
    ] = "none",
    residual: Annotated[bool, typer.Option("--residual", help="Add a residual before the activation.")] = False,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for this run: 90s, 2m, 1h.")] = "2m",
    builds: Annotated[
        int, typer.Option("--builds", metavar="N", help="The most kernels to compile, over all runs.")
    ] = 16,
    db: Db = None,
    json: Json = False,
) -> None:
    """Find the fastest kernel for D = activation(A·B + bias + residual) with A of M×K and B of K×N.

    Every trial is stored; a kernel that was tried before under the same toolchain is not tried again.
    """
    from autotune.runtime import discovery
    from autotune.study.file import parse_duration

    problem = kernel_problem(m, n, k, dtype, epilogue, residual=residual)
    try:
        budget_s = parse_duration(budget)
    except ValueError as error:
        raise RequestError(f"--budget {budget}", found=str(error), expected="such as 90s, 2m or 1h30m") from None
    if builds < 1:
        raise RequestError(f"--builds {builds}", found="less than one kernel", expected="at least 1")
    target = discovery.find(device)
    if json:
        with nothing_on_stdout():
            report = _run(problem, target, budget_s, builds, db)
    else:
        report = _run(problem, target, budget_s, builds, db)
    _print_report(report, target, json=json)


def kernel_problem(m: int, n: int, k: int, dtype: str, epilogue: str, *, residual: bool) -> "GemmProblem":
    """Return the problem that the arguments describe; RequestError if there is no such problem."""
    from autotune.records.kernel_problem import Activation, GemmProblem

    epilogues = ("none", "bias", *(name for name in get_args(Activation) if name != "none"))
    for option, name, accepted in (("--dtype", dtype, DTYPES), ("--epilogue", epilogue, epilogues)):
        if name not in accepted:
            raise RequestError(f"{option} {name}", found="no such name", expected=f"one of {', '.join(accepted)}")
    values: dict[str, object] = {
        "m": m, "n": n, "k": k, "dtype": dtype, "output": dtype, "bias": epilogue != "none", "residual": residual,
        "activation": "none" if epilogue == "bias" else epilogue,
    }  # fmt: skip
    try:
        return GemmProblem.from_dict(values)
    except ValueError as error:
        raise RequestError(f"a product of {m}×{k} and {k}×{n}", found=str(error), expected="positive sizes") from None


def _run(problem: "GemmProblem", device: "Device", budget_s: float, builds: int, db: str | None) -> "KernelReport":
    from autotune import registry
    from autotune.execute.server import WorkerServer
    from autotune.kernels.executor import STEPS
    from autotune.kernels.tuning import tune_kernels
    from autotune.scratch import ScratchFolder
    from autotune.study.study import stoppable

    progress = KernelProgress(errors())
    with (
        ScratchFolder("kernels") as folder,
        open_store(db, create=True) as store,
        WorkerServer(folder, steps=STEPS, work="autotune kernels tune", tell=progress.say) as server,
        stoppable(server) as stop,
    ):
        return tune_kernels(
            {problem: 1.0}, device, store, server, backend=registry.tuning_kernels()[0], budget_s=budget_s,
            builds=builds, progress=progress, stop=stop,
        )  # fmt: skip


def _print_report(report: "KernelReport", device: "Device", *, json: bool) -> None:
    """Print the result of a tuning; raises if nothing could be timed, or if the run was stopped."""
    from autotune.report.kernels import problem_words, tuned_document, tuned_view

    (tuned,) = report.problems
    if report.stopped:
        raise StudyInterruptedError(
            f"tuning {problem_words(tuned.problem)} was stopped; its finished trials are kept",
            run="the same command, to continue",
        )
    if tuned.best is None:
        failures = [str(trial.failure) for trial in tuned.trials if trial.failure is not None]
        reason = str(tuned.trouble) if tuned.trouble else "; ".join(failures[:3]) or "no candidate was timed"
        raise WorkError(
            f"no kernel for {problem_words(tuned.problem)} on {device.name}", found=reason,
            expected="at least one kernel with correct results", run="autotune doctor",
        )  # fmt: skip
    if json:
        print_json(
            {
                "device": device.sku,
                "device_class": device.device_class,
                "toolchain": report.toolchain,
                "seconds": report.seconds,
                "notes": list(report.notes),
                **tuned_document(tuned, report.rates),
            }
        )
        return
    show(tuned_view(tuned, device, report.rates))


class KernelProgress:
    """Prints a line for each kernel that was tried or took part in a final, on standard error."""

    def __init__(self, console: "Console") -> None:
        self._console = console

    def event(self, kind: str, **data: Any) -> None:
        """Show an event; events of other kinds are left out."""
        from autotune.report import words

        if kind == "message":
            self.say(data["text"])
        elif kind == "kernel_tried":
            trial, configuration = data["trial"], data["trial"].configuration
            result = trial.failure or f"{words.milliseconds(trial.median_us)} µs"
            self.say(f"{configuration.backend} ({words.knobs(configuration)}): {result}")
        elif kind == "kernels_compared":
            for finalist in data["final"].ranked:
                text, us = words.knobs(finalist.configuration), words.milliseconds(finalist.median_us)
                self.say(f"final: {finalist.configuration.backend} ({text}): {us} µs")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, soft_wrap=True)
