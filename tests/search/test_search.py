import random
from dataclasses import replace

import pytest

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration
from autotune.records.search_space import Parameter, SearchSpace
from autotune.search.history import TrialOutcome
from autotune.search.search import Search


def space(backend: str, sizes: tuple[int, ...], defaults: int = 1) -> SearchSpace:
    names = [f"p{number}" for number in range(len(sizes))]
    parameters = tuple(
        Parameter(name=n, choices=tuple("abcdefgh"[:size])) for n, size in zip(names, sizes, strict=True)
    )
    off_the_shelf = [Configuration.of(backend, dict.fromkeys(names, "a") | {"p0": "abc"[n]}) for n in range(defaults)]
    return SearchSpace(backend=backend, parameters=parameters, defaults=tuple(off_the_shelf))


SPACES = (
    space("eager", (3,), defaults=1),
    space("inductor", (3, 2, 2), defaults=3),
    space("openvino", (2, 2), defaults=2),
)
TOTAL = 3 + 12 + 4


def complete(point: Configuration) -> TrialOutcome:
    score = 1 + int(point.digest[:4], 16) / 2**16
    return TrialOutcome(configuration=point, state="complete", score=score, build_s=float(len(point.backend)))


def drawn(search: Search, count: int) -> list[Configuration]:
    points = []
    for _ in range(count):
        point = search.propose()
        assert point is not None
        search.observe(complete(point))
        points.append(point)
    return points


def test_defaults_come_first_one_backend_after_the_other() -> None:
    first = drawn(Search(SPACES, 0), 6)
    assert [point.backend for point in first] == ["eager", "inductor", "openvino", "inductor", "openvino", "inductor"]
    assert first == [
        *(SPACES[0].defaults[0], SPACES[1].defaults[0], SPACES[2].defaults[0]),
        *(SPACES[1].defaults[1], SPACES[2].defaults[1], SPACES[1].defaults[2]),
    ]


def test_hints_follow_the_defaults_where_they_are_legal() -> None:
    good = Configuration.of("openvino", {"p0": "b", "p1": "b"})
    hints = [
        Configuration.of("tensorrt", {"p0": "a"}),
        Configuration.of("openvino", {"p0": "z", "p1": "b"}),
        SPACES[0].defaults[0],
        good,
    ]
    assert drawn(Search(SPACES, 0, hints), 7)[6] == good


def hinted(space: SearchSpace, *hints: Configuration) -> SearchSpace:
    return replace(space, hints=hints)


def test_a_space_s_hints_wait_for_its_backend_and_come_before_its_sampler() -> None:
    """A slow backend's hints must not hold up the fast one; each of its hints is tried before it draws."""
    slow_hint = Configuration.of("eager", {"p0": "c"})
    fast_hints = [Configuration.of("openvino", {"p0": p0, "p1": "b"}) for p0 in "ba"]
    spaces = (hinted(SPACES[0], slow_hint), SPACES[1], hinted(SPACES[2], *fast_hints))
    search = Search(spaces, 0)
    factor = {"eager": 50.0, "inductor": 20.0, "openvino": 1.0}
    order = []
    while (point := search.propose()) is not None:
        order.append(point)
        score = factor[point.backend] * (1 + int(point.digest[:4], 16) / 2**20)
        search.observe(TrialOutcome(configuration=point, state="complete", score=score, build_s=1.0))
    assert len(order) == TOTAL and order[6:8] == fast_hints
    assert order.index(slow_hint) == min(i for i, point in enumerate(order) if point.backend == "eager" and i >= 6)


def test_hints_of_the_caller_come_before_those_of_the_spaces() -> None:
    own, given = Configuration.of("openvino", {"p0": "b", "p1": "b"}), Configuration.of("eager", {"p0": "c"})
    spaces = (SPACES[0], SPACES[1], hinted(SPACES[2], own))
    assert drawn(Search(spaces, 0, [given, given]), 7)[6] == given


def test_side_by_side_hints_of_all_backends_come_before_draws_in_the_dark() -> None:
    """Even those of backends that are far behind: what is built beside them does not learn from them."""
    values = {"eager": {"p0": "c"}, "inductor": {"p0": "a", "p1": "b", "p2": "b"}, "openvino": {"p0": "b", "p1": "b"}}
    hints = {name: Configuration.of(name, point) for name, point in values.items()}
    search = Search([hinted(space, hints[space.backend]) for space in SPACES], 0)
    for default in [default for space in SPACES for default in space.defaults]:
        score = 0.7 if default.backend == "inductor" else 1.0
        search.observe(TrialOutcome(configuration=default, state="complete", score=score, build_s=1.0))
    batch: list[Configuration] = []
    while len(batch) < 3 and (point := search.propose(batch)) is not None:
        batch.append(point)
    assert batch[0] == hints["inductor"] and set(batch) == set(hints.values())


