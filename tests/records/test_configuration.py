import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.configuration import Configuration, Scalar

names = st.sampled_from(["precision", "layout", "threads", "fuse", "level", "tile_m", "tile_n"])
scalars = st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
mappings = st.dictionaries(names, scalars)


@given(values=mappings, order=st.randoms(use_true_random=False))
def test_the_order_of_values_changes_nothing(values: dict[str, Scalar], order: object) -> None:
    shuffled = list(values.items())
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Configuration.of("eager", values), Configuration.of("eager", dict(shuffled))
    assert one == other
    assert (one.canonical, one.digest) == (other.canonical, other.digest)


@given(values=mappings)
def test_json_brings_back_the_same_configuration(values: dict[str, Scalar]) -> None:
    before = Configuration.of("eager", values)
    for text in (before.canonical, json.dumps(before.as_dict())):
        after = Configuration.from_dict(json.loads(text))
        assert after == before
        assert after.digest == before.digest
        assert [type(value) for _, value in after.values] == [type(value) for _, value in before.values]


@given(one=mappings, other=mappings)
def test_digests_differ_where_canonical_json_does(one: dict[str, Scalar], other: dict[str, Scalar]) -> None:
    left, right = Configuration.of("eager", one), Configuration.of("eager", other)
    assert (left.digest == right.digest) is (left.canonical == right.canonical)


def test_values_that_mean_something_else_have_another_digest() -> None:
    points = [Configuration.of("eager", {"level": value}) for value in (1, True, "1", 1.5, "True")]
    points.append(Configuration.of("inductor", {"level": 1}))
    assert len({point.digest for point in points}) == len(points)


def test_the_digest_is_the_same_in_every_version() -> None:
    point = Configuration.of("eager", {"threads": 2, "precision": "fp32"})
    assert point.canonical == '{"backend":"eager","precision":"fp32","threads":2}'
    assert point.digest == "edacdda363704d75aabbba93eb9e37f74b485bcea22824daceb2f0561bcb2a4d"


def test_a_value_is_read_by_name() -> None:
    point = Configuration.of("eager", {"threads": 2})
    assert point["threads"] == 2
    assert point.get("threads", 8) == 2
    assert point.get("layout", "nchw") == "nchw"
    with pytest.raises(KeyError, match=r"eager has no parameter 'layout'; it has \['threads'\]"):
        point["layout"]


def test_a_configuration_can_be_read_by_people() -> None:
    assert str(Configuration.of("eager", {"threads": 2, "precision": "fp32"})) == "eager(precision=fp32, threads=2)"


@pytest.mark.parametrize(
    ("backend", "values", "message"),
    [
        ("", {}, "is not a name"),
        ("my backend", {}, "is not a name"),
        ("eager", {"two words": 1}, "is not a name"),
        ("eager", {"backend": "eager"}, "is not a name"),
        ("eager", {"threads": None}, "neither text, number nor truth value"),
        ("eager", {"tiles": [1, 2]}, "neither text, number nor truth value"),
    ],
)
def test_what_is_no_configuration_is_refused(backend: str, values: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Configuration.of(backend, values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_carry_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Configuration.of("eager", {"scale": value})


@pytest.mark.parametrize("values", [(("b", 1), ("a", 1)), (("a", 1), ("a", 1))])
def test_unsorted_or_repeated_values_are_refused(values: tuple[tuple[str, Scalar], ...]) -> None:
    with pytest.raises(ValueError, match="sorted and distinct"):
        Configuration(backend="eager", values=values)


@pytest.mark.parametrize("data", [{"backend": 3}, {"backend": True, "threads": 1}])
def test_a_backend_that_is_no_text_is_refused(data: dict[str, Scalar]) -> None:
    with pytest.raises(ValueError, match="backend must be text"):
        Configuration.from_dict(data)
