"""Programs judged in processes of their own: a library that crashes takes none of the other programs with it."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from autotune.programs.random_models.deployed import Verdict, judge

Task = tuple[str, tuple[str, ...], int]
"""The seed, the backends and the number of calls."""

DIED = "the process died"


def side_by_side(tasks: Sequence[Task], workers: int, start: Callable[[], None]) -> Iterator[Verdict]:
    """Judge tasks in so many processes, in any order; ``start`` runs first in each of them."""
    left = dict(enumerate(tasks))
    while left:
        with _pool(workers, start) as pool:
            futures = {pool.submit(judge, *task): at for at, task in left.items()}
            for future in as_completed(futures):
                try:
                    verdict = future.result()
                except BrokenProcessPool:
                    continue
                del left[futures[future]]
                yield verdict
        # Tasks begin in their order, so the one that killed its process is among the first of those that are left.
        for at in list(left)[: workers + 1]:
            yield _apart(left.pop(at), start)


def _apart(task: Task, start: Callable[[], None]) -> Verdict:
    """Judge one task backend by backend, each in a process of its own."""
    seed, backends, calls = task
    verdict = _alone((seed, (), calls), start)
    if verdict is None:
        raise RuntimeError(f"program {seed} kills its process as it is captured")
    for backend in () if verdict.refusal else backends:
        found = _alone((seed, (backend,), calls), start)
        if found is None:
            verdict.failed[backend] = DIED
            continue
        verdict = replace(
            verdict,
            failed={**verdict.failed, **found.failed},
            rejected={**verdict.rejected, **found.rejected},
            wrong={**verdict.wrong, **found.wrong},
            calls={**verdict.calls, **found.calls},
            noise={**verdict.noise, **found.noise},
        )
    return verdict


def _alone(task: Task, start: Callable[[], None]) -> Verdict | None:
    with _pool(1, start) as pool:
        try:
            return pool.submit(judge, *task).result()
        except BrokenProcessPool:
            return None


def _pool(workers: int, start: Callable[[], None]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=start)
