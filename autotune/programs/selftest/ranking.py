"""The agreement of fresh processes on the order of candidates, and the winner's slowdown against the fastest.

Eight spins, each 4% longer than the one before, are raced in three fresh processes. Each of these is a live rerun; the
other reruns are replayed from their samples: each draws rounds at random, none twice, each with all its blocks, and
decides by the finals' rule. Two ladders are replayed, the recorded one and one with steps of 0.4% (each recorded sample
scaled), in which a wrong winner is easy. Ties go to the slower one, which is the worst case of the tie rule. The true
ratio of two spins is known from their amounts of work.

The order by the paired log-ratios, by which the finals decide, is judged. The order by the latencies is reported
beside it and not judged, because a host with two speeds separates the rounds of its candidates.
"""

import math
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import combinations, pairwise

from autotune.measure.finals import LOOKS
from autotune.measure.paired import RoundFigures
from autotune.measure.rounds import run_rounds
from autotune.measure.statistics import detectable_effect, middle
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.selftest.rig import Rig

CANDIDATES, PROCESSES = 8, 3
STEP, CLOSE_STEP = 0.04, 0.004
LOWEST_TAU = 0.9
RERUNS = 20
LARGEST_REGRET = 0.01
FEWEST_GOOD_RERUNS = 19

Samples = dict[str, list[list[float]]]
"""For each candidate the samples of one block a round, in milliseconds."""


def race(device: str, amounts: Sequence[int], rounds: int, seed: int) -> Samples:
    """Race spins of these amounts in this process; the candidates are named 0, 1, ... in their order."""
    rig = Rig(device, seed=seed)
    spins = {str(place): rig.spin(amount) for place, amount in enumerate(amounts)}
    blocks = run_rounds(spins, [()], rig.timer, random.Random(seed), rounds, clock=rig.clock)
    return {name: [[rounded(value) for value in row[name].samples_ms] for row in blocks] for name in spins}


@lru_cache(maxsize=2)
def recorded(rig: Rig) -> tuple[Samples, ...]:
    """Race the ladder, once, in fresh processes that follow one another."""
    shortest = rig.amount(rig.typical_ms)
    amounts = [round(shortest * (1 + STEP) ** place) for place in range(CANDIDATES)]
    samples = []
    for process in range(PROCESSES):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            seed = rig.seed + 100 * (process + 1)
            samples.append(fresh.submit(race, rig.device, amounts, rig.pick(LOOKS[-1], LOOKS[0]), seed).result())
    return tuple(samples)


def check(rig: Rig) -> list[CheckResult]:
    """Compare the processes' orders, then replay winners."""
    processes = recorded(rig)
    rng = random.Random(rig.seed + 3)
    close = tuple(scaled(samples, (1 + CLOSE_STEP) / (1 + STEP)) for samples in processes)
    return [
        _agreement(processes),
        _regret(STEP, processes, rng),
        _regret(CLOSE_STEP, close, rng),
    ]


def scaled(samples: Samples, factor: float) -> Samples:
    """Multiply the samples of the n-th candidate by ``factor ** n``."""
    return {
        name: [[value * factor ** int(name) for value in block] for block in blocks] for name, blocks in samples.items()
    }


def _agreement(processes: Sequence[Samples]) -> CheckResult:
    medians = [RoundFigures(samples) for samples in processes]
    latencies = [[process.figure(str(place)) for place in range(CANDIDATES)] for process in medians]
    ratios = [
        [middle(sorted(process.log_ratios(str(place), "0"))) for place in range(CANDIDATES)] for process in medians
    ]
    taus = [tau_b(first, second) for first, second in combinations(ratios, 2)]
    detectable = max(
        detectable_effect(process.log_ratios(str(slow), str(fast)))
        for process in medians
        for fast, slow in pairwise(range(CANDIDATES))
    )
    return CheckResult(
        check="rank agreement",
        figure=f"tau-b {min(taus):.3f} at steps of {STEP:.0%}, {math.expm1(detectable):.2%} detectable",
        limit=f"at least {LOWEST_TAU}",
        passed=min(taus) >= LOWEST_TAU,
        raw={
            "taus": [rounded(tau) for tau in taus],
            "taus_of_latencies_not_judged": [
                rounded(tau_b(first, second)) for first, second in combinations(latencies, 2)
            ],
            "log_ratios": [[rounded(value) for value in row] for row in ratios],
            "latencies_ms": [[rounded(value) for value in row] for row in latencies],
            "detectable_log_ratio": rounded(detectable),
            "samples_ms": list(processes),
        },
    )


def tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau-b of two rankings of the same candidates."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second, variant="b").statistic)


def _regret(step: float, processes: Sequence[Samples], rng: random.Random) -> CheckResult:
    together = {name: [block for process in processes for block in process[name]] for name in processes[0]}
    rounds = len(processes[0]["0"])
    live = [winner_regret(process, step) for process in processes]
    replayed = []
    for _ in range(RERUNS - len(live)):
        drawn = rng.sample(range(len(together["0"])), k=rounds)
        replayed.append(winner_regret({name: [blocks[i] for i in drawn] for name, blocks in together.items()}, step))
    good = sum(regret <= LARGEST_REGRET for regret in (*live, *replayed))
    return CheckResult(
        check=f"regret/steps of {step:.1%}",
        figure=f"{good} of {RERUNS} reruns within {LARGEST_REGRET:.0%}, worst {max(*live, *replayed):.2%}",
        limit=f"at least {FEWEST_GOOD_RERUNS}",
        passed=good >= FEWEST_GOOD_RERUNS,
        raw={"live": list(map(rounded, live)), "replayed": list(map(rounded, replayed))},
    )


def winner_regret(samples: Samples, step: float) -> float:
    """Decide a race at the finals' looks, and return how much longer its winner works than the first, the fastest.

    Each candidate works longer than the one before by the share ``step``; the last is the baseline, and a tie goes to
    the slower one.
    """
    keys = {name: (-int(name),) for name in samples}
    rounds = len(samples["0"])
    for look in [look for look in LOOKS if look < rounds] + [rounds]:
        seen = {name: blocks[:look] for name, blocks in samples.items()}
        verdict = verdict_from_samples(seen, baselines=[str(CANDIDATES - 1)], tie_keys=keys)
        if verdict.settled:
            break
    return (1 + step) ** int(verdict.winner) - 1
