"""The problems of one tuning, with all that times them and records their trials: KernelBench."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from autotune import registry
from autotune.backend import KernelKind
from autotune.database.store import Store
from autotune.errors import AutotuneError, RequestError, StudyInterruptedError, StudyTakenOverError, WorkError
from autotune.kernel import KernelSpace
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.rates import DeviceRates
from autotune.kernels.search import KernelSearch
from autotune.kernels.timing import needed_bytes
from autotune.kernels.work import TunedWork, WithoutKinds
from autotune.progress import Progress
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

PASSING = ("out_of_memory",)
"""Kinds of failure that may not be the kernel's: they are not stored, so the kernel is tried again."""


class KernelBench:
    """Times candidates of problems, and records every trial. ``missing`` has the error of each kind without a compiler.

    ``clock`` counts seconds. Not thread-safe.
    """

    def __init__(
        self, works: Sequence[TunedWork], *, device: Device, store: Store, executor: KernelExecutor,
        progress: Progress, stop: threading.Event, seed: int, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.works, self.device, self.executor = works, device, executor
        self.kinds = {kind.name: kind for kind in registry.kernel_tuner(executor.backend).kernel_kinds}
        self._store, self._progress, self._stop, self._seed, self._clock = store, progress, stop, seed, clock
        self.missing: dict[str, AutotuneError] = {}
        self.rates: DeviceRates | None = None

    def kind(self, name: str) -> KernelKind:
        """Return a kind of kernels; one that the backend does not describe has no particular trait."""
        return self.kinds.get(name) or KernelKind(name=name)

    @property
    def worked_s(self) -> float:
        """The seconds without those in which timing waits for another process to leave the device."""
        return self.lasted_s - self.executor.queued_s

    @property
    def lasted_s(self) -> float:
        """The seconds without those in which timing waits for processes of others, which count for no limit."""
        return self._clock() - self.executor.waited_s

    @property
    def stopped(self) -> bool:
        """Whether the tuning was stopped from outside."""
        return self._stop.is_set() or self.executor.server.closed

    def say(self, text: str) -> None:
        """Send a message to the user."""
        self._progress.event("message", text=text)

    def read_rates(self) -> None:
        """Read the device's rates, if they are known."""
        self.rates = self.executor.rates(self.say)

    def know(self, work: TunedWork) -> None:
        """List a problem's candidates and read their trials from the database."""
        needed = needed_bytes(work.problem)
        try:
            if self.device.memory_bytes and needed > self.device.memory_bytes:
                raise RequestError(
                    f"kernels for {work.problem.canonical} on {self.device.name}",
                    found=f"{needed / 2**30:,.1f} GiB to check them with",
                    expected=f"a problem that fits {self.device.memory_bytes / 2**30:,.1f} GiB of memory",
                )
            work.space = registry.kernels(self.executor.backend).space(self.device, work.problem)
        except RequestError as error:
            self.fail(work, error)
            return
        for trial in self._store.kernels.of(work.problem, self.device.device_class, *self.executor.toolchains.digests):
            work.trials.setdefault(trial.configuration, trial)

    def leave_out(self, kind: str, error: AutotuneError) -> None:
        """Continue without a kind whose kernels cannot be compiled here, except for those that are; say so once."""
        if kind not in self.missing:
            self.missing[kind] = error
            self.say(no_more(kind, error))

    def search(self, work: TunedWork) -> KernelSearch:
        """Return a problem's search, created on first use, and again if a kind's compiler turns out to be missing."""
        assert work.space is not None  # a problem without candidates is not tuned
        if work.search is None or work.without != self.missing.keys():
            work.without = frozenset(self.missing)
            space: KernelSpace = work.space
            if self.missing:
                space = WithoutKinds(space, work.without, frozenset(work.ready))
            work.search = KernelSearch(
                space, work.problem, rates=self.rates, seed=self._seed,
                earlier=[trial for other in self.works for trial in other.trials.values()],
                hints=self._store.kernels.hints(
                    work.problem, self.device.device_class, *self.executor.toolchains.digests
                ),
            )  # fmt: skip
        return work.search

    def time(self, work: TunedWork, candidates: Sequence[Configuration]) -> bool:
        """Check and time candidates without a trial; false if that fails for this problem."""
        untried = [candidate for candidate in candidates if candidate not in work.trials]
        if not untried or self.stopped:
            return True
        self._progress.event("kernels_timed", problem=work.problem, count=len(untried))
        try:
            self.executor.time(work.problem, untried, work.best_us, lambda trial: self.record(work, trial))
        except (StudyInterruptedError, StudyTakenOverError):
            raise  # it ends the whole tuning, not one problem
        except WorkError as error:
            self.fail(work, error)
            return False
        return True

    def record(self, work: TunedWork, trial: KernelTrial) -> None:
        """Record one trial, and store it unless its failure may not be the kernel's."""
        build = self.search(work).build_of(trial.configuration)
        if build in work.compile_s:
            trial = replace(trial, made={**trial.made, "compile_s": work.compile_s[build]})
        work.trials[trial.configuration] = trial
        work.measured += 1
        if trial.failure is None or trial.failure.kind not in PASSING:
            self._store.kernels.add([trial])
        for other in self.works:
            if other.search is not None:
                other.search.tell([trial])
        self._progress.event("kernel_tried", trial=trial, best_us=work.best_us)

    def finals(self, problems: Iterable[GemmProblem]) -> Mapping[str, Sequence[KernelFinal]]:
        """Return the stored finals of problems, the newest first, by the digest of their problem."""
        return self._store.kernel_finals.of(problems, self.device.device_class)

    def record_final(self, final: KernelFinal) -> None:
        """Store a final."""
        self._store.kernel_finals.add(final)
        self._progress.event("kernels_compared", final=final)

    def fail(self, work: TunedWork, error: AutotuneError) -> None:
        """End the tuning of one problem."""
        work.trouble = error
        self.say(f"{work.problem.canonical}: {error}")


def no_more(kind: str, error: AutotuneError) -> str:
    """Return the message that a kind is left out."""
    return f"no kernels of kind {kind} but those that are compiled already: {error}"
