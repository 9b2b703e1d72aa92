import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.kernel_problem import GemmProblem, Window
from autotune.records.schema import since

COMMITTED = Path(__file__).parents[2] / "studies" / "kernels" / "nvidia-h200-tuned.zip"
DIGEST_OF_DIGESTS = "7c339e38270a23198bce69a3df519d842ac7fa624d3a2b772224856bd0c6988a"
"""SHA-256 of the sorted digests of the committed problems, computed by version 0.1.0."""

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
        "window": Window(height=8, width=16, channels=32, kernel=(1, 1)),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(GemmProblem)}
    others = {dataclasses.replace(base, **{name: value}).digest for name, value in changes.items()}
    assert len(others | {base.digest}) == len(changes) + 1


def test_work_and_traffic_by_hand() -> None:
    plain = GemmProblem(m=2, n=3, k=5)
    assert (plain.flops, plain.bytes) == (60, 2 * (10 + 15 + 6))
    full = dataclasses.replace(plain, output="fp32", bias=True, residual=True)
    assert (full.flops, full.bytes) == (60, 2 * 25 + 4 * 6 * 2 + 4 * 3)


def test_a_convolution_reads_its_images_once() -> None:
    window = Window(height=14, width=15, channels=24, kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 3))
    images = torch.zeros(4, 24, 14, 15)
    found = torch.conv2d(images, torch.zeros(5, 24, 3, 2), None, window.stride, window.padding, window.dilation)
    assert window.places == tuple(found.shape[2:])
    problem = GemmProblem(m=found.numel() // 5, n=5, k=24 * 6, window=window)
    assert problem.a_shape == (4, 14, 15, 24) and problem.alignment_a_bytes == 16
    assert problem.bytes == 2 * (images.numel() + 5 * 144 + found.numel())
    assert GemmProblem.from_dict(json.loads(problem.canonical)) == problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 0}, "at least 1"),
        ({"kernel": (3,)}, "two dimensions"),
        ({"padding": (-1, 0)}, "its padding 0"),
        ({"kernel": (9, 1)}, "a place in its images"),
    ],
)
def test_what_is_no_window_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(**{"height": 8, "width": 8, "channels": 4, "kernel": (3, 3), **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"m": 37}, {"k": 72}, {"a_major": "mn"}])
def test_a_problem_fits_its_window(values: dict[str, object]) -> None:
    window = Window(height=8, width=8, channels=16, kernel=(3, 3))
    with pytest.raises(ValueError, match=r"a window of k = 144 and \(6, 6\) places"):
        GemmProblem(**{"m": 72, "n": 8, "k": 144, "window": window, **values})  # type: ignore[arg-type]


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
        ({"activation": "elu", "bias": True}, "activation must be one of none, relu, gelu, gelu_tanh, silu"),
        ({"bias": 1}, "bias must be true or false"),
        ({"activation": "relu"}, "activation relu comes with a bias"),
    ],
)
def test_what_is_no_problem_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GemmProblem(**{"m": 64, "n": 64, "k": 64, **values})  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaterProblem(GemmProblem):
    """A problem as a later version of autotune may know it."""

    scale: str = dataclasses.field(default="none", metadata=since(2))
    sparsity: str = dataclasses.field(default="dense", metadata=since(3))


def committed_problems() -> list[dict[str, object]]:
    """The problem of every committed kernel trial, as it was stored."""
    with zipfile.ZipFile(COMMITTED) as parcel:
        return [trial["problem"] for trial in json.loads(parcel.read("records.json"))["kernel_trials"]]


@pytest.mark.parametrize("kind", [GemmProblem, LaterProblem])
def test_every_committed_problem_has_the_digest_that_it_was_stored_under(kind: type[GemmProblem]) -> None:
    stored = committed_problems()
    problems = [kind.from_dict(problem) for problem in stored]
    texts = [json.dumps(problem, sort_keys=True, separators=(",", ":")) for problem in stored]
    assert len(stored) == 1603 and [problem.canonical for problem in problems] == texts
    digests = [problem.digest for problem in problems]
    assert digests == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert hashlib.sha256("".join(sorted(digests)).encode()).hexdigest() == DIGEST_OF_DIGESTS


def test_a_later_field_changes_the_digest_only_if_it_says_something() -> None:
    plain, later = GemmProblem(m=128, n=64, k=32), LaterProblem(m=128, n=64, k=32)
    assert later.as_dict() == plain.as_dict() and later.digest == plain.digest and "schema" not in plain.as_dict()
    scaled, sparse = (dataclasses.replace(later, **change) for change in ({"scale": "row"}, {"sparsity": "2:4"}))
    assert len({plain.digest, scaled.digest, sparse.digest}) == 3
    assert (scaled.as_dict()["schema"], sparse.as_dict()["schema"]) == (2, 3)
    assert "sparsity" not in scaled.as_dict()
    for problem in (later, scaled, sparse):
        assert LaterProblem.from_dict(json.loads(problem.canonical)) == problem


def test_a_problem_of_a_later_schema_is_refused() -> None:
    scaled = LaterProblem(m=128, n=64, k=32, scale="row")
    with pytest.raises(ValueError, match="a kernel problem of schema 2, expected at most schema 1: a later version"):
        GemmProblem.from_dict(scaled.as_dict())
    window = {**Window(height=8, width=16, channels=32, kernel=(1, 1)).as_dict(), "schema": 2}
    with pytest.raises(ValueError, match="a window of a kernel problem of schema 2"):
        GemmProblem.from_dict({**GemmProblem(m=128, n=64, k=32).as_dict(), "window": window})


@pytest.mark.parametrize("schema", [0, -1, "1", True, None])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(ValueError, match="of schema"):
        GemmProblem.from_dict({"m": 1, "n": 1, "k": 1, "schema": schema})
