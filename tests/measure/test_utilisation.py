import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.kernel_trace import DeviceActivity, KernelTrace
from autotune.measure.statistics import interval_rank
from autotune.measure.utilisation import (
    LONGEST_NAME,
    TRACED_CALLS,
    UNTRACED_CALLS,
    gpu_utilisation,
    heaviest,
    kernels_per_call,
    measured_utilisation,
    occupancy,
    short_name,
    sm_efficiency,
    untraced_call_ms,
    utilisation,
)
from autotune.records.device import Device
from autotune.testing import FakeCall, FakeClock

SMS = 132
CALL_MS = 0.040


def kernel(start, end, blocks=SMS, occupancy=None, *, name="k", kind="kernel"):
    shape = {"grid": (blocks, 1, 1), "block": (128, 1, 1)} if kind == "kernel" else {}
    return DeviceActivity(name=name, start_us=float(start), end_us=float(end), occupancy=occupancy, kind=kind, **shape)


def traced(*kernels, calls=1):
    return KernelTrace(activities=tuple(kernels), calls=calls)


def figures_of(*kernels, call_ms=CALL_MS, sm_count=SMS, calls=1):
    return utilisation(traced(*kernels, calls=calls), call_ms=call_ms, sm_count=sm_count)


@st.composite
def kernels(draw, kinds=("kernel",)):
    start = draw(st.integers(-5, 44))
    known = draw(st.none() | st.floats(0, 1))
    blocks = draw(st.integers(1, 2 * SMS))
    return kernel(start, start + draw(st.integers(0, 20)), blocks, known, kind=draw(st.sampled_from(kinds)))


many = st.lists(kernels(), max_size=12)
anything = st.lists(kernels(kinds=("kernel", "memcpy", "memset")), max_size=12)
calls_us = st.integers(1, 100)


def by_slices(kernels):
    """Both integrals in microseconds, one after the other; exact because all times are whole microseconds."""
    running = [
        [k.blocks for k in kernels if k.kind == "kernel" and k.start_us <= at and at + 1 <= k.end_us]
        for at in range(-5, 64)
    ]
    busy_us = sum(bool(blocks) for blocks in running)
    return busy_us, math.fsum(min(1.0, sum(blocks) / SMS) for blocks in running)


def shifted(kernels, by):
    return [kernel(k.start_us + by, k.end_us + by, k.blocks, k.occupancy) for k in kernels]


@given(anything, calls_us, st.integers(1, 5))
def test_the_sweep_agrees_with_slices_of_a_microsecond(kernels, call_us, calls):
    busy_us, used_us = by_slices(kernels)
    figures = figures_of(*kernels, call_ms=call_us / 1e3, calls=calls)
    assert figures.gpu_utilisation == pytest.approx(min(1.0, busy_us / (calls * call_us)), abs=1e-12)
    assert figures.sm_efficiency == pytest.approx(min(1.0, used_us / (calls * call_us)), abs=1e-12)
    assert figures.busy_ms_per_call == pytest.approx(busy_us / 1e3 / calls, abs=1e-12)


@given(
    st.lists(
        st.tuples(st.floats(-10, 60), st.floats(0, 30), st.integers(1, 5000), st.none() | st.floats(0, 1)), max_size=12
    ),
    st.integers(1, 200),
    st.floats(1e-6, 1e6),
)
def test_bounds(raw, sm_count, call_ms):
    kernels = [kernel(start, start + length, blocks, known) for start, length, blocks, known in raw]
    figures = figures_of(*kernels, sm_count=sm_count, call_ms=call_ms)
    assert 0 <= figures.sm_efficiency <= figures.gpu_utilisation <= 1
    assert figures.occupancy is None or 0 <= figures.occupancy <= 1


@given(many, st.integers(-1000, 1000))
def test_a_shift_in_time_changes_nothing(kernels, by):
    assert figures_of(*shifted(kernels, by)) == figures_of(*kernels)


@given(many, many, st.integers(0, 1000))
def test_a_longer_pause_between_kernels_changes_nothing(before, after, pause):
    soon, late = shifted(after, 100), shifted(after, 100 + pause)
    assert figures_of(*before, *late) == figures_of(*before, *soon)


@given(many, st.randoms())
def test_order_does_not_matter(kernels, random):
    assert figures_of(*random.sample(kernels, len(kernels))) == figures_of(*kernels)


