import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import accuracy
from autotune.accuracy import AccuracyResult, check_reference, judge, signal_errors, spreads
from autotune.errors import ReferenceRefusedError, RequestError
from autotune.records.objective import Metric, Objective
from autotune.testing import (
    answering_mean,
    ignoring_input,
    rounding_outputs_to_fp8,
    rounding_weights_to_fp8,
    swapping_outputs,
)

NAMES = ("logits", "classes")


def references(count=8, seed=0):
    """A floating output [2, 5] and the integer classes of its rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 5, generator=generator) for _ in range(count)]
    return [(one, one.argmax(dim=1)) for one in logits]


def moved(answers, error):
    """Answers whose floating output is off by a share of each input's signal, all in one direction."""
    mean = torch.stack([one[0].double() for one in answers]).mean(dim=0)
    direction = torch.ones(2, 5, dtype=torch.float64) / math.sqrt(10)
    return [((a.double() + error * (a.double() - mean).norm() * direction).to(a.dtype), b) for a, b in answers]


@settings(max_examples=60, deadline=None)
@given(
    error=st.floats(1e-3, 0.9), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e3]), count=st.integers(8, 20)
)
def test_signal_error_is_relative_to_the_signal_and_not_to_the_size(error, seed, offset, count):
    expected = [(a.double() + offset, b) for a, b in references(count, seed)]
    found = signal_errors(moved(expected, error), expected)
    assert found[0] == pytest.approx(error, rel=1e-6)
    assert found[1] == 1.0
    assert judge(moved(expected, error), expected, NAMES, Objective(signal_error=0.95)).signal_error == found[0]


def test_signal_error_by_hand():
    expected = [(torch.tensor([float(i)]),) for i in range(8)]  # mean 3.5, distances 3.5 2.5 1.5 .5 .5 1.5 2.5 3.5
    answers = [(one + 0.1,) for (one,) in expected]
    assert signal_errors(answers, expected)[0] == pytest.approx(0.1 * (1 / 3.5 + 1 / 2.5 + 1 / 1.5 + 1 / 0.5) / 4)


def test_small_differences_are_not_lost_in_low_precision():
    expected = [(torch.full((4,), 1000.0, dtype=torch.float16) + i,) for i in range(8)]
    assert signal_errors(expected, expected) == (0.0,)
    assert judge(expected, expected, ["y"], Objective()).accepted


@pytest.mark.parametrize(("error", "accepted"), [(0.0, True), (0.0199, True), (0.0201, False), (0.5, False)])
def test_default_limit(error, accepted):
    verdict = judge(moved(references(), error), references(), NAMES, Objective())
    assert verdict.accepted is accepted
    assert verdict.signal_error == pytest.approx(error, abs=1e-6)
    assert [name for name, _ in verdict.figures] == list(NAMES)
    if not accepted:
        assert (verdict.failure.stage, verdict.failure.kind) == ("check", "inaccurate")
        assert verdict.failure.figure == verdict.signal_error
        assert verdict.failure.detail == f"output logits has a signal error of {error:.3g}, the limit is 0.02"


def test_limits_by_output():
    tight = Objective(signal_error=0.5, signal_error_by_output=(("logits", 0.01),))
    assert not judge(moved(references(), 0.02), references(), NAMES, tight).accepted
    assert judge(moved(references(), 0.02), references(), ("other", "classes"), tight).accepted


