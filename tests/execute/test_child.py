import pytest

from autotune.errors import ModelError
from autotune.execute.child import explain


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), "out_of_memory", "host memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory", "host memory"),
        (RuntimeError("std::bad_alloc"), "out_of_memory", "host memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory", "device memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", "device memory"),
        (RuntimeError("cudaErrorMemoryAllocation"), "out_of_memory", "device memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "crash", "context on the device"),
        (RuntimeError("CUDA error: unspecified launch failure"), "crash", "context on the device"),
        (RuntimeError("CUDA error: device-side assert triggered"), "crash", "context on the device"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "crash", "context"),
        (ValueError("a shape is wrong"), "error", "ValueError: a shape is wrong"),
        (SystemExit(2), "error", "SystemExit"),
    ],
)
def test_what_a_step_raised_is_told_by_its_kind(error, kind, words):
    explained = explain(error)
    assert explained["kind"] == kind and words in explained["detail"]


def test_the_projects_own_errors_are_told_in_their_parts():
    error = ModelError("it cannot be made", found="nothing", expected="a module", run="autotune doctor")
    assert explain(error)["raised"] == ["ModelError", "it cannot be made", "nothing", "a module", "autotune doctor"]
