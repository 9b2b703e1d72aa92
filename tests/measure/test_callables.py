import asyncio
import logging
import signal
import threading
import time
from collections import OrderedDict, namedtuple
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy
import pytest
import torch

from autotune.errors import ModelError, WorkError
from autotune.measure.callables import (
    Deadline,
    Watched,
    did_device_work,
    guarded,
    raised_on_call,
    require_device_work,
    structure_of,
    work_traced,
)
from autotune.measure.clock import SystemClock
from autotune.measure.kernel_trace import DeviceActivity, KernelTrace
from autotune.measure.throughput import run_lanes
from autotune.testing import FakeClock


@dataclass
class Output:
    logits: object
    hidden: object = None


class Plain:
    def __init__(self, keys):
        self.keys = keys
        self._private = [keys]


Pair = namedtuple("Pair", "a b")


def test_a_structure_is_told_by_path_kind_dtype_and_shape():
    answer = (Output(torch.zeros(1, 10), None), {"mask": [numpy.ones(3, "int64")], "n": 4})
    assert structure_of(answer) == {
        "": "tuple of 2",
        "[0]": "Output of 2",
        "[0].logits": "Tensor float32[1, 10] on cpu",
        "[0].hidden": "NoneType",
        "[1]": "dict of 2",
        "[1]['mask']": "list of 1",
        "[1]['mask'][0]": structure_of(numpy.zeros(3, "int64"))[""],
        "[1]['n']": "int",
    }
    assert structure_of(numpy.zeros((2, 0), "float16"))[""].startswith("ndarray float16[2, 0]")


DIFFERENT = [
    torch.zeros(2, 3),
    torch.zeros(3, 2),
    torch.zeros(2, 3, dtype=torch.float64),
    torch.zeros(2, 3, device="meta"),
    numpy.zeros((2, 3), "float32"),
    (torch.zeros(2, 3),),
    [torch.zeros(2, 3)],
    (torch.zeros(2, 3), torch.zeros(2, 3)),
    {"a": torch.zeros(2, 3)},
    {"b": torch.zeros(2, 3)},
    OrderedDict(a=torch.zeros(2, 3)),
    Pair(torch.zeros(2, 3), None),
    Output(torch.zeros(2, 3)),
    Output(torch.zeros(2, 3), torch.zeros(1)),
    Plain(torch.zeros(2, 3)),
    Plain(torch.zeros(2, 4)),
    None,
    1,
    1.0,
    "text",
]


def test_different_structures_are_told_apart_and_values_do_not_matter():
    described = [tuple(structure_of(answer).items()) for answer in DIFFERENT]
    assert len(set(described)) == len(described)
    assert structure_of({"b": torch.ones(2), "a": 1}) == structure_of({"a": 7, "b": torch.zeros(2)})


def test_an_answer_that_holds_itself_or_a_module_ends():
    loop = [torch.zeros(1)]
    loop.append(loop)
    assert structure_of(loop)["[1]"] == "list that contains itself"
    assert structure_of((torch.nn.Linear(1, 1), torch)) == {"": "tuple of 2", "[0]": "Linear", "[1]": "module"}


async def later():
    return torch.zeros(1)


@pytest.mark.parametrize("lazy", [lambda: (x for x in [1]), lambda: map(abs, [1]), Future, later])
def test_an_answer_whose_work_is_not_done_is_refused(lazy):
    answer = lazy()
    with pytest.raises(WorkError, match=r"answer\[0\] is a .*not done when the call returns"):
        structure_of([answer])
    if asyncio.iscoroutine(answer):
        answer.close()


def changing(*answers):
    rest = iter(answers)
    return lambda *_: next(rest)


def test_a_changed_structure_names_the_call_and_what_changed():
    watched = Watched(changing(*[{"y": torch.zeros(1, 10)}] * 5, {"y": torch.zeros(1, 9)}))
    watched.check(())
    for _ in range(3):
        watched()
    assert torch.equal(watched.check(())["y"], torch.zeros(1, 10))
    with pytest.raises(WorkError, match="call 6 is unlike call 1") as caught:
        watched.check(())
    assert caught.value.found == "answer['y']: Tensor float32[1, 9] on cpu"
    assert caught.value.expected == "answer['y']: Tensor float32[1, 10] on cpu"


def test_a_change_in_many_places_is_told_by_the_first_three():
    watched = Watched(changing([1, 2, 3, 4, 5], ["a", "b", "c", "d"]))
    watched.check(())
    with pytest.raises(WorkError) as caught:
        watched.check(())
    assert caught.value.expected == "answer: list of 5; answer[0]: int; answer[1]: int and 3 more"
    assert caught.value.found == "answer: list of 4; answer[0]: str; answer[1]: str and 3 more"


def test_plain_calls_are_passed_on_and_not_checked():
    seen = []
    watched = Watched(lambda *inputs: seen.append(inputs))
    watched.check((1,))
    watched(2, 3)
    assert seen == [(1,), (2, 3)] and watched.calls == 2
    assert Watched(print).function is print
    with pytest.raises(TypeError):
        Watched(3)


