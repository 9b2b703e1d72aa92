"""Checks around a user's callable, so that no measurement of it is silently wrong: Watched, guarded, Deadline."""

import faulthandler
import inspect
import logging
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import FrameType, ModuleType
from typing import TypeVar

from autotune.errors import AutotuneError, WorkError
from autotune.measure import kernel_trace
from autotune.measure.clock import Clock, SystemClock
from autotune.measure.timer import Function

Structure = Mapping[str, str]
"""An answer without its values: path, such as ``['logits']`` or ``[0].mask``, to a description of the part there."""

RING_AGAIN_S = 1.0
"""The alarm repeats after this time, for a callable that swallows it."""

_Answer = TypeVar("_Answer")

_SPIN_CYCLES = 20_000_000  # about 10 ms: longer than the host needs to enqueue most calls
_SPANS = 8
_EVENT_RESOLUTION_MS = 5e-4
_MARK, _MARKED_CALLS = "spin_kernel", 3

log = logging.getLogger(__name__)


def structure_of(answer: object) -> Structure:
    """Describe nested tuples, lists, mappings and objects of arrays by kind, length, dtype, shape and device.

    Private attributes are left out. Raises :class:`WorkError` for an iterator, a coroutine or a future: its work is not
    done when the call returns.
    """
    return dict(_describe(answer, "", ()))


def _describe(value: object, path: str, within: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Yield (path, description) of a value and of its parts; ``within`` are the ids of the values that contain it."""
    if isinstance(value, Iterator | AsyncIterator) or inspect.isawaitable(value) or _is_future(value):
        raise WorkError(
            f"the callable's answer{path} is a {type(value).__name__}, whose work is not done when the call returns",
            expected="a callable that returns arrays",
        )
    name = type(value).__name__
    if id(value) in within:
        yield path, f"{name} that contains itself"
        return
    array = _array(value)
    if array is not None:
        yield path, array
        return
    held = _held(value)
    if held is None:
        yield path, name
        return
    yield path, f"{name} of {len(held)}"
    for step, inner in held:
        yield from _describe(inner, path + step, (*within, id(value)))


def _array(value: object) -> str | None:
    """Describe an array, such as ``Tensor float32[1, 10] on cuda:0``; None for a value without dtype and shape."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or not isinstance(shape, Sequence) or isinstance(value, type):
        return None
    device = getattr(value, "device", None)
    place = "" if device is None else f" on {device}"
    return f"{type(value).__name__} {str(dtype).removeprefix('torch.')}[{', '.join(map(str, shape))}]{place}"


def _held(value: object) -> list[tuple[str, object]] | None:
    """Return the parts of a container or plain object, each with its step of the path; None for a single value."""
    if isinstance(value, Mapping):
        return sorted(((f"[{key!r}]", inner) for key, inner in value.items()), key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [(f"[{index}]", inner) for index, inner in enumerate(value)]
    if isinstance(value, type | ModuleType) or callable(value):
        return None
    if is_dataclass(value):
        return [(f".{entry.name}", getattr(value, entry.name, None)) for entry in fields(value)]
    members = [(f".{name}", inner) for name, inner in sorted(getattr(value, "__dict__", {}).items()) if name[0] != "_"]
    return members or None


def _is_future(value: object) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "add_done_callback", None))


def raised_on_call(error: BaseException, *, phase: str, number: int) -> WorkError:
    """Make the error for a callable that raised on a call, counted from 1, of a phase; raise it ``from`` the error."""
    lines = str(error).splitlines() or [""]
    return WorkError(
        f"the callable raised on call {number} of the {phase}",
        found=f"{type(error).__name__}: {lines[0]}",
        expected="a callable that answers every call of a measurement",
    )