def test_hopeless_configurations_come_last_and_are_tried_all_the_same() -> None:
    """One precision is ten times as slow in both backends; after the defaults have shown that, it waits."""
    parameters = (
        Parameter(name="precision", choices=("fp32", "fp16")),
        Parameter(name="knob", choices=tuple(range(6))),
    )
    spaces = [
        SearchSpace(
            backend=name, parameters=parameters,
            defaults=tuple(Configuration.of(name, {"precision": p, "knob": 0}) for p in ("fp32", "fp16")),
        )
        for name in ("eager", "inductor")
    ]  # fmt: skip
    search, order = Search(spaces, 0), []
    while (point := search.propose()) is not None:
        order.append(point)
        score = (10.0 if point["precision"] == "fp32" else 1.0) * (1 + int(point.digest[:4], 16) / 2**19)
        search.observe(TrialOutcome(configuration=point, state="complete", score=score, build_s=1.0))
    assert len(order) == 24 and search.exhausted
    assert [point["precision"] for point in order[4:]] == ["fp16"] * 10 + ["fp32"] * 10


def test_a_hint_with_a_value_that_no_trial_had_does_not_wait_for_the_hopeless() -> None:
    """An engine is three times as slow as the best with the libraries' kernels; with tuned ones it may be the best."""

    def space_of(name: str, *knob: str) -> SearchSpace:
        choices = {"precision": ("fp32", "fp16"), f"{name}_knob": knob}
        parameters = tuple(Parameter(name=parameter, choices=values) for parameter, values in choices.items())
        points = [Configuration.of(name, {"precision": p, f"{name}_knob": knob[0]}) for p in choices["precision"]]
        return SearchSpace(backend=name, parameters=parameters, defaults=tuple(points))

    tuned = Configuration.of("native", {"precision": "fp16", "native_knob": "tuned"})
    search = Search([space_of("inductor", *"abcd"), hinted(space_of("native", "torch", "tuned"), tuned)], 0)
    order = []
    while (point := search.propose()) is not None:
        order.append(point)
        slow = (3.0 if point.backend == "native" else 1.0) * (4.0 if point["precision"] == "fp32" else 1.0)
        score = 0.5 if point == tuned else slow * (1 + int(point.digest[:4], 16) / 2**20)
        search.observe(TrialOutcome(configuration=point, state="complete", score=score, build_s=1.0))
    assert order.index(tuned) < min(order.index(point) for point in order[4:] if point["precision"] == "fp32")


def test_every_configuration_once_then_none() -> None:
    search = Search(SPACES, 3)
    assert len({point.digest for point in drawn(search, TOTAL)}) == TOTAL
    assert search.propose() is None
    assert search.exhausted


def test_running_trials_are_never_proposed_and_do_not_exhaust() -> None:
    search = Search(SPACES, 3)
    running: list[Configuration] = []
    while (point := search.propose(running)) is not None:
        running.append(point)
    assert len({point.digest for point in running}) == TOTAL
    assert not search.exhausted
    for point in running:
        search.observe(complete(point))
    assert search.exhausted


def test_a_resumed_search_goes_on_as_the_first_would_have() -> None:
    uninterrupted = Search(SPACES, 5)
    points = drawn(uninterrupted, 10)
    resumed = Search(SPACES, 5)
    random.Random(0).shuffle(points)
    for point in points:
        resumed.observe(complete(point))
    assert drawn(resumed, 6) == drawn(uninterrupted, 6)


def test_outcomes_of_other_spaces_and_second_outcomes_change_nothing() -> None:
    search, plain = Search(SPACES, 1), Search(SPACES, 1)
    points = drawn(plain, 8)
    for point in points:
        search.observe(complete(point))
        search.observe(TrialOutcome(configuration=point, state="failed"))
    search.observe(complete(Configuration.of("tensorrt", {"p0": "a"})))
    search.observe(complete(Configuration.of("eager", {"p0": "z"})))
    assert search.propose() == plain.propose()


def test_a_search_needs_one_space_a_backend() -> None:
    with pytest.raises(SpaceError, match="no backend"):
        Search([], 0)
    with pytest.raises(SpaceError, match="one space a backend"):
        Search([SPACES[0], SPACES[0]], 0)


def test_what_is_excluded_is_not_proposed_and_does_not_count_as_running() -> None:
    search = Search(SPACES, 0)
    first = search.propose()
    assert first is not None and search.propose((), [first]) == search.propose([first])