def raising(number, error):
    calls = []

    def function(*_):
        calls.append(1)
        if len(calls) == number:
            raise error
        return 1

    return function


def test_an_error_names_the_phase_and_call_and_keeps_its_cause():
    error = ZeroDivisionError("by zero\nsecond line")
    watched = Watched(raising(9, error))
    watched.check(())
    watched.check(())
    watched.enter("warm-up")
    watched(), watched(), watched()
    watched.enter("sampling")
    watched(), watched()
    watched.check(())
    with pytest.raises(WorkError, match="call 3 of the sampling") as caught:
        watched()
    assert caught.value.__cause__ is error
    assert caught.value.found == "ZeroDivisionError: by zero"


def test_an_error_in_a_check_counts_the_checks():
    watched = Watched(raising(5, KeyError("k")))
    watched.check(())
    watched.enter("sampling")
    watched(), watched(), watched()
    with pytest.raises(WorkError, match="call 2 of the check"):
        watched.check(())
    assert "call 1 of the warm-up" in str(raised_on_call(ValueError(), phase="warm-up", number=1))


def test_own_errors_and_interrupts_pass_through_as_they_are():
    for error in (ModelError("does not fit"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            Watched(raising(1, error))()
        assert caught.value is error


def refuse(*_):
    raise AssertionError("asked")


def test_a_cpu_does_its_work_in_the_call():
    assert did_device_work(refuse, (), "cpu", seen=refuse, traced=refuse)
    require_device_work(refuse, (), "cpu")


@pytest.mark.parametrize(
    ("seen", "traced", "expected"), [(True, None, True), (False, True, True), (False, False, False)]
)
def test_device_work_is_what_the_stream_or_else_the_trace_shows(seen, traced, expected):
    calls = []
    looks = {"seen": lambda *_: seen, "traced": refuse if traced is None else lambda *_: traced}
    assert did_device_work(lambda *inputs: calls.append(inputs), ("x",), "cuda:0", **looks) is expected
    assert calls == [("x",)]


def test_where_nobody_can_tell_the_callable_is_believed_and_that_is_said(caplog):
    assert did_device_work(lambda: None, (), "cuda:1", seen=lambda *_: False, traced=lambda *_: None)
    assert "it is not known" in caplog.text and "cuda:1" in caplog.text


def test_a_callable_without_device_work_is_refused():
    with pytest.raises(WorkError, match="cannot be measured on cuda:0"):
        require_device_work(lambda: None, (), "cuda:0", did_work=lambda *_: False)
    require_device_work(lambda: None, (), "cuda:0", did_work=lambda *_: True)


class FakeGpu:
    """Traces what is launched on it, but for the first kernels of a session, which it loses."""

    def __init__(self, *, loses=0):
        self.launched, self._loses = [], loses

    def launch(self, name):
        self.launched.append(name)

    def mark(self, device):
        self.launch("at::cuda::(anonymous namespace)::spin_kernel(long)")

    def trace(self, function, input_sets, *, calls, device):
        function(*input_sets[0])
        self.launched.clear()
        for _ in range(calls):
            function(*input_sets[0])
        seen = self.launched[self._loses :]
        if not seen:
            raise WorkError("no kernel was launched")
        sizes = {"grid": (1, 1, 1), "block": (1, 1, 1)}
        kernels = tuple(
            DeviceActivity(name=name, start_us=at, end_us=at + 0.5, **sizes) for at, name in enumerate(seen)
        )
        return KernelTrace(activities=kernels, calls=calls)


def test_a_trace_tells_work_from_the_marks_around_it():
    gpu = FakeGpu()
    look = {"trace": gpu.trace, "mark": gpu.mark}
    assert work_traced(lambda x: gpu.launch("gemm"), (1,), "cuda:0", **look) is True
    assert work_traced(lambda x: None, (1,), "cuda:0", **look) is False
    assert work_traced(lambda x: gpu.mark(""), (1,), "cuda:0", **look) is True


@pytest.mark.parametrize(("loses", "idle"), [(1, False), (4, False), (5, None), (6, None)])
def test_a_trace_that_lost_its_marks_does_not_say_that_nothing_was_done(loses, idle):
    gpu = FakeGpu(loses=loses)
    assert work_traced(lambda: None, (), "cuda:0", trace=gpu.trace, mark=gpu.mark) is idle


def test_a_callable_that_remembers_its_answer_is_found_out():
    gpu = FakeGpu()
    remembering = lru_cache(lambda x: gpu.launch("gemm"))

    def traced(*arguments):
        return work_traced(*arguments, trace=gpu.trace, mark=gpu.mark)

    assert not did_device_work(remembering, (1,), "cuda:0", seen=lambda *_: False, traced=traced)


def test_a_deadline_is_looked_at_between_calls():
    clock = FakeClock()
    deadline = Deadline(clock, 2.0, what="the sampling")
    clock.advance(2000.0)
    deadline.check()
    assert deadline.left_s == 0.0
    clock.advance(500.0)
    with pytest.raises(WorkError, match="the sampling did not end within 2 s") as caught:
        deadline.check()
    assert "2.5 s" in caught.value.found


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_is_positive(timeout_s):
    with pytest.raises(ValueError):
        guarded(print, timeout_s)
    with pytest.raises(ValueError):
        Deadline(FakeClock(), timeout_s)


def hang():
    for _ in range(20_000):
        time.sleep(0.001)


def swallow():
    for _ in range(4):
        with suppress(Exception):
            hang()


def replace():
    try:
        hang()
    except BaseException as error:
        raise RuntimeError("something else") from error


def shrug():
    try:
        hang()
    except BaseException:
        return 1


@pytest.mark.parametrize("hangs", [hang, swallow, replace, shrug])
def test_a_callable_that_hangs_is_interrupted_and_its_stack_told(hangs):
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(WorkError, match=r"the trial did not end within 0\.05 s") as caught:
        guarded(hangs, 0.05, what="the trial")()
    assert "in hang" in caught.value.found
    assert signal.getsignal(signal.SIGALRM) is handler


def test_the_alarm_passes_by_what_handles_ordinary_errors():
    handled = []

    def handling():
        try:
            hang()
        except Exception as error:
            handled.append(error)

    with pytest.raises(WorkError, match="did not end"):
        guarded(handling, 0.05)()
    assert handled == []


def test_a_hang_is_not_taken_for_an_error_of_the_callable():
    with pytest.raises(WorkError, match="did not end"):
        guarded(Watched(hang), 0.05)()


def test_a_lane_that_hangs_is_told_by_its_stack():
    go_on = threading.Event()

    def stuck(*_):
        go_on.wait(20)

    try:
        with pytest.raises(WorkError, match="did not end") as caught:
            guarded(lambda: run_lanes([stuck, stuck], [()], 1, clock=SystemClock()), 0.1)()
        assert "in stuck" in caught.value.found
    finally:
        go_on.set()


def test_what_ends_in_time_is_passed_on():
    assert guarded(lambda a, b: a + b, 60)(1, 2) == 3
    error = KeyError("k")
    with pytest.raises(KeyError) as caught:
        guarded(raising(1, error), 60)()
    assert caught.value is error


def test_a_guard_gives_back_the_alarm_of_the_guard_around_it():
    def outer():
        assert guarded(lambda: 1, 60, what="inner")() == 1
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        guarded(hang, 60, what="inner")()
        ended.append("of its own accord")

    ended = []
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    with pytest.raises(WorkError, match="outer did not end"):
        guarded(outer, 0.2, what="outer")()
    assert ended == []
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (before > 0)


def test_an_inner_guard_that_rings_leaves_the_outer_one_armed():
    def outer():
        with pytest.raises(WorkError, match="inner did not end"):
            guarded(hang, 0.05, what="inner")()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        return "went on"

    assert guarded(outer, 60, what="outer")() == "went on"


def test_in_another_thread_a_late_call_is_told_when_it_returns(caplog):
    clock, outcome = FakeClock(), []

    def run(advance_ms):
        try:
            outcome.append(guarded(lambda: clock.advance(advance_ms), 30.0, clock=clock)())
        except WorkError as error:
            outcome.append(error)

    for advance_ms in (29_000.0, 31_000.0):
        thread = threading.Thread(target=run, args=(advance_ms,))
        thread.start()
        thread.join(20)
    assert outcome[0] is None
    assert isinstance(outcome[1], WorkError) and "31 s" in outcome[1].found


def test_what_no_alarm_can_end_is_logged_with_its_stack(caplog):
    def stubborn():
        while not caplog.records:
            time.sleep(0.01)

    with caplog.at_level(logging.ERROR):
        outcome = []

        def run():
            try:
                guarded(stubborn, 0.01, what="the native call")()
            except WorkError as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
    assert len(outcome) == 1
    assert "the native call hangs" in caplog.text and "in stubborn" in caplog.text


@pytest.mark.gpu
def test_work_on_a_gpu_is_seen_on_any_stream_and_its_absence_too():
    x = torch.randn(256, 256, device="cuda")
    side = torch.cuda.Stream()

    def elsewhere(x):
        with torch.cuda.stream(side):
            y = x @ x
        side.synchronize()
        return y

    remembered = x @ x
    for works in (lambda x: x @ x, lambda x: (x @ x).cpu(), elsewhere, lambda x: x.add_(1)):
        assert did_device_work(works, (x,), "cuda:0")
    for idle in (lambda x: remembered, lambda x: x.shape, lambda x: torch.ones(512, 512) @ torch.ones(512, 512)):
        assert not did_device_work(idle, (x,), "cuda:0")
        with pytest.raises(WorkError):
            require_device_work(idle, (x,), "cuda:0")