class Watched:
    """A callable whose calls are counted, whose errors name their call, and whose answers keep their structure.

    Calling it costs one Python call more than ``function``, the callable itself: time that one if a call takes
    microseconds. Only :meth:`check` looks at the structure, and it does not belong in the timed region: check each set
    of inputs before the measurement and again after it. A change that is undone in between is not seen.

    An error of a CUDA kernel appears at the next wait for the device, which can be after the call that caused it.
    """

    def __init__(self, function: Function) -> None:
        if not callable(function):
            raise TypeError(f"a callable is needed, found {type(function).__name__}")
        self.function = function
        self.calls = 0
        self._phase, self._calls_before, self._checks = "measurement", 0, 0
        self._expected: Structure | None = None
        self._expected_from = 0

    def __call__(self, *inputs: object) -> object:
        """Pass one call on; an error becomes a :class:`WorkError` that names the call, with the error as its cause."""
        self.calls += 1
        try:
            return self.function(*inputs)
        except AutotuneError:
            raise
        except Exception as error:  # the border to the user's code
            raise raised_on_call(error, phase=self._phase, number=self.calls - self._calls_before) from error

    def enter(self, phase: str) -> None:
        """Name the phase of the calls that follow, such as ``warm-up`` or ``sampling``, and number them from 1."""
        self._phase, self._calls_before = phase, self.calls

    def check(self, inputs: Sequence[object]) -> object:
        """Make one call and return its answer, which must have the structure of the first one that was checked.

        Raises :class:`WorkError` with the number of the call, over all phases, at which the structure changed.
        """
        phase, calls_before = self._phase, self._calls_before
        self._phase, self._calls_before = "check", self.calls - self._checks
        self._checks += 1
        try:
            answer = self(*inputs)
        finally:
            self._phase, self._calls_before = phase, calls_before + 1
        structure = structure_of(answer)
        if self._expected is None:
            self._expected, self._expected_from = structure, self.calls
        elif structure != self._expected:
            before, after = _differences(self._expected, structure)
            raise WorkError(
                f"the callable changed the structure of its answer: call {self.calls} is unlike call "
                f"{self._expected_from}",
                found=after,
                expected=before,
            )
        return answer


def _differences(expected: Structure, found: Structure) -> tuple[str, str]:
    """Describe the first places where two structures differ, as they were and as they are."""
    paths = [path for path in {**expected, **found} if expected.get(path) != found.get(path)]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    before, after = (
        "; ".join(f"answer{path}: {structure.get(path, 'nothing')}" for path in paths[:3]) + more
        for structure in (expected, found)
    )
    return before, after


def work_seen_on_stream(function: Function, inputs: Sequence[object], device: str) -> bool:
    """Return whether the current stream is busy for longer with calls than without; False also if that is not known."""
    import torch

    cuda: ModuleType = torch.cuda
    with cuda.device(torch.device(device)):
        stream = cuda.current_stream()
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))

        def span_ms(call: Callable[[], object]) -> float | None:
            """Return the device time of a call that was enqueued before the spin before it ended; else None."""
            cuda._sleep(_SPIN_CYCLES)
            first.record(stream)
            call()
            last.record(stream)
            hidden = not first.query()
            cuda.synchronize()
            return float(first.elapsed_time(last)) if hidden else None

        idle: list[float] = []
        busy: list[float] = []
        for spans, call in [(idle, lambda: None), (busy, lambda: function(*inputs))]:
            for _ in range(_SPANS):
                span = span_ms(call)
                if span is None:
                    return False
                spans.append(span)
    return min(busy) > max(idle) + _EVENT_RESOLUTION_MS


def _mark(device: str) -> None:
    import torch

    with torch.cuda.device(torch.device(device)):
        torch.cuda._sleep(1000)  # type: ignore[no-untyped-call, unused-ignore]


def work_traced(
    function: Function,
    inputs: Sequence[object],
    device: str,
    *,
    trace: Callable[..., kernel_trace.KernelTrace] = kernel_trace.trace,
    mark: Callable[[str], None] = _mark,
) -> bool | None:
    """Return whether a kernel trace shows work of the calls on the device; None if it shows no kernels at all.

    A profiler can lose the first kernels of a session (pytorch#192021). So each call stands between two marks, which
    are kernels too, and "no work" counts only if both marks of the last call were seen.
    """

    def marked(*arguments: object) -> None:
        mark(device)
        function(*arguments)
        mark(device)

    try:
        activities = trace(marked, [inputs], calls=_MARKED_CALLS, device=device).activities
    except WorkError as error:
        log.debug("no kernel trace: %s", error)
        return None
    marks = sum(_MARK in activity.name for activity in activities)
    if len(activities) > marks or marks > 2 * _MARKED_CALLS:
        return True
    return False if marks >= 2 else None


def did_device_work(
    function: Function,
    inputs: Sequence[object],
    device: str,
    *,
    seen: Callable[[Function, Sequence[object], str], bool] = work_seen_on_stream,
    traced: Callable[[Function, Sequence[object], str], bool | None] = work_traced,
) -> bool:
    """Return whether a call enqueues work on a CUDA device (``cuda:0``); always True on a CPU.

    One call is made first, so that a callable that caches its answers is detected. Then events on the current stream,
    behind a kernel that keeps the stream busy, show device time without the host's. That misses callables that
    synchronise or use a stream of their own, for which a kernel trace decides. Do this after the samples: the profiler
    has slowed down later calls in the same process by 10 to 20% (pytorch#144455). If the profiler cannot see kernels,
    the answer is True, with a warning. Work of another process is not seen; work of another thread counts as the
    callable's.
    """
    if not device.startswith("cuda"):
        return True
    function(*inputs)
    if seen(function, inputs, device):
        return True
    answer = traced(function, inputs, device)
    if answer is None:
        log.warning("it is not known if the callable works on %s: the profiler sees no kernels here", device)
    return answer is not False


