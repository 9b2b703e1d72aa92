"""The share of 95% intervals of the median that hold the median."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

from autotune.measure.block import BlockRecorder
from autotune.measure.statistics import median, median_interval
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.selftest.rig import Rig

REPEATS = 1_000
"""More than the required 200: over 200, chance alone takes one honest interval in thirty below 93%."""

SIZES = (30, 101)
LOWEST = 0.93


def check(rig: Rig) -> list[CheckResult]:
    """Count how often the interval holds the truth: in skewed and bimodal noise, and in a long recording.

    Each repeat draws its samples from the recording at random. The share of consecutive samples, whose noise is not
    independent, is reported beside it and not judged: an interval of one block cannot describe the other blocks.
    """
    rng = random.Random(rig.seed + 2)
    repeats = rig.pick(REPEATS, 200)
    results = [
        _result(f"coverage/{name}", [_share(draw, truth, size, repeats, rng) for size in SIZES], repeats)
        for name, draw, truth in (("skewed noise", skewed, 1.0), ("bimodal noise", bimodal, _BIMODAL_MEDIAN))
    ]
    samples = _recording(rig)
    truth = median(samples)
    drawn = [_share_of(partial(rng.sample, samples, size), truth, repeats) for size in SIZES]
    consecutive = [_consecutive(samples, truth, size) for size in SIZES]
    raw = {"recorded": len(samples), "median_ms": rounded(truth), "consecutive_not_judged": consecutive}
    return [*results, _result("coverage/recorded", drawn, repeats, raw)]


def skewed(rng: random.Random) -> float:
    """Draw log-normal noise with a tail of slow samples, as timings have it; its median is 1 exactly."""
    return math.exp(abs(rng.gauss(0, 0.2))) if rng.random() < 0.5 else math.exp(-abs(rng.gauss(0, 0.02)))


_FAST_SHARE = 0.6
_BIMODAL_MEDIAN = math.exp(NormalDist(0, 0.02).inv_cdf(0.5 / _FAST_SHARE))
"""Half of all samples lie below it, all of them fast ones."""


def bimodal(rng: random.Random) -> float:
    """Draw from two speeds that overlap little."""
    return math.exp(rng.gauss(0, 0.02)) if rng.random() < _FAST_SHARE else 1.5 * math.exp(rng.gauss(0, 0.02))


def _share(draw: Callable[[random.Random], float], truth: float, size: int, repeats: int, rng: random.Random) -> float:
    return _share_of(lambda: [draw(rng) for _ in range(size)], truth, repeats)


def _share_of(draw: Callable[[], Sequence[float]], truth: float, repeats: int) -> float:
    held = 0
    for _ in range(repeats):
        low, high = median_interval(draw())
        held += low <= truth <= high
    return held / repeats


def _consecutive(samples: Sequence[float], truth: float, size: int) -> float:
    starts = range(0, len(samples) - size + 1, size)
    held = 0
    for start in starts:
        low, high = median_interval(samples[start : start + size])
        held += low <= truth <= high
    return rounded(held / len(starts))


def _recording(rig: Rig) -> list[float]:
    product, input_sets = rig.product()
    recorder = BlockRecorder(rig.timer, rig.clock, input_sets)
    for _ in range(rig.pick(5_000, 800)):
        recorder.take(product)
    return list(recorder.block().samples_ms)


def _result(check: str, shares: Sequence[float], repeats: int, raw: dict[str, object] | None = None) -> CheckResult:
    return CheckResult(
        check=check,
        figure=", ".join(f"{share:.1%} of {size}" for share, size in zip(shares, SIZES, strict=True)) + " samples",
        limit=f"at least {LOWEST:.0%}",
        passed=min(shares) >= LOWEST,
        raw={"repeats": repeats, "sizes": list(SIZES), "shares": list(shares), **(raw or {})},
    )
