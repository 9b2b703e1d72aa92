"""Whether a loaded plan answers like its model: ``python -m autotune.programs.random_models``.

Draws random programs of several operators, some with state, random numbers, shapes that depend on values, inner graphs,
writes into inputs, parts in train mode or unusual answers. Each is captured, built by every backend and loaded, without
a study, and compared with its model over 50 calls on fresh inputs. What a backend does not build, or answers so far off
on the held-out inputs that no study would promote it, is counted and breaks no promise. Prints a row a promise;
``--json`` writes them to a file with the environment. Exit code 0 if every answer agrees or its model was refused
before anything was built, and at least 95% of the models without state, random numbers and such shapes are accepted;
1 if not; 2 if the request is wrong.
"""

import argparse
import logging
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune import registry
from autotune.errors import RequestError
from autotune.programs.frame import document_of, positive, tell
from autotune.programs.outcome import Outcome
from autotune.programs.random_models.deployed import CALLS, Verdict, judge
from autotune.programs.random_models.processes import side_by_side
from autotune.programs.surroundings import environment
from autotune.runtime import discovery

COMMAND = "python -m autotune.programs.random_models"
MODELS = 200
LEAST_ACCEPTED = 0.95
BACKENDS = ("eager", "torchscript", "onnxruntime", "openvino", "native")
SHOWN = 6
REPORT_EVERY = 20
MODELS_AT_ONCE = 40
"""After so many the processes are started anew: torch.export keeps something of every graph that it has seen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    progress = Console(stderr=True)
    try:
        backends = _available(options.backends)
    except RequestError as error:
        progress.print(str(error), markup=False)
        return error.exit_code
    around, started = environment("cpu"), time.monotonic()
    verdicts: list[Verdict] = []
    for verdict in _judged(options, backends):
        verdicts.append(verdict)
        for backend, wrong in verdict.wrong.items():
            progress.print(f"program {verdict.seed}, {backend}: {wrong}", markup=False, highlight=False)
        if len(verdicts) % REPORT_EVERY == 0:
            progress.print(f"{len(verdicts)} of {options.models} models", markup=False, highlight=False)
    document = document_of(
        [*shlex.split(COMMAND), *given], _rows(verdicts, backends), around, quick=options.models < MODELS,
        seed=options.seed, seconds=time.monotonic() - started, models=len(verdicts), backends=list(backends),
    )  # fmt: skip
    return tell(document, options.json)


def _available(asked: Sequence[str]) -> tuple[str, ...]:
    """Return those of the backends that work on this CPU; one that is not known is refused."""
    device = discovery.find("cpu")
    return tuple(name for name in asked if registry.backend(name).probe(device).works)


def _judged(options: argparse.Namespace, backends: tuple[str, ...]) -> Iterator[Verdict]:
    tasks = [(f"{options.seed}/{at}", backends, options.calls) for at in range(options.models)]
    if options.workers > 1:
        for at in range(0, len(tasks), MODELS_AT_ONCE):
            yield from side_by_side(tasks[at : at + MODELS_AT_ONCE], options.workers, _start_worker)
        return
    with warnings.catch_warnings():
        _quiet()
        try:
            yield from (judge(*task) for task in tasks)
        finally:
            logging.disable(logging.NOTSET)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    _quiet()


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # torch.export logs the whole graph of a model that it refuses


def _rows(verdicts: Sequence[Verdict], backends: Sequence[str]) -> list[dict[str, Any]]:
    outcomes = [*(_agreement(verdicts, backend) for backend in backends), _acceptance(verdicts), _refusals(verdicts)]
    return [{"group": outcome.check, **outcome.as_dict(), "seconds": None} for outcome in outcomes]


def _agreement(verdicts: Sequence[Verdict], backend: str) -> Outcome:
    """A backend that does not build a model is noted; a wrong answer breaks the promise."""
    accepted = [one for one in verdicts if not one.refusal]
    rejected = [one for one in accepted if backend in one.rejected]
    wrong = [one for one in accepted if backend in one.wrong or "capture" in one.wrong]
    if backend == "eager":  # nothing else is left to promote
        wrong += rejected
    failed = Counter(one.failed[backend] for one in accepted if backend in one.failed)
    loaded = [one for one in accepted if backend in one.calls or backend in one.wrong]
    calls = sum(one.calls.get(backend, 0) for one in loaded)
    return Outcome(
        check=f"answers of {backend}",
        figure=f"{len(loaded)} models, {calls} calls, {len(wrong)} models wrong; "
        f"{failed.total()} not built, {len(rejected)} not promoted",
        limit="every answer agrees",
        passed=not wrong,
        raw={
            "models": len(loaded), "calls": calls,
            "wrong": [{"seed": one.seed, "odd": one.odd, **one.rejected, **one.wrong} for one in wrong],
            "noise": sum(one.noise.get(backend, 0) for one in loaded),
            "not_promoted": [
                {"seed": one.seed, "operators": one.operators, "reason": one.rejected[backend]} for one in rejected
            ],
            "not_built": dict(failed.most_common()),
        },
    )  # fmt: skip


def _acceptance(verdicts: Sequence[Verdict]) -> Outcome:
    plain = [one for one in verdicts if not one.may_be_refused]
    refused = [one for one in plain if one.refusal]
    share = 1 - len(refused) / len(plain) if plain else 1.0
    return Outcome(
        check="accepted of those without state or random numbers",
        figure=f"{len(plain) - len(refused)} of {len(plain)}, {share:.1%}",
        limit=f"at least {LEAST_ACCEPTED:.0%}",
        passed=share >= LEAST_ACCEPTED,
        raw={
            "plain": len(plain),
            "refused": [{"seed": one.seed, "odd": one.odd, "refusal": one.refusal} for one in refused],
            "odd": dict(Counter(odd for one in verdicts for odd in one.odd).most_common()),
        },
    )  # fmt: skip


def _refusals(verdicts: Sequence[Verdict]) -> Outcome:
    """Every refusal comes from capture, so before anything is built; it is shown with its reason."""
    refused = [one for one in verdicts if one.refusal]
    odd = [one for one in verdicts if one.may_be_refused]
    return Outcome(
        check="refused before anything was built",
        figure=f"{len(refused)} of {len(verdicts)}; of {len(odd)} with state, random numbers or the like "
        f"{sum(bool(one.refusal) for one in odd)}",
        limit="each with its reason",
        passed=all(one.refusal.strip(": ") for one in refused),
        raw={"reasons": [{"seed": one.seed, "odd": one.odd, "refusal": one.refusal} for one in refused]},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Does a loaded plan answer like its model?")
    parser.add_argument("--models", type=positive, default=MODELS, metavar="N", help=f"random programs ({MODELS})")
    parser.add_argument("--calls", type=positive, default=CALLS, metavar="N", help=f"calls of each ({CALLS})")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument(
        "--workers", type=positive, default=2, metavar="N", help="processes side by side (2); 1 is this very process"
    )
    parser.add_argument(
        "--backends", type=lambda text: tuple(text.split(",")), default=BACKENDS, metavar="NAME,...",
        help=f"{','.join(BACKENDS)}; inductor, which is slow, if it is asked for",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the environment, the counts and what was wrong"
    )
    return parser
