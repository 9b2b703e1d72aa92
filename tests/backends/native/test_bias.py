import pytest
import torch

from autotune.backends.native.bias import CastBias
from autotune.records.kernel_problem import GemmProblem

PROBLEM = GemmProblem(m=2, n=4, k=8, bias=True, dtype="fp16")


@pytest.fixture
def cast() -> CastBias:
    return CastBias(PROBLEM, "cpu")


def test_values_follow_the_bias_that_is_given(cast: CastBias) -> None:
    first, second = torch.randn(4), torch.randn(4)
    for bias in (first, second, first):
        assert torch.equal(cast.of(bias), bias.half())
    assert torch.equal(cast.of(None), torch.zeros(4, dtype=torch.float16))
    assert torch.equal(cast.of(first), first.half())


def test_a_bias_that_torch_changes_in_place_is_seen(cast: CastBias) -> None:
    bias = torch.zeros(4)
    cast.of(bias)
    bias.add_(1.5)
    assert cast.of(bias).tolist() == [1.5] * 4


def test_tensors_of_inference_mode_tell_no_version_and_are_cast_each_time(cast: CastBias) -> None:
    with torch.inference_mode():
        bias = torch.zeros(4)
        cast.of(bias)
        bias.add_(2)
        assert cast.of(bias).tolist() == [2] * 4


def test_memory_stays_where_it_is_and_an_unchanged_bias_is_not_cast_again(cast: CastBias) -> None:
    place, bias = cast.values.data_ptr(), torch.nn.Parameter(torch.ones(4))
    cast.of(bias)
    cast.values.zero_()  # leaves a mark that a second cast would wipe out
    assert cast.of(bias).tolist() == [0] * 4 and cast.values.data_ptr() == place
