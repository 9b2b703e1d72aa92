import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import DeviceError, WorkError
from autotune.measure.kernel_trace import DeviceActivity, KernelTrace, read_chrome_trace, trace


def event(ts=100.0, dur=10.0, *, cat="kernel", name="gemm", ph="X", **args):
    shape = {"grid": [4, 2, 1], "block": [128, 1, 1]} if cat == "kernel" else {}
    return {"ph": ph, "cat": cat, "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": {**shape, **args}}


REALISTIC = {
    "schemaVersion": 1,
    "deviceProperties": [{"id": 0, "name": "NVIDIA H200", "computeMajor": 9, "computeMinor": 0, "numSms": 132}],
    "displayTimeUnit": "ms",
    "baseTimeNanoseconds": 1790857026000000000,
    "traceName": "trace.json",
    "traceEvents": [
        {"ph": "M", "name": "process_name", "ts": 4522265549770.706, "pid": 0, "tid": 0, "args": {"name": "python"}},
        {
            "ph": "X",
            "cat": "cuda_runtime",
            "name": "cudaGraphLaunch",
            "pid": 700,
            "tid": 700,
            "ts": 4522265549801.120,
            "dur": 9.480,
            "args": {"External id": 5, "cbid": 311, "correlation": 41},
        },
        {"ph": "s", "id": 41, "pid": 700, "tid": 700, "ts": 4522265549801.120, "cat": "ac2g", "name": "ac2g"},
        {
            "ph": "X",
            "cat": "gpu_memcpy",
            "name": "Memcpy DtoD (Device -> Device)",
            "pid": 0,
            "tid": 7,
            "ts": 4522265549812.250,
            "dur": 1.504,
            "args": {"device": 0, "context": 1, "stream": 7, "correlation": 41, "bytes": 602112, "graph id": 3},
        },
        {
            "ph": "X",
            "cat": "kernel",
            "name": "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int> >(int)",
            "pid": 0,
            "tid": 7,
            "ts": 4522265549814.125,
            "dur": 2.250,
            "args": {
                "queued": 0,
                "device": 0,
                "context": 1,
                "stream": 7,
                "correlation": 41,
                "registers per thread": 40,
                "shared memory": 16384,
                "blocks per SM": 0.060606,
                "warps per SM": 0.242424,
                "grid": [8, 1, 1],
                "block": [128, 1, 1],
                "est. achieved occupancy %": 50,
                "graph id": 3,
                "graph node id": 12884901889,
            },
        },
        {
            "ph": "X",
            "cat": "gpu_memset",
            "name": "Memset (Device)",
            "pid": 0,
            "tid": 7,
            "ts": 4522265549817.000,
            "dur": 1.0,
            "args": {"device": 0, "context": 1, "stream": 13, "correlation": 42, "bytes": 4},
        },
        {
            "ph": "X",
            "cat": "Trace",
            "name": "PyTorch Profiler (0)",
            "ts": 4522265549770.7,
            "dur": 900.0,
            "pid": "Spans",
        },
    ],
}


def test_a_realistic_trace_is_read_field_by_field():
    seen = read_chrome_trace(json.loads(json.dumps(REALISTIC)), calls=1, device_index=0, host_window_us=40.0)
    copy, kernel, fill = seen.activities
    assert (copy.kind, kernel.kind, fill.kind) == ("memcpy", "kernel", "memset")
    assert kernel.grid == (8, 1, 1) and kernel.block == (128, 1, 1) and kernel.blocks == 8
    assert (kernel.occupancy, kernel.registers, kernel.shared_bytes, kernel.stream) == (0.5, 40, 16384, 7)
    assert kernel.duration_us == pytest.approx(2.25, abs=1e-3)
    assert copy.blocks == fill.blocks == 0 and copy.occupancy is None and fill.stream == 13


def test_times_are_microseconds_whatever_the_viewer_is_told_to_show():
    for unit in ("ms", "ns"):
        document = {"displayTimeUnit": unit, "traceEvents": [event(5.0, 2.5), event(10.0, 2.0)]}
        seen = read_chrome_trace(document, calls=2)
        assert [(kernel.start_us, kernel.duration_us) for kernel in seen.activities] == [(5.0, 2.5), (10.0, 2.0)]


def test_times_that_cannot_be_microseconds_are_refused():
    nanoseconds = {"traceEvents": [event(5_000.0, 2_500.0), event(10_000.0, 2_000.0)]}
    with pytest.raises(WorkError, match=r"7000\.000 us in 10\.000 us of calls"):
        read_chrome_trace(nanoseconds, calls=1, host_window_us=10.0)


@given(start=st.integers(0, 10**6), spanned=st.integers(2, 2000), host=st.integers(1, 2000))
def test_work_may_span_the_hosts_time_and_a_twentieth_more(start, spanned, host):
    document = {"traceEvents": [event(start, 1.0), event(start + spanned - 1, 1.0)]}
    if spanned * 20 > host * 21:
        with pytest.raises(WorkError, match="cannot be trusted"):
            read_chrome_trace(document, calls=1, host_window_us=host)
    else:
        assert len(read_chrome_trace(document, calls=1, host_window_us=host).activities) == 2


def test_a_trace_without_any_kernel_is_an_error_that_says_so():
    with pytest.raises(WorkError, match="the 3 traced calls launched no kernel") as caught:
        read_chrome_trace({"traceEvents": [event(cat="cpu_op"), event(cat="gpu_memcpy", device=0)]}, calls=3)
    assert "1 copies" in caught.value.found
    with pytest.raises(WorkError, match="launched no kernel"):
        read_chrome_trace({}, calls=1)