@pytest.mark.parametrize(("wrong", "accepted"), [(0, True), (1, True), (2, False)])
def test_integer_outputs_agree_in_at_least_99_percent(wrong, accepted):
    expected = [(torch.arange(20) + i,) for i in range(8)]  # 160 elements: one is 0.6%, two are 1.3%
    answers = [(one.clone(),) for (one,) in expected]
    for i in range(wrong):
        answers[i][0][3] += 1
    verdict = judge(answers, expected, ["ids"], Objective())
    assert verdict.accepted is accepted
    assert verdict.signal_error is None
    assert verdict.figures == (("ids", 1 - wrong / 160),)
    if not accepted:
        assert verdict.failure.detail == "output ids agrees in 98.7500% of its elements, the least is 99.0000%"
    assert judge(answers, expected, ["ids"], Objective(integer_agreement=0.9)).accepted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_always_refused(bad):
    answers = [(a.clone(), b) for a, b in references()]
    answers[5][0][1, 2] = bad
    verdict = judge(answers, references(), NAMES, Objective(signal_error=0.999))
    assert not verdict.accepted
    assert verdict.failure.kind == "non_finite"
    assert verdict.failure.detail == "output logits has NaN or infinity for 1 of 8 inputs"


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda a, b: (a,), "input 1 is answered by 1 outputs, the reference has 2"),
        (lambda a, b: (a, b, b), "input 1 is answered by 3 outputs, the reference has 2"),
        (lambda a, b: (b, a), "output logits is int64 of shape [2], the reference float32 of shape [2, 5], at input 1"),
        (lambda a, b: (a[:1], b), "output logits is float32 of shape [1, 5], the reference float32 of shape [2, 5]"),
        (lambda a, b: (a.half(), b), "output logits is float16 of shape [2, 5], the reference float32 of shape [2, 5]"),
        (lambda a, b: (a, b.int()), "output classes is int32 of shape [2], the reference int64 of shape [2]"),
    ],
)
def test_wrong_number_shape_or_dtype_is_inaccurate_with_an_explanation(change, detail):
    verdict = judge([change(a, b) for a, b in references()], references(), NAMES, Objective())
    assert (verdict.failure.stage, verdict.failure.kind) == ("check", "inaccurate")
    assert detail in verdict.failure.detail
    assert verdict.figures == ()


def test_answers_that_belong_to_other_inputs_are_misuse():
    with pytest.raises(ValueError, match="do not match"):
        judge(references()[:7], references(), NAMES, Objective())
    with pytest.raises(ValueError, match="do not match"):
        judge(references(), references(), ("logits",), Objective())


def largest_difference(outputs, expected):
    assert set(outputs[0]) == set(NAMES)
    return max((one["logits"] - other["logits"]).abs().max() for one, other in zip(outputs, expected, strict=True))


def test_metric_of_the_user_can_refuse_what_the_signal_error_lets_pass():
    metric = Metric(function="metrics.py:largest_difference", at_most=0.01)
    answers = moved(references(), 0.019)
    verdict = judge(answers, references(), NAMES, Objective(metrics=(metric,)), [(metric, largest_difference)])
    assert not verdict.accepted
    assert verdict.signal_error < 0.02
    assert verdict.metrics == (("metrics.py:largest_difference", verdict.failure.figure),)
    assert "metric metrics.py:largest_difference is 0.0" in verdict.failure.detail
    assert judge(references(), references(), NAMES, Objective(), [(metric, largest_difference)]).accepted


@pytest.mark.parametrize(("value", "accepted"), [(0.5, True), (0.49, False), (math.nan, False)])
def test_metric_with_a_lower_bound(value, accepted):
    metric = Metric(function="m:f", at_least=0.5)
    assert judge(references(), references(), NAMES, Objective(), [(metric, lambda *_: value)]).accepted is accepted


def test_metric_that_returns_no_number_is_a_wrong_request():
    metric = Metric(function="m:f", at_most=0.5)
    with pytest.raises(RequestError, match="metric m:f"):
        judge(references(), references(), NAMES, Objective(), [(metric, lambda *_: "good")])


def test_every_excess_is_told_and_the_worst_comes_first():
    expected = [(a, a.clone()) for a, _ in references()]
    answers = [
        (one, other) for (one, _), (other, _) in zip(moved(references(), 0.1), moved(references(), 0.3), strict=True)
    ]
    detail = judge(answers, expected, ("a", "b"), Objective()).failure.detail
    assert detail.index("output b") < detail.index("output a")


def test_reference_that_can_judge_passes():
    check_reference(references(), NAMES)
    check_reference([(a + 1e3, b) for a, b in references()], NAMES)  # 1e-3 of its size: little, yet far above rounding
    check_reference(
        [(a, torch.arange(3)) for a, _ in references()], NAMES
    )  # a constant integer output is compared anyway


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: references(7), "found: 7 inputs"),
        (lambda: [(a * math.nan, b) for a, b in references()], "not finite in output logits"),
        (lambda: [*references(7), (torch.full((2, 5), math.inf), torch.zeros(2))], "not finite in output logits"),
        (lambda: [(torch.ones(2, 5), b) for _, b in references()], "output logits of the reference does not vary"),
        (lambda: [(torch.zeros(2, 5), b) for _, b in references()], "output logits of the reference does not vary"),
        (lambda: [(a + 1e6, b) for a, b in references()], "output logits of the reference does not vary"),
        (lambda: [(a, torch.arange(3.0)) for a, _ in references()], "output classes of the reference does not vary"),
    ],
)
def test_reference_that_cannot_judge_is_refused_by_name(make, message):
    with pytest.raises(ReferenceRefusedError, match=message):
        check_reference(make(), NAMES)


