"""A simulated host with one device, on which steps take seconds of simulated time: Machine, MachineStage, MachineStep.

The cores are shared: if steps could use more cores than there are, all of them slow down in the same proportion. The
device has one lock, as :mod:`autotune.measure.lock` describes it: shared or exclusive, and the first to wait is next.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from autotune.execute.session import QUEUED
from autotune.execute.step_result import Span

Returned = TypeVar("Returned", covariant=True)
Hold = Literal["none", "shared", "exclusive"]

SOON_S = 1e-9
"""Two moments that differ by less are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStage:
    """A part of a step: its name as steps report it, its seconds if nothing slows it down, and what it occupies.

    ``cores`` is the number of cores that it can use; a stage with none is never slowed down. A lock that two
    consecutive stages of a step hold alike is held throughout.
    """

    name: str
    seconds: float
    cores: float = 1.0
    hold: Hold = "none"


class MachineStep:
    """A running step. ``spans`` are the stages so far, as a step reports them; ``then`` is called at its end."""

    def __init__(self, machine: "Machine", stages: Sequence[MachineStage], then: Callable[[], None] | None) -> None:
        self._machine, self._stages, self._then = machine, list(stages), then
        self._left_s, self._since_s = 0.0, machine()
        self.begin_s = machine()
        self.end_s: float | None = None
        self.hold: Hold = "none"
        self.spans: list[Span] = []

    @property
    def done(self) -> bool:
        """Return whether it has ended."""
        return self.end_s is not None

    @property
    def stage(self) -> MachineStage:
        """The stage that it is in, or that it waits for the device to begin."""
        return self._stages[0]

    @property
    def builds(self) -> bool:
        """Return whether it builds something, or will do so."""
        return any(stage.name == "build" for stage in self._stages)

    @property
    def waits(self) -> bool:
        """Return whether its next stage needs a lock that it does not hold."""
        return self.stage.hold not in ("none", self.hold)

    def begin_stage(self, hold: Hold) -> None:
        """Begin the next stage with a lock."""
        now_s = self._machine()
        if now_s > self._since_s:
            self.spans.append((QUEUED, self._since_s, now_s))
        self.hold, self._left_s, self._since_s = hold, self.stage.seconds, now_s

    def left_s(self, speed: float) -> float:
        """Return the seconds until the stage ends at a speed."""
        return self._left_s / (speed if self.stage.cores else 1.0)

    def work(self, seconds: float, speed: float) -> None:
        """Work in the stage for some time, and begin the next one if the stage ends."""
        self._left_s -= seconds * (speed if self.stage.cores else 1.0)
        if self._left_s > SOON_S:
            return
        self.spans.append((self.stage.name, self._since_s, self._machine()))
        self._since_s = self._machine()
        del self._stages[0]
        if not self._stages:
            self.hold, self.end_s = "none", self._machine()
            return
        if self.stage.hold != self.hold:
            self.hold = "none"
        if not self.waits:
            self.begin_stage(self.hold)

    @property
    def begun_s(self) -> float:
        """The moment at which its first stage began, after the wait for the device."""
        return next((end for name, _, end in self.spans if name == QUEUED), self.begin_s)

    def insert(self, stage: MachineStage) -> None:
        """Break its last stage off, in which it is, for another one that holds the same lock; then that begins anew."""
        self._leave()
        self._stages.insert(0, stage)
        self.begin_stage(self.hold)

    def end(self) -> None:
        """End it in the stage that it is in."""
        if not self.done:
            self._leave()
            self.hold, self.end_s = "none", self._machine()
            self._machine.remove(self)

    def _leave(self) -> None:
        self.spans.append((self.stage.name, self._since_s, self._machine()))
        self._since_s = self._machine()

    def report(self) -> None:
        """Call what follows its end."""
        if self._then is not None:
            self._then()