@given(many.filter(bool), st.integers(0, 20))
def test_splitting_a_kernel_in_two_changes_no_integral(kernels, cut):
    first, *rest = kernels
    middle = min(first.start_us + cut, first.end_us)
    halves = [
        kernel(first.start_us, middle, first.blocks, first.occupancy),
        kernel(middle, first.end_us, first.blocks, first.occupancy),
    ]
    whole, split = figures_of(*kernels), figures_of(*halves, *rest)
    assert split.gpu_utilisation == pytest.approx(whole.gpu_utilisation, abs=1e-12)
    assert split.sm_efficiency == pytest.approx(whole.sm_efficiency, abs=1e-12)
    assert split.occupancy == (None if whole.occupancy is None else pytest.approx(whole.occupancy, abs=1e-12))


def test_figures_of_a_trace_worked_out_by_hand():
    figures = figures_of(
        kernel(0, 10, 66, 0.5, name="half"),
        kernel(5, 10, 33, 0.25, name="quarter"),  # beside the first: 99 of 132 SMs
        kernel(520, 530, 1000, None, name="full"),
        kernel(530, 535, kind="memcpy", name="Memcpy HtoD (Pinned -> Device)"),
        call_ms=0.020,
        sm_count=132,
        calls=2,
    )
    assert figures.gpu_utilisation == pytest.approx(20 / 40)
    assert figures.sm_efficiency == pytest.approx((5 * 0.5 + 5 * 0.75 + 10 * 1.0) / 40)
    assert figures.occupancy == pytest.approx((10 * 0.5 + 5 * 0.25) / 15)
    assert (figures.kernels_per_call, figures.copies_per_call) == (1.5, 0.5)
    assert figures.busy_ms_per_call == pytest.approx(0.010)
    assert (figures.call_ms, figures.calls) == (0.020, 2)
    assert [(heavy.name, heavy.per_call) for heavy in figures.heaviest] == [
        ("full", 0.5),
        ("half", 0.5),
        ("Memcpy HtoD", 0.5),
        ("quarter", 0.5),
    ]
    assert figures.heaviest[0].ms_per_call == pytest.approx(0.005)
    assert sum(heavy.share for heavy in figures.heaviest) == pytest.approx(1)


