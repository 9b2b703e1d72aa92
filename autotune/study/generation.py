"""Trials that are begun together, built and timed beside each other: Generation, Doorbell, ThreadDoorbell."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from autotune.kernel import KnownKernels
from autotune.records.configuration import Configuration
from autotune.records.trial import Trial
from autotune.study.built_trial import BuiltTrial, with_kernels

log = logging.getLogger(__name__)

Kernels = Mapping[Configuration, KnownKernels | None]
"""The tuned kernels of each build; ``None`` for one that wants none."""

Value = TypeVar("Value", covariant=True)
Returned = TypeVar("Returned")


class Pending(Protocol[Value]):
    """Work in the background."""

    def result(self) -> Value:
        """Wait for its end; return what it returned, or raise what it raised."""
        ...


class Background(Protocol):
    """Begins work beside that of the caller."""

    def __call__(self, work: Callable[[], Returned]) -> Pending[Returned]:
        """Begin it."""
        ...


class Doorbell(Protocol):
    """Lets one thread wait for what others bring about."""

    def ring(self) -> None:
        """Let the waiting thread look again."""
        ...

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is looked at once, and then after each ring."""
        ...


class ThreadDoorbell:
    """A doorbell between threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def ring(self) -> None:
        """See :meth:`Doorbell.ring`."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, until: Callable[[], bool]) -> None:
        """See :meth:`Doorbell.wait`."""
        with self._condition:
            self._condition.wait_for(until)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSteps:
    """The steps of a generation on its trials.

    ``look`` finds the kernel problems of configurations, and ``claim`` makes trials of those that have no result yet.
    ``tune`` tunes the kernels of trials; as long as its second argument returns true, models are built beside it.
    ``build`` builds trials together, with their kernels, and hands over each as soon as it is built, in any thread.
    ``in_time`` returns whether some of the budget is left for the builds with tuned kernels; otherwise they are
    withdrawn. Such a build takes a fraction of the first one of its model. ``time`` checks and times a built trial,
    alone on the device, and returns whether it passed in reduced precision. A candidate that ``can_wait`` hardly wins
    if one in reduced precision passes. ``claim``, ``in_time``, ``withdraw``, ``time`` and ``can_wait`` are called by
    the thread of the search alone.
    """

    look: Callable[[Sequence[Configuration]], None]
    claim: Callable[[Sequence[Configuration]], list[Trial]]
    tune: Callable[[Sequence[Trial], Callable[[], bool]], Kernels]
    build: Callable[[Sequence[Trial], Kernels, Callable[[BuiltTrial], None]], None]
    in_time: Callable[[], bool]
    withdraw: Callable[[Trial], None]
    time: Callable[[BuiltTrial], bool]
    can_wait: Callable[[Configuration], bool]


class _Work(Generic[Value]):
    """Work in the background that rings when it has ``ended``."""

    def __init__(self, step: Callable[[], Value], background: Background, bell: Doorbell) -> None:
        self.ended = False

        def run() -> Value:
            try:
                return step()
            finally:
                self.ended = True
                bell.ring()

        self._pending = background(run)

    def result(self) -> Value:
        """Wait for its end; return what the step returned, or raise what it raised."""
        return self._pending.result()


