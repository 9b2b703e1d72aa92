"""Two requests for one model that differ in one thing, and the effect on their keys: RequestPair."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autotune.programs.identity_pairs.model_pair import Expected
from autotune.programs.identity_pairs.request import Request
from autotune.records.objective import Metric, Objective

_SAME_MODEL = ("structure", "weights", "form")
NEITHER, SECOND, BOTH = (False, False), (False, True), (True, True)
"""Two flags: a plan of the first request serves the second, and the other way round."""
STRICTER = (True, False)
"""A plan of the first, which is the stricter, serves the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPair:
    """Two requests; ``difference`` names the one thing in which they differ."""

    difference: str
    first: Request
    second: Request
    expected: Expected


def draw_requests(rng: random.Random, *, gate: bool) -> RequestPair:
    """Draw two requests that differ in their gates, or in anything else."""
    pair = _gate(rng) if gate else _request(rng)
    expected = replace(pair.expected, alike=(*_SAME_MODEL, *pair.expected.alike))
    if rng.random() < 0.5 and expected.serves is not None:
        expected = replace(expected, serves=expected.serves[::-1])
        return replace(pair, first=pair.second, second=pair.first, expected=expected)
    return replace(pair, expected=expected)


def _request(rng: random.Random) -> RequestPair:
    plain = Request(seed=rng.randrange(100))
    other_place = ("plan", "study", "family")
    other_rules = Expected(differ=("study", "family", "trial"), alike=("plan", "artifact"), serves=BOTH)
    other_search = Expected(differ=("study", "family"), alike=("plan", "artifact", "trial"), serves=BOTH)
    changes: Mapping[str, tuple[Request, Expected]] = {
        "serving format": (
            replace(plain, serve_as=rng.choice(("onnx", "torchscript", "aoti"))),
            Expected(differ=other_place, alike=("artifact", "trial"), serves=SECOND),
        ),
        "device class": (
            replace(plain, device_class=rng.choice(("toy-2c/avx512", "toy-4c/avx2", "nvidia-h200/whole/700w"))),
            Expected(differ=other_place, alike=("artifact", "trial"), serves=NEITHER),
        ),
        "measuring": (replace(plain, measuring="other rules"), other_rules),
        "kernel policy": (replace(plain, tune_kernels=False), other_search),
        "kernels": (
            replace(plain, kernels="0123"),
            Expected(differ=("artifact",), alike=("plan", "study", "family", "trial"), serves=BOTH),
        ),
        "toolchain": (
            replace(plain, toolchain={**plain.toolchain, rng.choice(("torch", "compiler", "driver")): "9"}),
            Expected(differ=("artifact", "study"), alike=("plan", "family", "trial"), serves=BOTH),
        ),
        "space": (replace(plain, space="other space"), other_search),
        "seed": (replace(plain, seed=plain.seed + 1), other_search),
        "file of inputs": (replace(plain, files="other content"), other_rules),
    }
    difference = rng.choice(list(changes))
    other, expected = changes[difference]
    return RequestPair(difference=difference, first=plain, second=other, expected=expected)


def _gate(rng: random.Random) -> RequestPair:
    low = round(rng.uniform(0.001, 0.01), 5)
    high = low + round(rng.uniform(0.001, 0.5), 5)
    code, name = f"{rng.randrange(2**31):x}", rng.choice(("accuracy", "drift"))
    metric = Metric(function=f"metrics.py:{name}", at_most=low, code=code)

    def measured(changed: Metric = metric) -> Objective:
        return Objective(metrics=(changed,))

    objective = rng.choice(("latency_p99", "memory"))
    changes: Mapping[str, tuple[Objective, Objective, tuple[bool, bool]]] = {
        "signal error": (Objective(signal_error=low), Objective(signal_error=high), STRICTER),
        "limit of an output": (
            Objective(signal_error=high, signal_error_by_output=(("logits", low),)),
            Objective(signal_error=high),
            STRICTER,
        ),
        "limits of two outputs": (
            Objective(signal_error_by_output=(("a", low), ("b", high))),
            Objective(signal_error_by_output=(("a", high), ("b", low))),
            NEITHER,
        ),
        "integer agreement": (Objective(integer_agreement=1 - low), Objective(integer_agreement=0.5), STRICTER),
        "objective": (Objective(name="latency_p50"), Objective(name=objective), NEITHER),
        "a metric": (measured(), Objective(), STRICTER),
        "bound of a metric": (measured(), measured(replace(metric, at_most=high)), STRICTER),
        "code of a metric": (measured(), measured(replace(metric, code=code + "0")), NEITHER),
        "name of a metric": (measured(), measured(replace(metric, function="metrics.py:other")), NEITHER),
        "side of a bound": (measured(), measured(replace(metric, at_most=None, at_least=low)), NEITHER),
    }
    difference = rng.choice(list(changes))
    first, second, serves = changes[difference]
    # The samples of a trial do not depend on the objective; whether it is accepted depends on the limits.
    of_trial = ("trial",)
    expected = Expected(
        differ=("plan", "study", "family", *(() if difference == "objective" else of_trial)),
        alike=("artifact", *(of_trial if difference == "objective" else ())),
        serves=serves,
    )
    return RequestPair(
        difference=difference, first=Request(objective=first), second=Request(objective=second), expected=expected
    )
