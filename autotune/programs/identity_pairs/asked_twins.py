"""Two requests for one model that differ in one thing, and what that means for their keys."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autotune.programs.identity_pairs.asked import Asked
from autotune.records.objective import Metric, Objective

_SAME_MODEL = ("structure", "weights", "form")


def asked_twins(rng: random.Random, *, gate: bool) -> tuple[tuple[Asked, Asked], dict[str, Any]]:
    """Draw two requests; returns them with what is expected of their keys."""
    first, second, expected = _gate(rng) if gate else _request(rng)
    if rng.random() < 0.5:
        first, second = second, first
        expected = {**expected, "serves": expected["serves"][::-1]}
    return (first, second), {**expected, "alike": (*_SAME_MODEL, *expected.get("alike", ()))}


def _request(rng: random.Random) -> tuple[Asked, Asked, dict[str, Any]]:
    plain = Asked(seed=rng.randrange(100))
    ways: Mapping[str, tuple[Asked, dict[str, Any]]] = {
        "serving format": (
            replace(plain, serve_as=rng.choice(("onnx", "torchscript", "aoti"))),
            {"differ": ("plan", "study", "family"), "alike": ("artifact", "trial"), "serves": (False, True)},
        ),
        "device class": (
            replace(plain, device_class=rng.choice(("toy-2c/avx512", "toy-4c/avx2", "nvidia-h200/whole/700w"))),
            {"differ": ("plan", "study", "family"), "alike": ("artifact", "trial"), "serves": (False, False)},
        ),
        "measuring": (
            replace(plain, measuring="other rules"),
            {"differ": ("study", "family", "trial"), "alike": ("plan", "artifact"), "serves": (True, True)},
        ),
        "kernel policy": (
            replace(plain, tune_kernels=False),
            {"differ": ("study", "family"), "alike": ("plan", "artifact", "trial"), "serves": (True, True)},
        ),
        "kernels": (
            replace(plain, kernels="0123"),
            {"differ": ("artifact",), "alike": ("plan", "study", "family", "trial"), "serves": (True, True)},
        ),
        "toolchain": (
            replace(plain, toolchain={**plain.toolchain, rng.choice(("torch", "compiler", "driver")): "9"}),
            {"differ": ("artifact", "study"), "alike": ("plan", "family", "trial"), "serves": (True, True)},
        ),
        "space": (
            replace(plain, space="other space"),
            {"differ": ("study", "family"), "alike": ("plan", "artifact", "trial"), "serves": (True, True)},
        ),
        "seed": (
            replace(plain, seed=plain.seed + 1),
            {"differ": ("study", "family"), "alike": ("plan", "artifact", "trial"), "serves": (True, True)},
        ),
        "file of inputs": (
            replace(plain, files="other content"),
            {"differ": ("study", "family", "trial"), "alike": ("plan", "artifact"), "serves": (True, True)},
        ),
    }
    what = rng.choice(list(ways))
    other, expected = ways[what]
    return plain, other, {"what": what, **expected}


def _gate(rng: random.Random) -> tuple[Asked, Asked, dict[str, Any]]:
    """The first gate is the stricter, or neither is."""
    low = round(rng.uniform(0.001, 0.01), 5)
    high = low + round(rng.uniform(0.001, 0.5), 5)
    code, name = f"{rng.randrange(2**31):x}", rng.choice(("accuracy", "drift"))

    def measured(**changed: Any) -> Objective:
        return Objective(
            metrics=(Metric(**{"function": f"metrics.py:{name}", "at_most": low, "code": code, **changed}),)
        )

    neither = (False, False)
    ways: Mapping[str, tuple[Objective, Objective, tuple[bool, bool]]] = {
        "signal error": (Objective(signal_error=low), Objective(signal_error=high), (True, False)),
        "limit of an output": (
            Objective(signal_error=high, signal_error_by_output=(("logits", low),)),
            Objective(signal_error=high),
            (True, False),
        ),
        "limits of two outputs": (
            Objective(signal_error_by_output=(("a", low), ("b", high))),
            Objective(signal_error_by_output=(("a", high), ("b", low))),
            neither,
        ),
        "integer agreement": (Objective(integer_agreement=1 - low), Objective(integer_agreement=0.5), (True, False)),
        "objective": (Objective(name="latency_p50"), Objective(name=rng.choice(("latency_p99", "memory"))), neither),
        "a metric": (measured(), Objective(), (True, False)),
        "bound of a metric": (measured(), measured(at_most=high), (True, False)),
        "code of a metric": (measured(), measured(code=code + "0"), neither),
        "name of a metric": (measured(), measured(function="metrics.py:other"), neither),
        "side of a bound": (measured(), measured(at_most=None, at_least=low), neither),
    }
    what = rng.choice(list(ways))
    strict, loose, serves = ways[what]
    differ = ("plan", "study", "family", *(() if what == "objective" else ("trial",)))
    alike = ("artifact", *(("trial",) if what == "objective" else ()))
    return Asked(objective=strict), Asked(objective=loose), {
        "what": what, "differ": differ, "alike": alike, "serves": serves,
    }  # fmt: skip