class Generation:
    """Builds candidates, tunes the kernels of those that want tuned ones, and times each as soon as it may be timed.

    The ``first`` candidates are built at once, and beside them the kernels of the ``second`` are tuned; then these are
    built. Whatever is built is timed as long as others are built or tuned, if these ``overlap``: tuning and timing take
    turns on the device, and a build holds it only while it computes there. Candidates that can wait are timed when no
    kernel is tuned: the device would be idle, or it is their turn at last. Without overlap nothing is timed or tuned
    while models are built, and nothing is tuned before the first are timed.
    """

    def __init__(
        self, steps: GenerationSteps, first: Sequence[Configuration], second: Sequence[Configuration], *, overlap: bool,
        stop: threading.Event, background: Background, doorbell: Doorbell, abort: Callable[[], None],
    ) -> None:  # fmt: skip
        """``abort`` ends the steps that run, after an error in another one."""
        self._steps, self._first, self._second, self._overlap, self._stop = steps, first, second, overlap, stop
        self._background, self._bell, self._abort = background, doorbell, abort
        self._ready: list[BuiltTrial] = []
        self._building: list[_Work[None]] = []
        self._looking: _Work[None] | None = None
        self._tuning: _Work[Kernels] | None = None
        self._using: list[Trial] = []
        self._prepared, self._passed = not second, False
        self.claimed: list[Trial] = []

    def run(self) -> None:
        """Run until every trial has been timed, or the study is stopped; nothing of it runs afterwards.

        ``claimed`` are the trials that it has claimed. Raises what a step raised, once the others were ended.
        """
        try:
            self._begin_build(self._claim(self._first), {})
            while not self._stop.is_set():
                self._collect()
                turn = self._chosen()
                if turn is not None:
                    self._ready.remove(turn)
                    self._passed = self._steps.time(turn) or self._passed
                elif self._running:
                    self._bell.wait(self._has_news)
                elif self._prepared and not self._ready:
                    return
        except BaseException:
            self._abort()
            self._wait_for_all(suppress=True)
            raise
        self._wait_for_all(suppress=False)

    @property
    def _running(self) -> list["_Work[object]"]:
        others = [work for work in (self._looking, self._tuning) if work is not None]
        return [*self._building, *others]

    def _has_news(self) -> bool:
        return self._stop.is_set() or any(work.ended for work in self._running) or self._chosen() is not None

    def _claim(self, configurations: Sequence[Configuration]) -> list[Trial]:
        claimed = self._steps.claim(configurations)
        self.claimed += claimed
        return claimed

    def _collect(self) -> None:
        """Take the results of what has ended, and begin what follows from them."""
        for build in [work for work in self._building if work.ended]:
            self._building.remove(build)
            build.result()
        if self._looking is not None and self._looking.ended:
            looking, self._looking = self._looking, None
            looking.result()
            self._using = self._claim(self._second)
            self._tuning = self._begin(lambda: self._steps.tune(self._using, lambda: bool(self._building)))
        if self._tuning is not None and self._tuning.ended:
            tuning, self._tuning, self._prepared = self._tuning, None, True
            self._build_tuned(tuning.result())
        if not self._prepared and self._looking is None and self._tuning is None and self._may_tune:
            self._looking = self._begin(lambda: self._steps.look(self._second))

    @property
    def _may_tune(self) -> bool:
        return self._overlap or not (self._building or self._ready)

    def _build_tuned(self, kernels: Kernels) -> None:
        if self._steps.in_time():
            self._begin_build([with_kernels(trial, kernels[trial.configuration]) for trial in self._using], kernels)
            return
        for trial in self._using:
            self._steps.withdraw(trial)

    def _chosen(self) -> BuiltTrial | None:
        """Return the trial that is timed next; ``None`` if none may be timed now."""
        ready = list(self._ready)  # other threads append to it
        if not ready or (self._building and not self._overlap):
            return None
        soon = next((turn for turn in ready if not self._steps.can_wait(turn.trial.configuration)), None)
        if soon is not None:
            return soon
        is_tuning = self._looking is not None or self._tuning is not None
        waits = is_tuning and (self._passed or bool(self._building))  # one that is being built may pass
        return None if waits else ready[0]

    # Background

    def _begin_build(self, trials: Sequence[Trial], kernels: Kernels) -> None:
        def then(turn: BuiltTrial) -> None:
            self._ready.append(turn)
            self._bell.ring()

        if trials:
            self._building.append(self._begin(lambda: self._steps.build(trials, kernels, then)))

    def _begin(self, step: Callable[[], Returned]) -> _Work[Returned]:
        return _Work(step, self._background, self._bell)

    def _wait_for_all(self, *, suppress: bool) -> None:
        """Wait for what runs; raise what it raised, or log that if another error is being raised."""
        running, self._building, self._looking, self._tuning = self._running, [], None, None
        errors: list[Exception] = []
        for work in running:
            try:
                work.result()
            except Exception as error:
                errors.append(error)
        for other in errors if suppress else errors[1:]:
            log.warning("another step failed as well: %s", other)
        if errors and not suppress:
            raise errors[0]
