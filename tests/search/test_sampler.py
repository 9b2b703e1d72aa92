import math
import random
from collections.abc import Mapping

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.records.configuration import Configuration, Scalar
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.search.history import OutcomeState, TrialOutcome
from autotune.search.sampler import BackendSampler


def fp16_is_packed(values: Mapping[str, Scalar]) -> bool:
    return values["precision"] != "fp16" or values["layout"] == "nhwc"


SPACE = SearchSpace(
    backend="onnxruntime",
    parameters=(
        Parameter(name="precision", choices=("fp32", "bf16", "fp16")),
        Parameter(name="layout", choices=("nchw", "nhwc")),
        Parameter(name="threads", choices=(4, 1, 2, 8)),
        Parameter(name="fuse", choices=(True, False)),
        Parameter(name="provider", choices=("cpu",)),
    ),
    constraints=(Constraint(reason="fp16 needs a packed layout", holds=fp16_is_packed),),
)
LEGAL = tuple(SPACE)


def score(point: Configuration) -> float:
    """A smooth table: bf16 and nhwc are fast, 4 threads are best, everything adds up in logarithms."""
    threads = point["threads"]
    assert isinstance(threads, int)
    cost = {"fp32": 0.8, "bf16": 0.0, "fp16": 0.3}[str(point["precision"])] + 0.3 * abs(math.log2(threads) - 2)
    return math.exp(cost + (0.4 if point["layout"] == "nchw" else 0.0) + (0.0 if point["fuse"] else 0.2))


def outcome(point: Configuration, state: OutcomeState = "complete") -> TrialOutcome:
    return TrialOutcome(configuration=point, state=state, score=score(point) if state == "complete" else None)


def history(count: int, seed: int = 0) -> list[TrialOutcome]:
    """Outcomes of every state, of distinct configurations."""
    draw = random.Random(seed)
    states: list[OutcomeState] = ["complete", "complete", "complete", "pruned", "failed", "infeasible"]
    return [outcome(point, draw.choice(states)) for point in draw.sample(LEGAL, count)]


def sampler_after(outcomes: list[TrialOutcome], seed: int = 0) -> BackendSampler:
    sampler = BackendSampler(SPACE, seed)
    for each in outcomes:
        sampler.observe(each)
    return sampler


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**40), states=st.lists(st.sampled_from(["complete", "pruned", "failed"]), min_size=1))
def test_every_legal_configuration_is_proposed_once_and_then_none(seed: int, states: list[OutcomeState]) -> None:
    sampler = BackendSampler(SPACE, seed)
    proposed = []
    while (point := sampler.propose()) is not None:
        assert not sampler.exhausted
        proposed.append(point)
        sampler.observe(outcome(point, states[len(proposed) % len(states)]))
    assert len(proposed) == len(LEGAL)
    assert {point.digest for point in proposed} == {point.digest for point in LEGAL}
    assert sampler.exhausted


def test_what_is_running_is_not_proposed_again() -> None:
    sampler = sampler_after(history(10))
    running: set[str] = set()
    while (point := sampler.propose(running)) is not None:
        assert point.digest not in running
        running.add(point.digest)
    assert len(running) == len(LEGAL) - 10
    assert not sampler.exhausted


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 25), shuffle=st.randoms(use_true_random=False), seed=st.integers(0, 9))
def test_a_resumed_sampler_proposes_the_same_whatever_the_order(count: int, shuffle: random.Random, seed: int) -> None:
    outcomes = history(count, seed)
    first = sampler_after(outcomes, seed)
    for _ in range(3):
        first.propose({LEGAL[0].digest})  # earlier proposals leave no trace
    shuffle.shuffle(outcomes)
    assert first.propose() == sampler_after(outcomes, seed).propose()


def test_another_seed_and_another_number_of_trials_draw_otherwise() -> None:
    firsts = {BackendSampler(SPACE, seed).propose() for seed in range(8)}
    assert len(firsts) > 3
    running = {LEGAL[0].digest}
    nexts = [(sampler := BackendSampler(SPACE, seed)).propose() != sampler.propose(running) for seed in range(8)]
    assert any(nexts)


def test_it_learns_where_the_fast_ones_are() -> None:
    ranks = sorted(map(score, LEGAL))
    found = []
    for seed in range(6):
        sampler = sampler_after([outcome(point) for point in random.Random(seed).sample(LEGAL, 12)], seed)
        point = sampler.propose()
        assert point is not None
        found.append(ranks.index(score(point)))
    assert sum(found) / len(found) < 0.3 * len(LEGAL)


def test_it_keeps_away_from_what_fails() -> None:
    failing = [point for point in LEGAL if point["precision"] == "bf16"]
    others = [point for point in LEGAL if point["precision"] != "bf16"]
    chosen = []
    for seed in range(12):
        draw = random.Random(seed)
        outcomes = [outcome(point, "failed") for point in draw.sample(failing, 6)]
        outcomes += [outcome(point) for point in draw.sample(others, 6)]
        point = sampler_after(outcomes, seed).propose()
        assert point is not None
        chosen.append(point["precision"])
    untried_share = (len(failing) - 6) / (len(LEGAL) - 12)
    assert chosen.count("bf16") / len(chosen) < untried_share / 2


def test_a_space_that_only_fails_is_still_exhausted() -> None:
    sampler = sampler_after([outcome(point, "failed") for point in LEGAL[:-1]])
    assert sampler.propose() == LEGAL[-1]


def test_choices_that_python_calls_equal_are_told_apart() -> None:
    space = SearchSpace(backend="eager", parameters=(Parameter(name="level", choices=(1, True, 1.0, "1")),))
    sampler = BackendSampler(space, 0)
    kinds = []
    while (point := sampler.propose()) is not None:
        kinds.append(type(point["level"]))
        sampler.observe(TrialOutcome(configuration=point, state="complete", score=1.0))
    assert sorted(kind.__name__ for kind in kinds) == ["bool", "float", "int", "str"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_space_of_no_or_one_configuration(count: int) -> None:
    never = Constraint(reason="nothing is legal", holds=lambda values: False)
    space = SearchSpace(backend="eager", parameters=(), constraints=() if count else (never,))
    sampler = BackendSampler(space, 0)
    assert sampler.exhausted is (count == 0)
    assert sampler.propose() == (Configuration(backend="eager") if count else None)


def test_a_configuration_of_another_space_is_refused() -> None:
    stranger = Configuration.of("onnxruntime", {"precision": "fp8"})
    with pytest.raises(ValueError, match="not in the space of onnxruntime"):
        BackendSampler(SPACE, 0).observe(TrialOutcome(configuration=stranger, state="failed"))


def test_optuna_stays_quiet_and_as_loud_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        sampler_after(history(12)).propose()
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")
