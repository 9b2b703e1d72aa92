import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.device import Device
from autotune.search_spaces.precision import precisions, threads


def cpu(*isa: str, cores: int = 2) -> Device:
    return Device(kind="cpu", name="Test CPU", uuid="cpu-test", isa=isa, cores=cores)


def gpu(major: int, minor: int = 0) -> Device:
    return Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(major, minor))


@pytest.mark.parametrize(
    ("isa", "found"),
    [
        ((), ("fp32",)),
        (("avx2", "avx512f", "avx512_vnni"), ("fp32",)),
        (("avx512_bf16",), ("fp32", "bf16")),
        (("amx_bf16",), ("fp32", "bf16")),
        (("avx512_fp16",), ("fp32", "fp16")),
        (("amx_bf16", "amx_fp16"), ("fp32", "bf16", "fp16")),
    ],
)
@pytest.mark.parametrize("backend", ["eager", "torchscript", "inductor", "openvino"])
def test_a_cpu_computes_in_what_its_instructions_allow(
    backend: str, isa: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert precisions(cpu(*isa), backend) == found


def test_onnxruntime_computes_in_fp32_on_every_cpu() -> None:
    assert precisions(cpu("amx_bf16", "amx_fp16", "avx512_bf16"), "onnxruntime") == ("fp32",)


@pytest.mark.parametrize(
    ("capability", "onnxruntime", "eager"),
    [
        ((6, 1), ("fp32",), ("fp32",)),
        ((7, 5), ("fp32", "fp16"), ("fp32", "fp16")),
        ((8, 0), ("fp32", "tf32", "fp16"), ("fp32", "tf32", "bf16", "fp16")),
        ((9, 0), ("fp32", "tf32", "fp16"), ("fp32", "tf32", "bf16", "fp16")),
    ],
)
def test_a_gpu_computes_in_what_its_capability_allows(
    capability: tuple[int, int], onnxruntime: tuple[str, ...], eager: tuple[str, ...]
) -> None:
    assert precisions(gpu(*capability), "onnxruntime") == onnxruntime
    assert precisions(gpu(*capability), "eager") == eager


@given(st.integers(1, 512))
def test_threads_are_all_cores_then_powers_of_two_down_to_one(cores: int) -> None:
    counts = threads(cpu(cores=cores))
    assert counts[0] == cores and counts[-1] == 1
    assert list(counts) == sorted(set(counts), reverse=True)
    assert all(count & (count - 1) == 0 for count in counts[1:])
    assert all(high <= 2 * low for high, low in itertools.pairwise(counts))


def test_a_gpu_has_no_thread_counts() -> None:
    assert threads(gpu(9)) == ()
