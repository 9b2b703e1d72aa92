"""Replays searches on recorded tables of latencies, and charges nothing but trials."""

import math
import random
from dataclasses import dataclass
from statistics import fmean

from autotune.records.configuration import Configuration
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.search.history import TrialOutcome
from autotune.search.search import Search

TRIALS = 30
KNOBS: dict[str, dict[str, tuple[str | int | bool, ...]]] = {
    "eager": {"precision": ("fp32", "bf16", "fp16"), "layout": ("nchw", "nhwc"), "threads": (1, 2, 4)},
    "inductor": {
        "precision": ("fp32", "bf16", "fp16"),
        "layout": ("nchw", "nhwc"),
        "freezing": (False, True),
        "max_autotune": (False, True),
        "epilogue": (False, True),
        "threads": (1, 2, 4),
    },
    "onnxruntime": {
        "precision": ("fp32", "fp16"),
        "level": ("basic", "extended", "all"),
        "search": ("heuristic", "exhaustive", "default"),
        "layout": ("nchw", "nhwc"),
        "threads": (1, 2, 4),
    },
}
BASE_MS = {"eager": 1.0, "inductor": 0.7, "onnxruntime": 0.75}
BUILD_S = {"eager": 1.0, "inductor": 40.0, "onnxruntime": 8.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What every configuration of every space would measure."""

    spaces: tuple[SearchSpace, ...]
    outcomes: dict[str, TrialOutcome]

    @property
    def best_ms(self) -> float:
        return min(o.score for o in self.outcomes.values() if o.score is not None)


def table(seed: int) -> Table:
    """Add effects of knobs and pairs of them, and noise; one precision fails everywhere, others now and then."""
    draw = random.Random(seed)
    packed = Constraint(reason="fp16 is packed", holds=lambda v: v["precision"] != "fp16" or v["layout"] == "nhwc")
    spaces, outcomes = [], {}
    for backend, knobs in KNOBS.items():
        parameters = tuple(Parameter(name=name, choices=choices) for name, choices in knobs.items())
        default = Configuration.of(backend, {name: choices[0] for name, choices in knobs.items()})
        space = SearchSpace(backend=backend, parameters=parameters, constraints=(packed,), defaults=(default,))
        base = math.log(BASE_MS[backend]) + draw.gauss(0, 0.25)
        effects: dict[object, float] = {}
        pairs = [tuple(draw.sample(sorted(knobs), 2)) for _ in range(3)]
        wrong = draw.choice(["none", "bf16", "fp16"]) if backend != "eager" else "none"
        for point in space:
            terms: list[object] = [(name, value) for name, value in point.values]
            terms += [(pair, point[pair[0]], point[pair[1]]) for pair in pairs]
            log = base + sum(effects.setdefault(term, draw.gauss(0, 0.15)) for term in terms) + draw.gauss(0, 0.03)
            failed = point["precision"] == wrong or draw.random() < 0.05
            outcomes[point.digest] = TrialOutcome(
                configuration=point,
                state="failed" if failed else "complete",
                score=None if failed else math.exp(log),
                build_s=BUILD_S[backend],
            )
        spaces.append(space)
    return Table(spaces=tuple(spaces), outcomes=outcomes)


def curve(recorded: Table, points: list[Configuration]) -> list[float]:
    """Log-gap of the best latency so far to the best of the table, after each trial from the tenth on."""
    best, gaps = math.inf, []
    for point in points:
        score = recorded.outcomes[point.digest].score
        best = min(best, score if score is not None else math.inf)
        gaps.append(math.log(best / recorded.best_ms))
    return gaps[9:]


def searched(recorded: Table, seed: int) -> list[Configuration]:
    search, points = Search(recorded.spaces, seed), []
    for _ in range(TRIALS):
        point = search.propose()
        assert point is not None
        search.observe(recorded.outcomes[point.digest])
        points.append(point)
    return points


def random_points(recorded: Table, seed: int) -> list[Configuration]:
    """The same defaults, then uniform draws from all configurations: harder to beat than uniform over backends."""
    defaults = [space.defaults[0] for space in recorded.spaces]
    rest = [point for space in recorded.spaces for point in space if point not in defaults]
    return defaults + random.Random(seed).sample(rest, TRIALS - len(defaults))


def test_the_search_beats_random_search_on_recorded_tables() -> None:
    tables = [table(seed) for seed in range(8)]
    found = [curve(recorded, searched(recorded, seed)) for seed, recorded in enumerate(tables)]
    chance = [
        [curve(recorded, random_points(recorded, 100 * seed + repeat)) for repeat in range(20)]
        for seed, recorded in enumerate(tables)
    ]
    searched_gap = fmean(fmean(gaps) for gaps in found)
    random_gap = fmean(fmean(fmean(gaps) for gaps in repeats) for repeats in chance)
    assert searched_gap < 0.65 * random_gap
    assert fmean(gaps[-1] for gaps in found) < 0.45 * fmean(fmean(g[-1] for g in repeats) for repeats in chance)