def require_device_work(
    function: Function,
    inputs: Sequence[object],
    device: str,
    *,
    did_work: Callable[[Function, Sequence[object], str], bool] = did_device_work,
) -> None:
    """Raise :class:`WorkError` unless a call works on the device; see :func:`did_device_work` for when to ask."""
    if not did_work(function, inputs, device):
        raise WorkError(
            f"a callable cannot be measured on {device}, because it does nothing there",
            found="a call that returned without a kernel or copy on the device",
            expected="a callable that computes its answer there in every call, not elsewhere and not only once",
            run="the same measurement with device='cpu', if the host is meant to do the work",
        )


class Deadline:
    """A time limit that is checked between calls; works in every thread and for every callable that returns."""

    def __init__(self, clock: Clock, timeout_s: float, *, what: str = "the measurement") -> None:
        self._clock, self._what = clock, what
        self._timeout_s = _positive(timeout_s)
        self._started_ns = clock.now_ns()

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative after the limit."""
        return self._timeout_s - (self._clock.now_ns() - self._started_ns) / 1e9

    def check(self) -> None:
        """Raise :class:`WorkError` after the limit."""
        if self.left_s < 0:
            raise _took_too_long(self._what, self._timeout_s, f"{self._timeout_s - self.left_s:.3g} s so far")


def guarded(
    function: Callable[..., _Answer], timeout_s: float, *, what: str = "the measurement", clock: Clock | None = None
) -> Callable[..., _Answer]:
    """Wrap a callable, best a whole measurement, so that it raises :class:`WorkError` if it hangs.

    In the main thread an alarm (SIGALRM) interrupts Python code and calls that signals interrupt, such as sleeping and
    waiting for threads; the error holds the stacks of all threads. Native code is interrupted only when it returns to
    Python: if it never does, nothing in this process can end it, and its stacks are logged once. In any other thread
    there is no alarm: stacks are logged at the limit, and the error is raised when the call returns.

    An alarm that other code has set is restored afterwards; if it is due sooner, only that one rings.
    """
    _positive(timeout_s)

    def call(*arguments: object) -> _Answer:
        deadline = Deadline(clock or SystemClock(), timeout_s, what=what)
        reporter = threading.Timer(
            timeout_s + RING_AGAIN_S, lambda: log.error("%s hangs after %g s:\n%s", what, timeout_s, _stacks())
        )
        reporter.daemon = True
        reporter.start()
        try:
            if threading.current_thread() is threading.main_thread():
                answer = _under_alarm(function, arguments, timeout_s, what)
            else:
                answer = function(*arguments)
        finally:
            reporter.cancel()
        deadline.check()
        return answer

    return call


class _TimeUp(BaseException):
    """The alarm rang. No ``Exception``, so that a callable that handles its own errors lets it pass."""


def _under_alarm(function: Callable[..., _Answer], arguments: Sequence[object], timeout_s: float, what: str) -> _Answer:
    sooner_s, _ = signal.getitimer(signal.ITIMER_REAL)
    if 0 < sooner_s <= timeout_s:
        return function(*arguments)
    time_up, stacks, armed = _TimeUp(), list[str](), [True]

    def ring(number: int, frame: FrameType | None) -> None:
        if armed:
            stacks.append(_stacks())
            raise time_up

    clock = SystemClock()
    started_ns = clock.now_ns()
    handler = signal.signal(signal.SIGALRM, ring)
    others_s, others_interval_s = signal.setitimer(signal.ITIMER_REAL, timeout_s, RING_AGAIN_S)
    answers: list[_Answer] = []
    try:
        try:
            answers.append(function(*arguments))
        finally:
            armed.clear()
    except BaseException as error:
        if not stacks or isinstance(error, KeyboardInterrupt):
            raise
        log.debug("ended by the alarm: %r", error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if others_s:
            left_s = others_s - (clock.now_ns() - started_ns) / 1e9
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-3), others_interval_s)
    if stacks:
        raise _took_too_long(what, timeout_s, "at the limit it was here\n" + stacks[0]) from None
    return answers[0]


def _took_too_long(what: str, timeout_s: float, found: str) -> WorkError:
    return WorkError(
        f"{what} did not end within {timeout_s:g} s",
        found=found,
        expected="a callable that returns, or a longer time limit",
    )


def _stacks() -> str:
    """Return the stacks of all threads, the newest call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().rstrip()


def _positive(timeout_s: float) -> float:
    if not 0 < timeout_s < threading.TIMEOUT_MAX:
        raise ValueError(f"a time limit is a positive number of seconds, found {timeout_s!r}")
    return timeout_s
