import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.device import Device
from autotune.measure.kernels import Kernel, KernelTrace
from autotune.measure.utilisation import (
    LONGEST_NAME,
    gpu_utilisation,
    heaviest,
    kernels_per_call,
    measured_utilisation,
    occupancy,
    short_name,
    sm_efficiency,
    utilisation,
)

WINDOW = (0.0, 40.0)
SMS = 132


def kernel(start, end, blocks=SMS, occupancy=None, *, name="k", kind="kernel"):
    shape = {"grid": (blocks, 1, 1), "block": (128, 1, 1)} if kind == "kernel" else {}
    return Kernel(name=name, start_us=float(start), end_us=float(end), occupancy=occupancy, kind=kind, **shape)


def traced(*kernels, window=WINDOW, calls=1):
    return KernelTrace(kernels=tuple(kernels), window_us=window, calls=calls)


@st.composite
def kernels(draw, kinds=("kernel",)):
    start = draw(st.integers(-5, 44))
    known = draw(st.none() | st.floats(0, 1))
    blocks = draw(st.integers(1, 2 * SMS))
    return kernel(start, start + draw(st.integers(0, 20)), blocks, known, kind=draw(st.sampled_from(kinds)))


many = st.lists(kernels(), max_size=12)
anything = st.lists(kernels(kinds=("kernel", "memcpy", "memset")), max_size=12)


def by_slices(kernels):
    """Both integrals, one microsecond after the other; exact because all times are whole microseconds."""
    running = [
        [k.blocks for k in kernels if k.kind == "kernel" and k.start_us <= at and at + 1 <= k.end_us]
        for at in range(int(WINDOW[0]), int(WINDOW[1]))
    ]
    length = len(running)
    busy = sum(bool(blocks) for blocks in running)
    return busy / length, math.fsum(min(1.0, sum(blocks) / SMS) for blocks in running) / length


@given(anything)
def test_the_sweep_agrees_with_slices_of_a_microsecond(kernels):
    busy, efficiency = by_slices(kernels)
    assert gpu_utilisation(traced(*kernels)) == pytest.approx(busy, abs=1e-12)
    assert sm_efficiency(traced(*kernels), SMS) == pytest.approx(efficiency, abs=1e-12)


@given(
    st.lists(
        st.tuples(st.floats(-10, 60), st.floats(0, 30), st.integers(1, 5000), st.none() | st.floats(0, 1)), max_size=12
    ),
    st.integers(1, 200),
)
def test_bounds(raw, sms):
    given_trace = traced(*(kernel(start, start + length, blocks, known) for start, length, blocks, known in raw))
    assert 0 <= sm_efficiency(given_trace, sms) <= gpu_utilisation(given_trace) <= 1
    typical = occupancy(given_trace)
    assert typical is None or 0 <= typical <= 1


@given(many, st.integers(-1000, 1000))
def test_a_shift_in_time_changes_nothing(kernels, by):
    moved = [kernel(k.start_us + by, k.end_us + by, k.blocks, k.occupancy) for k in kernels]
    before, after = traced(*kernels), traced(*moved, window=(WINDOW[0] + by, WINDOW[1] + by))
    assert utilisation(before, SMS).as_dict() == utilisation(after, SMS).as_dict()


@given(many, st.randoms())
def test_order_does_not_matter(kernels, random):
    shuffled = random.sample(kernels, len(kernels))
    assert utilisation(traced(*kernels), SMS) == utilisation(traced(*shuffled), SMS)


