"""The rates at which the paired comparison finds a difference if there is none (A/A), and if there is one (power).

Each of the 400 comparisons is a race of its own, as in the finals: 20 rounds of one callable under two names, in random
order within each round, a block each, and Wilcoxon's test on the log-ratios of the blocks' medians. The order is drawn
anew in every round, and the two names stand for the same callable. Under the null hypothesis each log-ratio is then as
likely positive as negative, whatever the machine does meanwhile. More rejections come from a flaw of the measurement,
such as a grouping that differs between the two. Drift and a clock with two speeds are laid over the recorded blocks in
the order in which they ran.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from autotune.measure.block import Block
from autotune.measure.rounds import run_rounds
from autotune.measure.statistics import detectable_effect, median, middle, paired_test
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.selftest.rig import Rig

ALPHA = 0.05
COMPARISONS, ROUNDS = 400, 20
DRIFT = 0.10
TWO_SPEEDS, SWITCH_CHANCE = 0.08, 0.1
INJECTED = 0.01
LOWEST_POWER = 0.80
AIMED_AT = 1.96 + 1.04
"""Standard errors for a power of 85% at 5%: rounds predicted for exactly 80% would miss 80% every second time."""
MOST_BY_CHANCE = 0.0068
"""31 of 400 rejections are exceeded with this probability when each has 5%; other counts get their limit by it."""

RacePairs = list[tuple[float, float, bool]]
"""For each round the medians of the first and the second name in milliseconds, and whether the first went first."""


@lru_cache(maxsize=2)
def recorded(rig: Rig) -> tuple[tuple[RacePairs, ...], tuple[RacePairs, ...]]:
    """Race a callable against itself, once; on the wall clock, and on the device's own if it has one."""
    product, input_sets = rig.product()
    rng = random.Random(rig.seed)
    wall: list[RacePairs] = []
    device: list[RacePairs] = []
    for _ in range(rig.pick(COMPARISONS, 8)):
        race = {"first": product, "second": product}
        rounds = run_rounds(race, input_sets, rig.timer, rng, ROUNDS, clock=rig.clock)
        wall.append([_pair(blocks, lambda block: block.samples_ms) for blocks in rounds])
        if all(block.device_samples_ms for blocks in rounds for block in blocks.values()):
            device.append([_pair(blocks, lambda block: block.device_samples_ms) for blocks in rounds])
    return tuple(wall), tuple(device)


def _pair(blocks: dict[str, Block], samples: Callable[[Block], Sequence[float]]) -> tuple[float, float, bool]:
    first, second = blocks["first"], blocks["second"]
    return rounded(median(samples(first))), rounded(median(samples(second))), first.position < second.position


def check_aa(rig: Rig) -> list[CheckResult]:
    """Count the rejections: as recorded, under drift, under two clock speeds."""
    wall, device = recorded(rig)
    outcomes = [_aa("aa/as recorded", wall, raw={"pairs_ms": [list(map(list, pairs)) for pairs in wall]})]
    if device:
        outcomes.append(_aa("aa/device clock", device))
    drifting = [under_drift(pairs) for pairs in wall]
    outcomes.append(_aa(f"aa/{DRIFT:.0%} drift", drifting))
    rng = random.Random(rig.seed + 1)
    two_speeds = [under_two_speeds(pairs, rng) for pairs in wall]
    outcomes.append(_aa("aa/bimodal clock", two_speeds))
    return outcomes


def _aa(check: str, comparisons: Sequence[RacePairs], raw: Mapping[str, object] | None = None) -> CheckResult:
    p_values = [paired_test(log_ratios(pairs)) for pairs in comparisons]
    rejected = sum(p_value <= ALPHA for p_value in p_values)
    limit = most_rejections(len(p_values))
    return CheckResult(
        check=check,
        figure=f"{rejected} of {len(p_values)} rejected",
        limit=f"at most {limit}",
        passed=rejected <= limit,
        raw={"rejected": rejected, "p_values": [rounded(p_value) for p_value in p_values], **(raw or {})},
    )


def most_rejections(comparisons: int) -> int:
    """Return the count that chance exceeds as rarely as 31 of 400: 31 for 400."""
    from scipy.stats import binom

    return int(binom.isf(MOST_BY_CHANCE, comparisons, ALPHA))


def log_ratios(pairs: RacePairs) -> list[float]:
    """Return log(second / first) of each round."""
    return [math.log(second / first) for first, second, _ in pairs]


def under_drift(pairs: RacePairs, drift: float = DRIFT) -> RacePairs:
    """Let everything become slower in a straight line, by ``drift`` from the first block to the last."""
    steps = 2 * len(pairs) - 1
    return [_scaled(pair, 1 + drift * 2 * i / steps, 1 + drift * (2 * i + 1) / steps) for i, pair in enumerate(pairs)]


