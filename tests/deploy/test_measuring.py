"""``autotune.measure``: the same quality of measurement for anything that can be called."""

import subprocess
import sys
import threading
import time

import pytest
import torch

import autotune
from autotune.errors import DeviceError, RequestError, WorkError
from autotune.measure.lock import device_lock
from autotune.measure.statistics import median


def work(size):
    return torch.ones(size, size) @ torch.ones(size, size)


def test_a_call_is_timed_with_its_interval_and_every_sample():
    found = autotune.measure(work, (64,), limit_s=0.5)
    assert found.latency_ms == median(found.measurement.flat_ms)
    low, high = found.interval_ms
    assert 0 < low <= found.latency_ms <= high
    assert found.device.kind == "cpu" and found.percentiles.n == len(found.measurement.flat_ms)
    assert found.measurement.protocol["name"] == "screening" and found.as_dict()["stopped"] == found.stopped
    assert "not available" not in str(found) and "ms" in str(found)


def test_inputs_may_be_named_single_or_several_sets_that_take_turns():
    seen = []

    def call(size, *, scale=1):
        seen.append((size, scale))
        return work(size)

    autotune.measure(call, {"size": 8, "scale": 3}, limit_s=0.2)
    assert set(seen) == {(8, 3)}
    seen.clear()
    autotune.measure(call, 8, limit_s=0.2)
    autotune.measure(lambda *sizes: call(*sizes) is None, [(8,), (16,)], limit_s=0.2)
    assert set(seen) == {(8, 1), (16, 1)}


@pytest.mark.parametrize(
    ("function", "inputs", "says"),
    [
        (3, (1,), "only something that can be called"),
        (work, [], "at least one set of inputs"),
        (work, [{"size": 1}, (1,)], "one kind"),
        (work, [{"size": 1}, {"n": 1}], "the same names"),
    ],
)
def test_a_wrong_request_is_refused(function, inputs, says):
    with pytest.raises(RequestError, match=says):
        autotune.measure(function, inputs)


def test_a_limit_that_is_no_time_and_a_device_that_is_not_there_are_refused():
    with pytest.raises(RequestError, match="limit_s must be positive"):
        autotune.measure(work, (8,), limit_s=0)
    with pytest.raises(DeviceError, match="cuda:7"):
        autotune.measure(work, (8,), device="cuda:7")


def test_a_callable_that_raises_is_told_with_its_call():
    calls = []

    def fails_later(size):
        calls.append(size)
        if len(calls) == 12:
            raise ValueError("the twelfth")
        return work(size)

    with pytest.raises(WorkError, match=r"raised on call \d+ of the measurement") as caught:
        autotune.measure(fails_later, (8,), limit_s=0.2)
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_answer_that_changes_its_shape_is_refused():
    grown = iter(range(4, 10_000_000))
    with pytest.raises(WorkError, match=r"shape|structure"):
        autotune.measure(lambda: torch.ones(next(grown)), (), limit_s=0.1)


def test_a_callable_that_hangs_is_given_up():
    with pytest.raises(WorkError, match=r"autotune\.measure"):
        autotune.measure(lambda: time.sleep(60), (), limit_s=0.1, timeout_s=0.5)


def test_waiting_for_the_device_counts_for_no_limit_and_is_told(cpu, caplog):
    holder = threading.Event()

    def hold():
        with device_lock(cpu.uuid, True, purpose="resnet50 (finals)"):
            holder.set()
            time.sleep(3.0)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holder.wait(60)
    autotune.measure(work, (8,), limit_s=0.1, timeout_s=2.0)
    thread.join()
    (told,) = [record.getMessage() for record in caplog.records if "waits for" in record.getMessage()]
    assert told.startswith(f"autotune.measure waits for {cpu.name}: ") and "for resnet50 (finals) since" in told


def test_the_package_and_the_function_share_their_name_whatever_is_imported_first():
    script = (
        "import sys, autotune\nassert callable(autotune.measure)\nimport autotune.measure.clock\n"
        "assert callable(autotune.measure) and autotune.measure.clock.SystemClock\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
def test_on_a_gpu_work_must_happen_there():
    x = torch.randn(256, 256, device="cuda")
    found = autotune.measure(torch.matmul, (x, x), limit_s=2.0)
    assert found.device.kind == "cuda" and found.measurement.device_samples_ms
    assert found.measurement.conditions["readings"]["gpu"]["available"]
    with pytest.raises(WorkError, match="does nothing"):
        autotune.measure(lambda one: one, (x,), limit_s=0.5)
