"""A TorchScript file made faster in its place: optimize_file, and the command ``autotune restore``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.progress import Progress

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from autotune.cli.progress import TuneProgress
    from autotune.deploy.replaced_file import ReplacedFile

BUDGET = "10m"
"""The search of a file by default: at most ten minutes."""


def optimize_file(
    path: Path | str,
    out: Path | str | None = None,
    *,
    inputs: object,
    budget: str | float = BUDGET,
    trials: int | None = None,
    constraints: Mapping[str, object] | None = None,
    precisions: tuple[str, ...] | None = None,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> "ReplacedFile":
    """Search for the fastest TorchScript file of a model, and write it as ``out``, by default in the file's own place.

    The new file behaves as the original: calls like ``inputs`` (tensors, as of :func:`autotune.optimize`) are answered
    by the tuned graph, all others, such as of other batch sizes, with gradients, or after ``load_state_dict``, by the
    original's own code. Whoever loads it needs torch alone. It is compared with the original in a fresh process, and
    written in one step, only if it is faster there. If it takes the original's place, the original is kept beside it
    as ``<file>.orig``; ``autotune restore <file>`` brings it back.

    The other options are those of :func:`autotune.tune`; without ``progress``, standard error shows how the search
    goes. Raises RequestError if the file cannot be read or was optimised before, ModelError if no file can be like it,
    UndecidedError if the search could not decide, WorkError if the new file cannot be written: the original then stays.
    """
    from autotune.cli.output import errors
    from autotune.database.store import Store
    from autotune.deploy.api import tune
    from autotune.deploy.drop_in import Original
    from autotune.deploy.replaced_file import refuse_early, replace
    from autotune.errors import UndecidedError
    from autotune.records.device import slug
    from autotune.study.request import DEFAULT_TRIALS

    target = Path(out) if out is not None else Path(path)
    original = Original.read(Path(path))
    refuse_early(original, target)
    with LateProgress(errors()) as shown:
        outcome = tune(
            original.module, inputs, serve_as="torchscript", budget=budget, trials=trials or DEFAULT_TRIALS,
            constraints=constraints, precisions=precisions, device=device, db=db, progress=progress or shown,
            name=name or slug(Path(path).stem) or "model",
        )  # fmt: skip
    if outcome.plan is None or outcome.undecided:
        raise UndecidedError(
            f"{path}: the finals could not decide", found=outcome.reason,
            expected="a host with little other work while it measures", run="the same call again",
        )  # fmt: skip
    with Store.open(db) as store:
        return replace(original, target, outcome.plan, store)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that autotune.optimize_file wrote.")],
) -> None:
    """Bring the original of an optimised file back, which is kept beside it as FILE.orig."""
    from autotune.deploy.replaced_file import restore as bring_back

    bring_back(file)
    typer.echo(f"restored {file}")


class LateProgress:
    """Shows the progress of a study from the moment at which it is known what was asked."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._shown: TuneProgress | None = None

    def __enter__(self) -> "LateProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if self._shown is not None:
            self._shown.__exit__(kind, error, trace)

    def event(self, kind: str, **data: Any) -> None:
        """Show an event."""
        if kind == "capture" and self._shown is None:
            from autotune.cli.progress import TuneProgress

            self._shown = TuneProgress(self._console, data["request"])
            self._shown.__enter__()
        if self._shown is not None:
            self._shown.event(kind, **data)