def under_two_speeds(pairs: RacePairs, rng: random.Random) -> RacePairs:
    """Let the clock switch between two speeds, at each block with some chance."""
    slow, result = rng.random() < 0.5, []
    for pair in pairs:
        factors = []
        for _ in range(2):
            slow ^= rng.random() < SWITCH_CHANCE
            factors.append(1 + TWO_SPEEDS if slow else 1.0)
        result.append(_scaled(pair, *factors))
    return result


def _scaled(pair: tuple[float, float, bool], earlier: float, later: float) -> tuple[float, float, bool]:
    first, second, in_order = pair
    return (first * earlier, second * later, True) if in_order else (first * later, second * earlier, False)


def check_power(rig: Rig) -> list[CheckResult]:
    """Slow the second down by 1% in the recorded blocks, and count the repeats in which this is detected.

    Noether's formula predicts the number of rounds from the recorded noise without assuming its distribution; it is
    raised to the next look of the finals, a multiple of 20. A repeat draws as many rounds at random, since the formula
    speaks of noise that is the same throughout. Not judged are repeats of consecutive rounds, and the number of rounds
    by 2.8 * s_d / sqrt(n) (times pi/3, because of the rank test), which is too small for noise with heavy tails: on a
    loaded 2-core machine its 60 rounds detected 61%.
    """
    wall, _ = recorded(rig)
    ratios = [ratio for pairs in wall for ratio in log_ratios(pairs)]
    shift = math.log1p(INJECTED)
    rng = random.Random(rig.seed + 5)
    predicted = needed_by_noether(ratios, shift, rng) or len(ratios) + 1
    rounds = to_the_next_look(predicted)
    consecutive = [ratios[start : start + rounds] for start in range(0, len(ratios) - rounds + 1, rounds)]
    repeats = [rng.sample(ratios, rounds) for _ in range(rig.pick(400, 50))] if consecutive else []
    detected = _times_detected(repeats, shift)
    share = detected / len(repeats) if repeats else 0.0
    return [
        CheckResult(
            check="power",
            figure=f"{detected} of {len(repeats)} found ({share:.0%}) in {rounds} rounds",
            limit=f"at least {LOWEST_POWER:.0%} of +{INJECTED:.0%}",
            passed=share >= LOWEST_POWER,
            raw={
                "rounds": rounds,
                "predicted": predicted,
                "repeats": len(repeats),
                "found": detected,
                "noise_share": rounded(_noise(ratios)),
                "predicted_by_detectable_effect": _needed(ratios),
                "consecutive_not_judged": [_times_detected(consecutive, shift), len(consecutive)],
                "promoted_by_verdict": _promoted(wall, rounds),
            },
        )
    ]


def _times_detected(repeats: Sequence[Sequence[float]], shift: float) -> int:
    return sum(_is_detected([ratio + shift for ratio in repeat]) for repeat in repeats)


def _is_detected(ratios: Sequence[float]) -> bool:
    return paired_test(ratios) <= ALPHA and middle(sorted(ratios)) > 0


def needed_by_noether(ratios: Sequence[float], shift: float, rng: random.Random) -> int | None:
    """Predict the pairs that the signed-rank test needs, whatever the noise: Noether, JASA 82 (1987), 645-647.

    ``None`` if the shift does not show in the noise at all.
    """
    draws = 20_000
    above = sum(rng.choice(ratios) + rng.choice(ratios) + 2 * shift > 0 for _ in range(draws))
    below = sum(rng.choice(ratios) + rng.choice(ratios) - 2 * shift < 0 for _ in range(draws))
    chance = (above + below) / 2 / draws
    return math.ceil(AIMED_AT**2 / (3 * (chance - 0.5) ** 2)) if chance > 0.5 else None


def _noise(ratios: Sequence[float]) -> float:
    """Return s_d of a log-ratio, as the minimum detectable effect estimates it."""
    return detectable_effect(ratios) * math.sqrt(len(ratios)) / 2.8


def _needed(ratios: Sequence[float]) -> int:
    return math.ceil(math.pi / 3 * (2.8 * _noise(ratios) / math.log1p(INJECTED)) ** 2)


def to_the_next_look(rounds: int) -> int:
    """Round up to a multiple of the first look."""
    return ROUNDS * max(1, math.ceil(rounds / ROUNDS))


def _promoted(comparisons: Sequence[RacePairs], rounds: int) -> int:
    """Count the repeats in which the finals' whole rule, with its stricter bound and margin, promotes the faster."""
    flat = [pair for pairs in comparisons for pair in pairs]
    promoted = 0
    for start in range(0, len(flat) - rounds + 1, rounds):
        pairs = flat[start : start + rounds]
        samples = {
            "baseline": [[second * (1 + INJECTED)] for _, second, _ in pairs],
            "faster": [[first] for first, _, _ in pairs],
        }
        promoted += verdict_from_samples(samples, baselines=["baseline"]).status == "promoted"
    return promoted
