import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.kernel_problem import GemmProblem

sizes = st.integers(1, 1 << 16)


@given(m=sizes, n=sizes, k=sizes, bias=st.booleans(), residual=st.booleans())
def test_json_brings_back_the_same_problem(m: int, n: int, k: int, bias: bool, residual: bool) -> None:
    before = GemmProblem(m=m, n=n, k=k, bias=bias, residual=residual)
    after = GemmProblem.from_dict(json.loads(before.canonical))
    assert after == before and after.digest == before.digest


def test_every_field_changes_the_digest() -> None:
    base = GemmProblem(m=128, n=64, k=32, bias=True)
    changes = {
        **{"m": 1, "n": 1, "k": 1, "dtype": "bf16", "output": "fp32"},
        **{"a_major": "mn", "b_major": "mn", "bias": False, "activation": "silu", "residual": True},
    }
    assert set(changes) == {field.name for field in dataclasses.fields(GemmProblem)}
    others = {dataclasses.replace(base, **{name: value}).digest for name, value in changes.items()}
    assert len(others | {base.digest}) == len(changes) + 1


def test_work_and_traffic_by_hand() -> None:
    plain = GemmProblem(m=2, n=3, k=5)
    assert (plain.flops, plain.bytes) == (60, 2 * (10 + 15 + 6))
    full = dataclasses.replace(plain, output="fp32", bias=True, residual=True)
    assert (full.flops, full.bytes) == (60, 2 * 25 + 4 * 6 * 2 + 4 * 3)


@pytest.mark.parametrize(
    ("values", "alignments"),
    [
        ({}, (16, 16, 16)),
        ({"k": 36}, (8, 8, 16)),
        ({"k": 33, "n": 33}, (2, 2, 2)),
        ({"n": 34, "output": "fp32"}, (16, 16, 8)),
        ({"m": 2, "n": 4, "a_major": "mn", "b_major": "mn"}, (4, 8, 8)),
    ],
)
def test_alignment_is_of_the_contiguous_dimension(values: dict[str, object], alignments: tuple[int, ...]) -> None:
    problem = GemmProblem(**{"m": 64, "n": 64, "k": 64, **values})  # type: ignore[arg-type]
    assert (problem.alignment_a_bytes, problem.alignment_b_bytes, problem.alignment_d_bytes) == alignments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"m": 0}, "m must be a whole number of at least 1, found 0"),
        ({"n": 1.5}, "n must be a whole number"),
        ({"k": True}, "k must be a whole number"),
        ({"dtype": "fp8"}, "dtype must be one of fp16, bf16, fp32, found 'fp8'"),
        ({"output": "int8"}, "output must be one of"),
        ({"a_major": "row"}, "a_major must be one of k, mn"),
        ({"activation": "tanh", "bias": True}, "activation must be one of none, relu, gelu, gelu_tanh, silu"),
        ({"bias": 1}, "bias must be true or false"),
        ({"activation": "relu"}, "activation relu comes with a bias"),
    ],
)
def test_what_is_no_problem_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GemmProblem(**{"m": 64, "n": 64, "k": 64, **values})  # type: ignore[arg-type]