class Machine:
    """The simulated host; calling it returns its seconds. Time passes in :meth:`wait` alone.

    ``idle_s`` are the seconds in which no step has the device alone although something is being built, ``crowded_s``
    those in which steps could use more cores than there are.
    """

    def __init__(self, cores: float) -> None:
        self._cores, self._now_s = cores, 0.0
        self._steps: list[MachineStep] = []
        self._queue: list[MachineStep] = []
        self._strands: list[Strand[object]] = []
        self.idle_s = self.crowded_s = 0.0

    def __call__(self) -> float:
        """Return the seconds that have passed."""
        return self._now_s

    def add(self, stages: Sequence[MachineStage], then: Callable[[], None] | None = None) -> MachineStep:
        """Begin a step; stages without seconds are left out, except for the last one."""
        kept = [stage for stage in stages if stage.seconds > 0] or list(stages[-1:])
        step = MachineStep(self, kept, then)
        self._steps.append(step)
        if step.waits:
            self._queue.append(step)
        else:
            step.begin_stage("none")
        return step

    def run(self, stages: Sequence[MachineStage]) -> MachineStep:
        """Begin a step, and wait for its end."""
        step = self.add(stages)
        self.wait(lambda: step.done)
        return step

    def remove(self, step: MachineStep) -> None:
        """Take a step away that has ended itself."""
        self._steps.remove(step)
        step.report()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        if seconds > 0:
            self.run([MachineStage(name="between", seconds=seconds, cores=0.0)])

    def spawn(self, work: Callable[[], Returned]) -> "Strand[Returned]":
        """Begin work that waits by :meth:`wait` too, in a thread that never runs beside another of the simulation."""
        strand = Strand(self, work)
        self._strands.append(strand)
        return strand

    def wait(self, ended: Callable[[], bool]) -> None:
        """Let time pass until a condition holds."""
        strand = next((here for here in self._strands if here.is_current), None)
        if strand is not None:
            strand.pause(ended)
            return
        self._resume()
        while not ended():
            self._pass()
            self._resume()

    def _resume(self) -> None:
        """Let every strand run whose condition holds."""
        while ready := [strand for strand in self._strands if strand.is_ready]:
            for strand in ready:
                strand.resume()
            self._strands = [strand for strand in self._strands if not strand.ended]

    def _pass(self) -> None:
        """Let time pass until a stage ends."""
        self._grant()
        running = [step for step in self._steps if not step.waits]
        if not running:
            raise RuntimeError("the simulation waits for something that no step brings about")
        wanted = sum(step.stage.cores for step in running)
        speed = min(1.0, self._cores / wanted) if wanted else 1.0
        seconds = min(step.left_s(speed) for step in running)
        self._note(wanted, seconds)
        self._now_s += seconds
        for step in running:
            before = step.stage
            step.work(seconds, speed)
            if not step.done and step.stage is not before and step.waits:
                self._queue.append(step)
        ended = [step for step in self._steps if step.done]
        self._steps = [step for step in self._steps if not step.done]
        for step in ended:
            step.report()

    def _grant(self) -> None:
        """Give the device to those that wait, in their order, as far as their locks allow."""
        while self._queue:
            held = {step.hold for step in self._steps} - {"none"}
            wanted = self._queue[0].stage.hold
            if held and not (held == {"shared"} and wanted == "shared"):
                return
            self._queue.pop(0).begin_stage(wanted)

    def _note(self, wanted: float, seconds: float) -> None:
        if any(step.builds for step in self._steps) and all(step.hold != "exclusive" for step in self._steps):
            self.idle_s += seconds
        if wanted > self._cores:
            self.crowded_s += seconds


class Strand(Generic[Returned]):
    """Work in a thread that runs only while the simulation waits for it to pause or to end."""

    def __init__(self, machine: Machine, work: Callable[[], Returned]) -> None:
        self._machine, self._work, self._ready = machine, work, _always
        self._returned: list[Returned] = []
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="autotune-replay")
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Return whether the caller runs in it."""
        return threading.current_thread() is self._thread

    @property
    def is_ready(self) -> bool:
        """Return whether the condition that it waits for holds."""
        return not self.ended and self._ready()

    def pause(self, until: Callable[[], bool]) -> None:
        """Let the simulation continue until a condition holds; called in the strand."""
        self._ready = until
        self._paused.release()
        self._turn.acquire()

    def resume(self) -> None:
        """Let it run until it pauses or ends; raises what it raised."""
        self._turn.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def result(self) -> Returned:
        """Let time pass until it ends, and return what it returned."""
        self._machine.wait(lambda: self.ended)
        return self._returned[0]

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._returned.append(self._work())
        except BaseException as error:  # it is raised again in the thread that resumed the strand
            self._error = error
        finally:
            self.ended = True
            self._paused.release()


def _always() -> bool:
    return True


class MachineDoorbell:
    """Waits in simulated time; whatever happens on the machine rings."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def ring(self) -> None:
        """See :class:`~autotune.study.generation.Doorbell`."""

    def wait(self, until: Callable[[], bool]) -> None:
        """See :class:`~autotune.study.generation.Doorbell`."""
        self._machine.wait(until)