def test_work_on_another_device_is_left_out_and_named():
    document = {"traceEvents": [event(name="here", device=0), event(name="there", device=1)]}
    assert [k.name for k in read_chrome_trace(document, calls=1, device_index=1).activities] == ["there"]
    assert len(read_chrome_trace(document, calls=1).activities) == 2
    with pytest.raises(WorkError, match="on GPU 2") as caught:
        read_chrome_trace(document, calls=1, device_index=2)
    assert "devices 0, 1 only" in caught.value.found


@pytest.mark.parametrize(
    "broken",
    [
        {"ts": None},
        {"dur": -1.0},
        {"dur": math.nan},
        {"ts": "soon"},
        {"args": {}},
        {"args": {"grid": [1, 1], "block": [1, 1, 1]}},
        {"args": {"grid": [0, 1, 1], "block": [1, 1, 1]}},
    ],
)
def test_an_event_that_cannot_be_read_is_named(broken):
    with pytest.raises(WorkError, match="'kernel' in a kernel trace cannot be read"):
        read_chrome_trace({"traceEvents": [event(), {**event(), **broken}]}, calls=1)


@pytest.mark.parametrize(("percent", "expected"), [(0, 0.0), (62.5, 0.625), (130, 1.0), (-99, None), ("inf", None)])
def test_occupancy_is_a_fraction_and_unknown_where_the_profiler_could_not_tell(percent, expected):
    document = {"traceEvents": [event(**{"est. achieved occupancy %": percent})]}
    assert read_chrome_trace(document, calls=1).activities[0].occupancy == expected


def test_kernels_without_duration_are_no_trace():
    with pytest.raises(WorkError, match="take no time"):
        read_chrome_trace({"traceEvents": [event(dur=0.0)]}, calls=1)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), min_size=1, max_size=20), st.randoms())
def test_the_order_of_events_does_not_matter(times, random):
    events = [event(float(ts), float(dur)) for ts, dur in times]
    shuffled = random.sample(events, len(events))
    assert read_chrome_trace({"traceEvents": events}, calls=1) == read_chrome_trace({"traceEvents": shuffled}, calls=1)


def test_records_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="ends after it starts"):
        DeviceActivity(name="k", start_us=2.0, end_us=1.0, grid=(1, 1, 1), block=(1, 1, 1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        DeviceActivity(name="k", start_us=1.0, end_us=2.0, grid=(1, 1, 1), block=(1, 1, 1), occupancy=50)
    with pytest.raises(ValueError, match="at least one block"):
        DeviceActivity(name="k", start_us=1.0, end_us=2.0)
    with pytest.raises(ValueError, match="memcpy 'k' has no blocks"):
        DeviceActivity(name="k", start_us=1.0, end_us=2.0, grid=(1, 1, 1), kind="memcpy")
    with pytest.raises(ValueError, match="at least one call"):
        KernelTrace(activities=(), calls=0)


def test_what_torch_exports_from_a_cpu_is_readable_and_holds_no_kernel(tmp_path):
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(8, 8) @ torch.ones(8, 8)
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    document = json.loads(path.read_text())
    assert any(entry.get("cat") == "cpu_op" for entry in document["traceEvents"])
    with pytest.raises(WorkError, match="launched no kernel"):
        read_chrome_trace(document, calls=1)


def test_a_cpu_is_not_traced():
    with pytest.raises(DeviceError, match="cannot be traced on cpu"):
        trace(lambda: None, [()], device="cpu")
    with pytest.raises(ValueError, match="at least one call"):
        trace(lambda: None, [], device="cuda:0")


@pytest.mark.gpu
class TestOnGpu:
    def test_kernels_of_a_product_are_seen_with_their_shape(self):
        import torch

        x = torch.randn(2048, 2048, device="cuda:0")
        seen = trace(lambda a: (a @ a).relu(), [(x,)], calls=3, device="cuda:0")
        kernels = [kernel for kernel in seen.activities if kernel.kind == "kernel"]
        assert seen.calls == 3 and len(kernels) >= 6 and len(kernels) % 3 == 0
        assert all(kernel.occupancy is not None and kernel.registers for kernel in kernels)
        assert all(kernel.duration_us > 0 for kernel in kernels)

    def test_a_kernel_of_known_duration_has_it(self):
        import torch

        cycles = 2_000_000
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(100):  # until the clocks have risen
            torch.cuda._sleep(cycles)
        first.record()
        torch.cuda._sleep(cycles)
        last.record()
        torch.cuda.synchronize()
        seen = trace(lambda: torch.cuda._sleep(cycles), [()], calls=5, device="cuda:0")
        assert len(seen.activities) == 5
        durations_us = sorted(kernel.duration_us for kernel in seen.activities)
        assert durations_us[2] == pytest.approx(first.elapsed_time(last) * 1e3, rel=0.1)

    def test_kernels_of_a_replayed_graph_are_seen(self):
        import torch

        x = torch.randn(512, 512, device="cuda:0")
        x.relu()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x
            for _ in range(5):
                y = y.relu()
        seen = trace(graph.replay, [()], calls=4, device="cuda:0")
        assert sum(kernel.kind == "kernel" for kernel in seen.activities) == 20

    def test_a_callable_without_device_work_is_refused(self):
        with pytest.raises(WorkError, match="launched no kernel"):
            trace(lambda: None, [()], device="cuda:0")
