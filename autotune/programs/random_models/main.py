"""Compares the answers of loaded plans with those of their models: ``python -m autotune.programs.random_models``.

Draws random programs of several operators, some with state, random numbers, shapes that depend on values, inner graphs,
writes into inputs, parts in train mode or unusual answers. Each is captured, built by every backend and loaded, without
a study, and compared with its model over 50 calls on fresh inputs. A program that a backend does not build, or answers
so far off on the held-out inputs that no study would promote it, is counted and breaks no promise. Prints a row for
each promise. Exit code 0 if every answer agrees or its model was refused before anything was built, and at least 95% of
the models without state, random numbers and such shapes are accepted.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from autotune import registry
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.drawn.quiet import quiet, start_worker
from autotune.programs.frame import Run, add_seed, add_workers, parser_of, positive, run_program, say
from autotune.programs.random_models.judge import CALLS, ProgramResult, judge
from autotune.programs.random_models.processes import side_by_side
from autotune.programs.surroundings import environment
from autotune.runtime import discovery

NAME = "random_models"
MODELS = 200
LEAST_ACCEPTED = 0.95
BACKENDS = ("eager", "torchscript", "onnxruntime", "openvino", "native")
REPORT_EVERY = 20
MODELS_AT_ONCE = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _judge_all, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the environment, the counts and the programs with a wrong answer")
    parser.add_argument("--models", type=positive, default=MODELS, metavar="N", help=f"random programs ({MODELS})")
    parser.add_argument("--calls", type=positive, default=CALLS, metavar="N", help=f"calls of each ({CALLS})")
    add_seed(parser)
    add_workers(parser, 2, "; 1 is this very process")
    parser.add_argument(
        "--backends", type=lambda text: tuple(text.split(",")), default=BACKENDS, metavar="NAME,...",
        help=f"{','.join(BACKENDS)}; inductor, which is slow, only if it is named",
    )  # fmt: skip
    return parser


def _judge_all(run: Run) -> int:
    options = run.options
    backends = _available(options.backends)
    around = environment("cpu")
    programs: list[ProgramResult] = []
    for program in _judged(options, backends):
        programs.append(program)
        for backend, wrong in program.wrong.items():
            say(f"program {program.seed}, {backend}: {wrong}")
        if len(programs) % REPORT_EVERY == 0:
            say(f"{len(programs)} of {options.models} models")
    results = [*(_agreement(programs, backend) for backend in backends), _acceptance(programs), _refusals(programs)]
    more = {"models": len(programs), "backends": list(backends)}
    return run.report(rows_of(results), around, quick=options.models < MODELS, seed=options.seed, more=more)


def _available(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the backends that work on this CPU; RequestError for an unknown one."""
    device = discovery.find("cpu")
    return tuple(name for name in names if registry.backend(name).probe(device).works)


def _judged(options: argparse.Namespace, backends: tuple[str, ...]) -> Iterator[ProgramResult]:
    tasks = [(f"{options.seed}/{number}", backends, options.calls) for number in range(options.models)]
    if options.workers > 1:
        # New processes from time to time: torch.export keeps something of every graph that it has seen.
        for first in range(0, len(tasks), MODELS_AT_ONCE):
            yield from side_by_side(tasks[first : first + MODELS_AT_ONCE], options.workers, start_worker)
        return
    with quiet():
        yield from (judge(*task) for task in tasks)


def _agreement(programs: Sequence[ProgramResult], backend: str) -> CheckResult:
    """Count the programs that the backend answers wrongly; one that it does not build breaks no promise."""
    accepted = [program for program in programs if not program.refusal]
    rejected = [program for program in accepted if backend in program.rejected]
    wrong = [program for program in accepted if backend in program.wrong or "capture" in program.wrong]
    if backend == "eager":  # nothing else is left to promote
        wrong += rejected
    failed = Counter(program.failed[backend] for program in accepted if backend in program.failed)
    loaded = [program for program in accepted if backend in program.calls or backend in program.wrong]
    calls = sum(program.calls.get(backend, 0) for program in loaded)
    return CheckResult(
        check=f"answers of {backend}",
        figure=f"{len(loaded)} models, {calls} calls, {len(wrong)} models wrong; "
        f"{failed.total()} not built, {len(rejected)} not promoted",
        limit="every answer agrees",
        passed=not wrong,
        raw={
            "models": len(loaded),
            "calls": calls,
            "wrong": [
                {"seed": program.seed, "odd": program.odd, **program.rejected, **program.wrong} for program in wrong
            ],
            "noise": sum(program.noise.get(backend, 0) for program in loaded),
            "not_promoted": [
                {"seed": program.seed, "operators": program.operators, "reason": program.rejected[backend]}
                for program in rejected
            ],
            "not_built": dict(failed.most_common()),
        },
    )


def _acceptance(programs: Sequence[ProgramResult]) -> CheckResult:
    plain = [program for program in programs if not program.may_be_refused]
    refused = [program for program in plain if program.refusal]
    share = 1 - len(refused) / len(plain) if plain else 1.0
    return CheckResult(
        check="accepted of those without state or random numbers",
        figure=f"{len(plain) - len(refused)} of {len(plain)}, {share:.1%}",
        limit=f"at least {LEAST_ACCEPTED:.0%}",
        passed=share >= LEAST_ACCEPTED,
        raw={
            "plain": len(plain),
            "refused": [_refusal(program) for program in refused],
            "odd": dict(Counter(oddity for program in programs for oddity in program.odd).most_common()),
        },
    )


def _refusals(programs: Sequence[ProgramResult]) -> CheckResult:
    """Show every refusal with its reason; it comes from capture, and so before anything is built."""
    refused = [program for program in programs if program.refusal]
    odd = [program for program in programs if program.may_be_refused]
    return CheckResult(
        check="refused before anything was built",
        figure=f"{len(refused)} of {len(programs)}; of {len(odd)} with state, random numbers or the like "
        f"{sum(bool(program.refusal) for program in odd)}",
        limit="each with its reason",
        passed=all(program.refusal.strip(": ") for program in refused),
        raw={"reasons": [_refusal(program) for program in refused]},
    )


def _refusal(program: ProgramResult) -> dict[str, object]:
    return {"seed": program.seed, "odd": program.odd, "refusal": program.refusal}