@given(many.filter(bool), st.integers(0, 20))
def test_splitting_a_kernel_in_two_changes_no_integral(kernels, cut):
    first, *rest = kernels
    middle = min(first.start_us + cut, first.end_us)
    halves = [
        kernel(first.start_us, middle, first.blocks, first.occupancy),
        kernel(middle, first.end_us, first.blocks, first.occupancy),
    ]
    whole, split = traced(*kernels), traced(*halves, *rest)
    assert gpu_utilisation(split) == pytest.approx(gpu_utilisation(whole), abs=1e-12)
    assert sm_efficiency(split, SMS) == pytest.approx(sm_efficiency(whole, SMS), abs=1e-12)
    expected = occupancy(whole)
    assert occupancy(split) == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_figures_of_a_trace_worked_out_by_hand():
    seen = traced(
        kernel(0, 10, 66, 0.5, name="half"),
        kernel(5, 10, 33, 0.25, name="quarter"),  # beside the first: 99 of 132 SMs
        kernel(20, 30, 1000, None, name="full"),
        kernel(30, 35, kind="memcpy", name="Memcpy HtoD (Pinned -> Device)"),
        calls=2,
    )
    figures = utilisation(seen, 132)
    assert figures.gpu_utilisation == pytest.approx(20 / 40)
    assert figures.sm_efficiency == pytest.approx((5 * 0.5 + 5 * 0.75 + 10 * 1.0) / 40)
    assert figures.occupancy == pytest.approx((10 * 0.5 + 5 * 0.25) / 15)
    assert (figures.kernels_per_call, figures.copies_per_call) == (1.5, 0.5)
    assert figures.busy_ms_per_call == pytest.approx(0.010)
    assert figures.window_ms_per_call == pytest.approx(0.020)
    assert [(heavy.name, heavy.per_call) for heavy in figures.heaviest] == [
        ("full", 0.5),
        ("half", 0.5),
        ("Memcpy HtoD", 0.5),
        ("quarter", 0.5),
    ]
    assert figures.heaviest[0].ms_per_call == pytest.approx(0.005)
    assert sum(heavy.share for heavy in figures.heaviest) == pytest.approx(1)


def test_a_record_survives_json():
    figures = utilisation(traced(kernel(0, 10, occupancy=0.5)), SMS).as_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["heaviest"][0]["share"] == 1


def test_an_idle_window_and_unknown_occupancy():
    figures = utilisation(traced(kernel(0, 5, kind="memset")), SMS)
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
        sm_efficiency(traced(kernel(0, 1)), 0)


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
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD"),
        ("", "unnamed"),
    ],
)
def test_names_are_shortened_but_still_tell(name, short):
    assert short_name(name) == short


@given(st.text() | st.text(alphabet="ab<>(),:{} 1*"))
def test_any_name_has_a_short_one(name):
    assert 0 < len(short_name(name)) <= LONGEST_NAME


def test_a_cpu_has_no_utilisation():
    cpu = Device(kind="cpu", name="cpu", uuid="x")
    assert measured_utilisation(len, [((),)], cpu) == {"available": False, "reason": "a CPU runs no kernels"}


@pytest.mark.gpu
def test_a_large_product_keeps_a_gpu_busy_and_a_tiny_one_does_not():
    import torch

    properties = torch.cuda.get_device_properties(0)
    gpu = Device(
        kind="cuda",
        name=properties.name,
        uuid=f"GPU-{properties.uuid}",
        capability=(properties.major, properties.minor),
    )
    large, tiny = torch.randn(8192, 8192, device="cuda:0"), torch.randn(16, 16, device="cuda:0")
    busy = measured_utilisation(torch.relu, [(large,)], gpu, seconds=0.5)
    idle = measured_utilisation(torch.relu, [(tiny,)], gpu, seconds=0.5)
    assert json.loads(json.dumps(busy)) == busy
    assert busy["trace"]["sm_count"] == properties.multi_processor_count
    assert busy["trace"]["sm_efficiency"] > 0.3 > idle["trace"]["sm_efficiency"]
    assert busy["trace"]["kernels_per_call"] == 1
    if busy["gpm"]["available"]:
        assert busy["gpm"]["sm_util"] > idle["gpm"]["sm_util"] and busy["gpm"]["calls"] > 1
