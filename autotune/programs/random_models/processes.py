"""Programs judged in processes of their own: a library that crashes takes none of the other programs with it."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from autotune.programs.random_models.judge import ProgramResult, judge

Task = tuple[str, tuple[str, ...], int]
"""The seed, the backends and the number of calls."""

DIED = "the process died"


def side_by_side(tasks: Sequence[Task], workers: int, start: Callable[[], None]) -> Iterator[ProgramResult]:
    """Judge tasks in a number of processes, in any order; ``start`` runs first in each of them."""
    left = dict(enumerate(tasks))
    while left:
        with _pool(workers, start) as pool:
            futures = {pool.submit(judge, *task): number for number, task in left.items()}
            for future in as_completed(futures):
                try:
                    result = future.result()
                except BrokenProcessPool:
                    continue
                del left[futures[future]]
                yield result
        # Tasks begin in their order, so the one that killed its process is among the first of those that are left.
        for number in list(left)[: workers + 1]:
            yield _apart(left.pop(number), start)


def _apart(task: Task, start: Callable[[], None]) -> ProgramResult:
    """Judge one task backend by backend, each in a process of its own."""
    seed, backends, calls = task
    result = _alone((seed, (), calls), start)
    if result is None:
        raise RuntimeError(f"program {seed} kills its process as it is captured")
    for backend in () if result.refusal else backends:
        of_backend = _alone((seed, (backend,), calls), start)
        if of_backend is None:
            result.failed[backend] = DIED
            continue
        result = replace(
            result,
            failed={**result.failed, **of_backend.failed},
            rejected={**result.rejected, **of_backend.rejected},
            wrong={**result.wrong, **of_backend.wrong},
            calls={**result.calls, **of_backend.calls},
            noise={**result.noise, **of_backend.noise},
        )
    return result


def _alone(task: Task, start: Callable[[], None]) -> ProgramResult | None:
    with _pool(1, start) as pool:
        try:
            return pool.submit(judge, *task).result()
        except BrokenProcessPool:
            return None


def _pool(workers: int, start: Callable[[], None]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=start)
