"""Random shapes for tests of kernels by Triton's interpreter."""

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples

SMS_OF_H200 = 132

Shape = TypeVar("Shape")


def in_batches(shapes: st.SearchStrategy[Shape]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with ``drawn``, twelve shapes for one process of the interpreter, and ``sm_count``, also small.

    With few SMs a tile is chosen for small shapes that only large ones get otherwise.
    """
    limits = settings(
        max_examples=examples(10), deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )  # fmt: skip
    drawn: Any = given(drawn=st.lists(shapes, min_size=12, max_size=12), sm_count=st.sampled_from([1, 4, SMS_OF_H200]))
    return lambda test: limits(drawn(test))