def test_reference_of_constant_integers_alone_is_refused():
    with pytest.raises(ReferenceRefusedError, match="a candidate that ignores its input would pass"):
        check_reference([(torch.arange(4),) for _ in range(8)], ["ids"])


def test_complex_outputs_have_a_signal_error():
    expected = [(torch.complex(a, a.flip(0)),) for a, _ in references()]
    check_reference(expected, ["spectrum"])
    assert judge(expected, expected, ["spectrum"], Objective()).accepted
    assert not judge(
        [(one.conj().resolve_conj(),) for (one,) in expected], expected, ["spectrum"], Objective()
    ).accepted


def test_verdict_cannot_contradict_itself():
    with pytest.raises(ValueError, match="either accepts or has a failure"):
        AccuracyResult(accepted=False)


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 16))


CHEATS = {
    "ignores its input": lambda model, expected: ignoring_input(lambda x: (model(x),)),
    "answers the mean": lambda model, expected: answering_mean(expected),
    "swaps outputs": lambda model, expected: swapping_outputs(lambda x: (model(x),)),
    "swaps equal outputs": lambda model, expected: swapping_outputs(lambda x: (model(x), -model(x))),
    "weights in fp8": lambda model, expected: lambda x: (rounding_weights_to_fp8(model)(x),),
    "outputs in fp8": lambda model, expected: rounding_outputs_to_fp8(lambda x: (model(x),)),
}


@pytest.mark.parametrize("cheat", CHEATS)
@torch.no_grad()
def test_cheats_are_refused_on_a_small_model(cheat):
    model = small_model()
    inputs = [torch.randn(1, 16, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    expected = [(model(x), -model(x)) if cheat == "swaps equal outputs" else (model(x),) for x in inputs]
    names = ["first", "second"][: len(expected[0])]
    check_reference(expected, names)
    answer = CHEATS[cheat](model, expected)
    verdict = judge([answer(x) for x in inputs], expected, names, Objective())
    assert not verdict.accepted
    assert verdict.failure.kind == "inaccurate"
    assert min(value for value in spreads(expected) if value is not None) > 0.3
    if cheat == "answers the mean":
        assert verdict.signal_error == pytest.approx(1.0, rel=1e-6)


def test_one_answer_is_judged_by_the_size_that_its_errors_are_relative_to():
    torch.manual_seed(0)
    first, second = torch.randn(4, 3) + 100.0, torch.randn(4, 3) + 100.0
    ids, empty = torch.arange(4), torch.empty(0)
    references = [(first, ids, empty), (second, ids, empty)]
    scales = accuracy.signal_scales(references)
    signal = float((first - (first + second) / 2).norm())
    assert scales == (pytest.approx(signal, rel=1e-5), 0.0, 0.0)
    assert accuracy.signal_scales([(first,)]) == (pytest.approx(float(first.norm())),), "one reference does not vary"
    names, objective = ("y", "ids", "none"), Objective(signal_error=0.01)

    def judged(*answer):
        return accuracy.judge_one(answer, references[0], scales, names, objective, 3.0)

    for factor, accepted in ((0.0, True), (0.029, True), (0.031, False), (2.0, False)):
        off = first.clone()
        off[0, 0] += factor * signal
        verdict = judged(off, ids, empty)
        assert verdict.accepted == accepted and verdict.signal_error == pytest.approx(factor, rel=0.01, abs=1e-6)
    assert "output y is off by" in judged(off, ids, empty).failure.detail
    assert judged(first, torch.tensor([0, 1, 9, 9]), empty).accepted
    assert "output ids agrees in 25.0%" in judged(first, torch.tensor([0, 9, 9, 9]), empty).failure.detail
    assert not judged(first.double(), ids, empty).accepted and not judged(first[:2], ids, empty).accepted
    assert (
        judged(first.clone().index_fill_(0, torch.tensor([1]), float("nan")), ids, empty).failure.kind == "non_finite"
    )