def test_kernels_that_run_longer_traced_fill_the_call():
    figures = figures_of(kernel(0, 41), kernel(90, 131, SMS // 2), calls=2)
    assert figures.gpu_utilisation == 1
    assert figures.sm_efficiency == pytest.approx(41 * 1.5 / 80)
    assert figures.busy_ms_per_call == pytest.approx(0.041)


def test_a_record_survives_json():
    figures = figures_of(kernel(0, 10, occupancy=0.5)).as_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["heaviest"][0]["share"] == 1


def test_no_kernel_and_unknown_occupancy():
    figures = figures_of(kernel(0, 5, kind="memset"))
    assert (figures.gpu_utilisation, figures.sm_efficiency, figures.occupancy) == (0, 0, None)
    assert occupancy(traced(kernel(3, 3, occupancy=0.5))) is None
    assert heaviest(traced()) == ()
    assert kernels_per_call(traced(kernel(0, 1), kernel(1, 2), calls=4)) == 0.5


def test_heaviest_keeps_the_ten_heaviest():
    names = [f"kernel_{number:02}" for number in range(15)]
    seen = traced(*(kernel(0, number + 1, name=name) for number, name in enumerate(names)))
    assert [heavy.name for heavy in heaviest(seen)] == names[:-11:-1]
    assert [heavy.name for heavy in heaviest(seen, 2)] == ["kernel_14", "kernel_13"]
    assert sum(heavy.share for heavy in heaviest(seen)) < 1


def test_a_gpu_has_sms():
    with pytest.raises(ValueError, match="at least one SM"):
        sm_efficiency(traced(kernel(0, 1)), call_ms=CALL_MS, sm_count=0)


@pytest.mark.parametrize("call_ms", [0.0, -1.0, math.nan, math.inf])
def test_an_untraced_call_takes_time(call_ms):
    with pytest.raises(ValueError, match="positive finite time"):
        gpu_utilisation(traced(kernel(0, 1)), call_ms=call_ms)
    with pytest.raises(ValueError, match="positive finite time"):
        sm_efficiency(traced(kernel(0, 1)), call_ms=call_ms, sm_count=SMS)


@given(st.lists(st.floats(1.0, 1000.0), max_size=(UNTRACED_CALLS - 1) // 2), st.randoms())
def test_less_than_half_of_the_calls_can_be_disturbed(disturbed_ms, random):
    clock = FakeClock()
    durations_ms = [*disturbed_ms, *[1.0] * (UNTRACED_CALLS - len(disturbed_ms))]
    call = FakeCall(clock, *random.sample(durations_ms, UNTRACED_CALLS))
    assert untraced_call_ms(call, clock) == pytest.approx(1.0)
    assert len(call.calls) == UNTRACED_CALLS


def test_the_untraced_calls_are_as_many_as_is_said_of_them():
    assert UNTRACED_CALLS % TRACED_CALLS == 0
    assert interval_rank(UNTRACED_CALLS, 0.95) > UNTRACED_CALLS / 4


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("triton_poi_fused_relu_0", "triton_poi_fused_relu_0"),
        ("sm90_xmma_fprop_f16f16_nhwc__5x_cudnn", "sm90_xmma_fprop_f16f16_nhwc__5x_cudnn"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, std::array<char*, 1ul> >"
            "(int, at::native::FillFunctor<int>, std::array<char*, 1ul>)",
            "at::native::vectorized_elementwise_kernel<FillFunctor>",
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)"
            "::{lambda()#3}::operator()() const::{lambda(float)#1}, std::array<char*, 2ul>, 4>(int)",
            "at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>",
        ),
        ("void cutlass::Kernel2<cutlass_80_f16_256x64_nn>(Params)", "cutlass::Kernel2<cutlass_80_f16_256x64_nn>"),
        (
            "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>(int, float)",
            "at::native::vectorized_layer_norm_kernel",
        ),
        ("void at::native::<unnamed>::softmax<__half, (int)7, (bool)0>(T2 *, int)", "at::native::softmax"),
        ("nchwToNhwcKernel<__half, __half, float, (bool)0, (cudnnKernelDataType_t)0>", "nchwToNhwcKernel"),
        ("spin_kernel(long)", "spin_kernel"),
        (
            "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalIN4cute5tupleIJiiiiEEENS1_10collective13Coll",
            "cutlass::device_kernel<GemmUniversal>",
        ),
        ("_ZN2at6native9somethingE", "at::native::something"),
        ("_ZN99short", "_ZN99short"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD"),
        ("", "unnamed"),
    ],
)
def test_names_are_shortened_but_still_tell(name, short):
    assert short_name(name) == short


@given(st.text() | st.text(alphabet="ab<>(),:{} 1*") | st.text(alphabet="INS_0123ab").map("_ZN{}".format))
def test_any_name_has_a_short_one(name):
    assert 0 < len(short_name(name)) <= LONGEST_NAME


def test_a_cpu_has_no_utilisation():
    cpu = Device(kind="cpu", name="cpu", uuid="x")
    call = FakeCall(FakeClock(), 1.0)
    found = measured_utilisation({"a": call}, [((),)], cpu)
    assert found == {"a": {"available": False, "reason": "a CPU runs no kernels"}}
    assert call.prepared == 0 and call.calls == []


class Product:
    """A finalist that multiplies a matrix by itself, and tells when it is prepared."""

    def __init__(self, name, size, prepared):
        import torch

        self._name, self._prepared = name, prepared
        self._matrix = torch.randn(size, size, device="cuda:0")

    def prepare(self):
        self._prepared.append(self._name)

    def __call__(self):
        return self._matrix @ self._matrix


@pytest.mark.gpu
class TestOnGpu:
    @pytest.fixture
    def gpu(self):
        import torch

        properties = torch.cuda.get_device_properties(0)
        return Device(
            kind="cuda",
            name=properties.name,
            uuid=f"GPU-{properties.uuid}",
            capability=(properties.major, properties.minor),
        )

    def test_a_large_product_keeps_a_gpu_busy_and_a_tiny_one_does_not(self, gpu):
        import torch

        prepared = []
        finalists = {name: Product(name, size, prepared) for name, size in (("large", 8192), ("tiny", 16))}
        found = measured_utilisation(finalists, [()], gpu, seconds=0.5)
        assert json.loads(json.dumps(found)) == found
        assert prepared == ["large", "tiny", "large", "tiny"]  # none is traced before all are timed
        busy, idle = found["large"]["trace"], found["tiny"]["trace"]
        assert busy["sm_count"] == torch.cuda.get_device_properties(0).multi_processor_count
        assert busy["kernels_per_call"] >= 1 and idle["kernels_per_call"] >= 1
        assert busy["gpu_utilisation"] > 0.7 > idle["gpu_utilisation"]
        assert busy["sm_efficiency"] > 0.7 and idle["sm_efficiency"] < 0.1
        if found["large"]["gpm"]["available"]:
            assert found["large"]["gpm"]["sm_util"] > found["tiny"]["gpm"]["sm_util"]
            assert found["large"]["gpm"]["calls"] > 1

    def test_a_finalist_without_kernels_has_no_trace_and_spoils_no_other(self, gpu):
        found = measured_utilisation(
            {"idle": FakeCall(FakeClock(), 1.0), "tiny": Product("tiny", 16, [])}, [()], gpu, seconds=0.1
        )
        assert found["idle"]["trace"]["available"] is False and "no kernel" in found["idle"]["trace"]["reason"]
        assert found["tiny"]["trace"]["available"] is True
