"""The tuning of the kernels of a model; builds are compiled while other kernels are timed: tune_kernels."""

import contextlib
import math
import threading
from collections.abc import Callable, Mapping

from autotune import registry
from autotune.database.store import Store
from autotune.errors import SpaceError
from autotune.execute.server import WorkerServer
from autotune.kernel import KernelToolchains
from autotune.kernels.bench import KernelBench, no_more
from autotune.kernels.build_stage import BuildStage, compilers
from autotune.kernels.compile_queue import CompileQueue
from autotune.kernels.compiled import writable_kernels_folder
from autotune.kernels.contenders import ranked
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.finals_stage import SHARE as FINALS_SHARE
from autotune.kernels.finals_stage import FinalsStage
from autotune.kernels.host import TuningHost
from autotune.kernels.portfolio import MOST_BUILDS
from autotune.kernels.report import KernelReport, TunedProblem
from autotune.kernels.work import TunedWork
from autotune.progress import Progress, Silent
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.runtime import toolchain as versions


def tune_kernels(
    problems: Mapping[GemmProblem, float],
    device: Device,
    store: Store,
    server: WorkerServer,
    *,
    backend: str,
    budget_s: float,
    limit_s: float = math.inf,
    builds: int = MOST_BUILDS,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    seed: int = 0,
    host: TuningHost | None = None,
    crowded: Callable[[], bool] = lambda: False,
) -> KernelReport:
    """Find fast kernels for problems, each with its number of computations in a call of its model; store every trial.

    A candidate with a trial of the same toolchain and device class is not tried again, whether it was timed, failed,
    crashed or hung. ``builds`` is the limit of a problem over all runs. ``budget_s`` does not include the turns that
    other steps of the same server have on the device meanwhile; with them the search ends after ``limit_s``. The
    libraries' own calls are timed with any budget. At the end the best kernels of each problem are timed against each
    other, within a reserved part of the budget, unless one is clearly the best or the database has such a final.
    ``host`` is another one than this in a simulation. While it is ``crowded``, models are built beside the tuning, and
    fewer cores compile. If ``stop`` is set, the server ends, or single problems fail, it returns the results so far.
    Raises SpaceError if no problem has a candidate, RequestError if ``backend`` has no kernels to tune, WorkError if
    the cache of compiled kernels cannot be written.
    """
    host = host or TuningHost()
    toolchains = KernelToolchains(registry.kernels(backend), versions.current(device))
    begin = KernelExecutor if host.executor is None else host.executor
    executor = begin(server, device, backend, writable_kernels_folder(), toolchains=toolchains, seed=seed)
    works = [TunedWork(problem=problem, weight=weight) for problem, weight in problems.items()]
    bench = KernelBench(
        works, device=device, store=store, executor=executor, progress=progress or Silent(),
        stop=stop or threading.Event(), seed=seed, clock=host.clock,
    )  # fmt: skip
    with contextlib.closing(executor):
        return _tune(bench, budget_s, limit_s, builds, host, crowded)


def _tune(
    bench: KernelBench, budget_s: float, limit_s: float, builds: int, host: TuningHost, crowded: Callable[[], bool]
) -> KernelReport:  # fmt: skip
    begin, worked_s, reserved_s = host.clock(), bench.worked_s, FINALS_SHARE * min(budget_s, limit_s)
    for work in bench.works:
        bench.know(work)
    able = [work for work in bench.works if work.space is not None]
    if not able and bench.works:
        raise bench.works[0].trouble or SpaceError("no kernel problem has a candidate")
    if any(work.space is not None and work.space.builds for work in able):
        bench.read_rates()
    pool = host.pool(compilers(bench.device))
    with CompileQueue(bench.executor, lambda: compilers(bench.device, crowded=crowded()), pool) as queue:
        BuildStage(
            bench, able, queue, budget_s=budget_s, limit_s=limit_s, most_builds=builds, reserved_s=reserved_s
        ).run()
    # On a GPU the search ends with the compilers, which would disturb finals.
    FinalsStage(bench, able).run(reserved_s)
    bench.executor.close()  # the spans of its process are known after its end
    return KernelReport(
        problems=tuple(_tuned(work) for work in bench.works), toolchain=bench.executor.toolchains.digest,
        rates=bench.rates, seconds=host.clock() - begin, worked_s=bench.worked_s - worked_s,
        spans=tuple(bench.executor.spans), stopped=bench.stopped,
        notes=tuple(no_more(kind, error) for kind, error in bench.missing.items()),
    )  # fmt: skip


def _tuned(work: TunedWork) -> TunedProblem:
    trials = work.trials.values()
    failed = sorted(
        (trial for trial in trials if trial.state != "complete"),
        key=lambda trial: (trial.median_us or 0.0, trial.configuration.digest),
    )
    return TunedProblem(
        problem=work.problem, weight=work.weight, trials=(*ranked(trials, work.final), *failed),
        measured=work.measured, compiled=work.compiled, trouble=work.trouble, final=work.final,
    )  # fmt: skip
