import pytest

from autotune.errors import ModelError
from autotune.execute.child import explain


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError("it is full"), "out_of_memory", "host memory: MemoryError: it is full"),
        (RuntimeError("std::bad_alloc"), "error", "RuntimeError: std::bad_alloc"),
        (ValueError("CUDA out of memory"), "error", "ValueError: CUDA out of memory"),
        (SystemExit(2), "error", "SystemExit: 2"),
    ],
)
def test_what_a_step_raised_is_told_by_its_kind(error, kind, words):
    assert explain(error) == {"kind": kind, "detail": words}


def test_the_projects_own_errors_are_told_in_their_parts():
    error = ModelError("it cannot be made", found="nothing", expected="a module", run="autotune doctor")
    assert explain(error)["raised"] == ["ModelError", "it cannot be made", "nothing", "a module", "autotune doctor"]
    error.__cause__ = MemoryError()
    assert explain(error)["kind"] == "out_of_memory" and explain(error)["raised"][0] == "ModelError"
