"""Which configurations are hopeless after some trials, and which are not."""

import random

from autotune.records.configuration import Configuration, Scalar
from autotune.search.history import OutcomeState, TrialOutcome
from autotune.search.latency_model import FEWEST, LatencyModel


def point(backend: str = "native", **values: Scalar) -> Configuration:
    return Configuration.of(backend, values)


def outcome(latency: float | None, configuration: Configuration, state: OutcomeState = "complete") -> TrialOutcome:
    return TrialOutcome(configuration=configuration, state=state, score=latency)


TRIALS = [
    outcome(8.0, point("eager", precision="fp32", cuda_graph=False)),
    outcome(2.0, point("eager", precision="fp16", cuda_graph=True)),
    outcome(4.0, point("inductor", precision="fp32", cuda_graph=True, freezing=False)),
    outcome(1.0, point("inductor", precision="fp16", cuda_graph=True, freezing=True)),
    outcome(1.1, point("native", precision="fp16", cuda_graph=True, kernels="torch")),
    outcome(4.2, point("native", precision="fp32", cuda_graph=True, kernels="torch")),
]


def test_a_value_that_was_slow_in_other_backends_is_hopeless_in_one_that_did_not_try_it() -> None:
    model = LatencyModel(TRIALS)
    assert model.hopeless(point("torchscript", precision="fp32", cuda_graph=False))
    assert not model.hopeless(point("torchscript", precision="fp16", cuda_graph=True))


def test_neighbours_of_the_best_and_of_slow_points_are_kept_apart() -> None:
    model = LatencyModel(TRIALS)
    assert model.hopeless(point("native", precision="fp32", cuda_graph=True, kernels="tuned"))
    assert not model.hopeless(point("native", precision="fp16", cuda_graph=True, kernels="tuned"))
    assert not model.hopeless(TRIALS[3].configuration)


def test_a_precision_that_no_trial_had_is_not_hopeless() -> None:
    model = LatencyModel(TRIALS)
    assert not model.hopeless(point("native", precision="bf16", cuda_graph=True, kernels="tuned"))
    assert not model.hopeless(point("tensorrt", precision="fp8", sparsity=True, level=5))


def test_nothing_is_hopeless_before_there_are_a_few_latencies() -> None:
    slow = TRIALS[0].configuration
    failed = [outcome(None, point("native", precision=name), "failed") for name in ("a", "b", "c", "d")]
    assert not LatencyModel([]).hopeless(slow)
    assert not LatencyModel([*TRIALS[: FEWEST - 1], *failed]).hopeless(slow)
    assert LatencyModel(TRIALS).hopeless(slow)


def test_a_trial_that_was_stopped_early_counts_with_its_latency() -> None:
    stopped = outcome(30.0, point("native", precision="fp16", cuda_graph=True, kernels="tuned"), "pruned")
    tuned = point("native", precision="fp16", cuda_graph=True, kernels="tuned")
    assert LatencyModel([*TRIALS, stopped]).hopeless(tuned) and not LatencyModel(TRIALS).hopeless(tuned)


def test_it_depends_on_the_set_of_outcomes_alone() -> None:
    points = [point("native", precision=p, cuda_graph=g) for p in ("fp32", "fp16", "bf16") for g in (True, False)]
    shuffled = random.Random(0).sample(TRIALS, len(TRIALS))
    first, second = LatencyModel(TRIALS), LatencyModel([*shuffled, *shuffled])
    assert [first.hopeless(each) for each in points] == [second.hopeless(each) for each in points]
    assert {first.hopeless(each) for each in points} == {True, False}


def test_values_of_different_types_are_different_values() -> None:
    """A count of 1 was slow, which says nothing about a switch of the same name that is on."""
    fast = [outcome(1.0 + n / 100, point("openvino", threads=t, streams=n)) for n in range(8) for t in (2, 4, 8, 16)]
    trials = [*fast, outcome(4.0, point("openvino", threads=1, streams=3))]
    model = LatencyModel(trials)
    assert model.hopeless(point("openvino", threads=1, streams=7))
    assert not model.hopeless(point("openvino", threads=True, streams=7))
