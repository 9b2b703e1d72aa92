from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.configuration import Configuration, Scalar
from autotune.records.search_space import Constraint, Parameter, SearchSpace

choices = st.lists(st.one_of(st.text(max_size=3), st.integers(-9, 9), st.booleans()), min_size=1, max_size=4).map(
    lambda values: tuple({(type(value), value): value for value in values}.values())
)
parameters = st.lists(choices, max_size=4).map(
    lambda lists: tuple(Parameter(name=f"p{number}", choices=each) for number, each in enumerate(lists))
)


def small_sum(values: Mapping[str, Scalar]) -> bool:
    return sum(value for value in values.values() if isinstance(value, int)) < 3


LIMIT = Constraint(reason="the sum must stay below 3", holds=small_sum)


@given(axes=parameters)
def test_iteration_yields_each_legal_point_once(axes: tuple[Parameter, ...]) -> None:
    everything = list(SearchSpace(backend="eager", parameters=axes))
    legal = list(SearchSpace(backend="eager", parameters=axes, constraints=(LIMIT,)))
    size = 1
    for axis in axes:
        size *= len(axis.choices)
    assert len(everything) == len({point.digest for point in everything}) == size
    digests = {point.digest for point in legal}
    assert digests == {point.digest for point in everything if small_sum(dict(point.values))}
    assert len(legal) == len(digests)


@given(axes=parameters)
def test_a_point_is_refused_exactly_where_iteration_leaves_it_out(axes: tuple[Parameter, ...]) -> None:
    space = SearchSpace(backend="eager", parameters=axes, constraints=(LIMIT,))
    legal = {point.digest for point in space}
    for point in SearchSpace(backend="eager", parameters=axes):
        assert (space.refusal(point) is None) is (point.digest in legal)


SPACE = SearchSpace(
    backend="eager",
    parameters=(Parameter(name="threads", choices=(1, 2, 4)), Parameter(name="packed", choices=(False, True))),
    constraints=(LIMIT,),
)


@pytest.mark.parametrize(
    ("point", "why"),
    [
        (Configuration.of("inductor", {"threads": 1, "packed": True}), "backend is inductor, expected eager"),
        (Configuration.of("eager", {"threads": 1}), "parameters are"),
        (Configuration.of("eager", {"threads": 1, "packed": True, "x": 1}), "parameters are"),
        (Configuration.of("eager", {"threads": 3, "packed": True}), "threads = 3, expected one of"),
        (Configuration.of("eager", {"threads": True, "packed": True}), "threads = True, expected one of"),
        (Configuration.of("eager", {"threads": 1, "packed": 1}), "packed = 1, expected one of"),
        (Configuration.of("eager", {"threads": 2, "packed": True}), "the sum must stay below 3"),
    ],
)
def test_a_refusal_says_why(point: Configuration, why: str) -> None:
    assert why in (SPACE.refusal(point) or "")


def test_a_default_must_be_legal() -> None:
    with pytest.raises(ValueError, match="is not in its own space: the sum must stay below 3"):
        SearchSpace(
            backend="eager",
            parameters=SPACE.parameters,
            constraints=SPACE.constraints,
            defaults=(Configuration.of("eager", {"threads": 4, "packed": True}),),
        )


@pytest.mark.parametrize("values", [(), (1, 1), ("a", "b", "a")])
def test_a_parameter_needs_distinct_choices(values: tuple[Scalar, ...]) -> None:
    with pytest.raises(ValueError, match="distinct choices"):
        Parameter(name="threads", choices=values)


def test_the_digest_tells_spaces_apart_that_differ() -> None:
    def space(backend: str = "eager", values: tuple[Scalar, ...] = (1, 2), reason: str = "") -> SearchSpace:
        constraints = (Constraint(reason=reason, holds=lambda values: True),) if reason else ()
        axes = (Parameter(name="threads", choices=values),)
        return SearchSpace(backend=backend, parameters=axes, constraints=constraints)

    assert space().digest == space().digest
    others = [space("inductor"), space(reason="r"), *(space(values=v) for v in ((1, 2, 4), (1, "2"), (True, 2)))]
    assert len({space().digest, *(other.digest for other in others)}) == 1 + len(others)
