import json

import numpy as np
import pytest

from autotune.measure.block import Block, protocol_of
from autotune.measure.finals import Finals
from autotune.measure.verdict import verdict_from_samples
from autotune.records.trial import Measurement


def drive(finals, latency_ms, process_rounds=None):
    """Run finals as a coordinator does; ``latency_ms(name, round)`` is what the blocks hold."""
    process = 0
    while finals.next_rounds():
        finals.freeze()
        count = min(finals.next_rounds(), process_rounds or 100)
        blocks = [
            {name: Block(samples_ms=(latency_ms(name, finals.rounds + step),)) for name in finals.running}
            for step in range(count)
        ]
        finals.add(process, blocks)
        process += 1
        verdict = finals.look()
        if verdict is not None:
            return verdict, process
    return None, process


def noisy(rng, latencies, noise=0.01):
    return lambda name, _: float(latencies[name] * np.exp(rng.normal(0, noise)))


def differing(rng, finals, between, lead):
    """Blocks in which ``a`` has a lead of its own in each process that :func:`drive` starts, with 1% of noise."""
    leads: dict[int, float] = {}

    def latency_ms(name, _):
        own = leads.setdefault(finals.rounds, rng.normal(lead, between))
        return 10.0 if name == "eager" else float(10.0 * np.exp(rng.normal(0, 0.01) - own))

    return latency_ms


def test_the_way_to_the_first_look_is_shared_by_three_processes():
    finals = Finals(["eager", "a"], baselines=["eager"])
    counts = []
    while finals.rounds < 20:
        counts.append(finals.next_rounds())
        finals.add(len(counts), [{name: Block(samples_ms=(1.0,)) for name in ("eager", "a")}] * counts[-1])
    assert counts == [7, 7, 6]
    assert finals.next_rounds() == 20


def test_candidates_are_those_that_run_and_are_no_baselines():
    finals = Finals(["eager-1", "eager-2", "a", "b"], baselines=["eager-1", "eager-2"])
    assert finals.candidates == ("a", "b")
    finals.drop("a")
    finals.drop("eager-1")
    assert finals.candidates == ("b",)


def test_a_clear_race_ends_at_the_first_look():
    verdict, processes = drive(
        Finals(["eager", "a"], baselines=["eager"]), noisy(np.random.default_rng(0), {"eager": 10.0, "a": 5.0})
    )
    assert (verdict.winner, verdict.status, verdict.rounds, processes) == ("a", "promoted", 20, 3)


def test_no_verdict_before_three_processes():
    finals = Finals(["eager", "a"], baselines=["eager"])
    blocks = {"eager": Block(samples_ms=(10.0,)), "a": Block(samples_ms=(5.0,))}
    finals.add(0, [blocks] * 20)
    assert finals.look() is None
    finals.add(1, [blocks] * 2)
    assert finals.look() is None
    finals.add(2, [blocks])
    assert finals.look().winner == "a"


def test_an_open_race_goes_on_to_the_last_look_and_looks_at_most_five_times(monkeypatch):
    looks = []
    conclude = Finals.conclude

    def counted(self):
        looks.append(self.rounds)
        return conclude(self)

    monkeypatch.setattr(Finals, "conclude", counted)
    rng = np.random.default_rng(1)
    finals = Finals(["eager", "a"], baselines=["eager"])
    verdict, _ = drive(finals, noisy(rng, {"eager": 10.0, "a": 10.0}, noise=0.2), process_rounds=7)
    assert verdict.status == "undecided" and verdict.tied_with == ("a",) and not verdict.settled
    assert len(looks) == 5 and all(
        0 <= found - look < 7 for found, look in zip(looks, (20, 40, 60, 80, 100), strict=True)
    )
    assert finals.next_rounds() == 0 and finals.look() is None


def test_equals_known_to_half_a_percent_end_early():
    verdict, _ = drive(
        Finals(["eager", "a"], baselines=["eager"]),
        noisy(np.random.default_rng(2), {"eager": 10.0, "a": 10.0}, noise=0.001),
    )
    assert (verdict.status, verdict.rounds, verdict.settled) == ("baseline", 20, True)


def test_equals_over_five_looks_give_few_false_winners():
    promoted = 0
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        verdict, _ = drive(Finals(["eager", "a"], baselines=["eager"]), noisy(rng, {"eager": 10.0, "a": 10.0}, 0.03))
        promoted += verdict.status != "baseline"
    # At 5%, 18 or more of 200 have a probability of 1.3%.
    assert promoted <= 17


@pytest.mark.parametrize("processes", [3, 5])
def test_equals_whose_processes_differ_give_few_false_winners(processes):
    told_apart = 0
    for seed in range(200):
        rng = np.random.default_rng(2000 + seed)
        finals = Finals(["eager", "a"], baselines=["eager"], processes=processes)
        verdict, _ = drive(finals, differing(rng, finals, 0.01, lead=0.0))
        told_apart += verdict.status != "baseline" or not verdict.tied_with
    # At 5%, 18 or more of 200 have a probability of 1.3%; the rounds alone give about 100.
    assert told_apart <= 17


def test_two_percent_are_found_where_processes_differ_little():
    for seed in range(40):
        rng = np.random.default_rng(3000 + seed)
        finals = Finals(["eager", "a"], baselines=["eager"])
        verdict, _ = drive(finals, differing(rng, finals, 0.002, lead=0.02))
        assert (verdict.winner, verdict.status) == ("a", "promoted")


def test_far_slower_finalists_are_frozen_but_not_the_baseline():
    latencies = {"eager": 10.0, "a": 5.0, "b": 5.01, "slow": 6.0, "near": 5.3}
    finals = Finals(list(latencies), baselines=["eager"])
    verdict, _ = drive(finals, noisy(np.random.default_rng(3), latencies, 0.005))
    assert finals.freeze() == {"slow"}
    assert verdict.of("slow").frozen and verdict.of("slow").rounds == 14
    assert verdict.of("eager").rounds == verdict.rounds and not verdict.of("eager").frozen
    assert verdict.winner in ("a", "b")


def test_freezing_needs_eight_rounds_all_of_them_far_behind():
    def after(rounds, last_ms):
        finals = Finals(["eager", "a", "slow"], baselines=["eager"])
        for index in range(rounds):
            slow_ms = last_ms if index == rounds - 1 else 9.0
            values = {"eager": 8.0, "a": 5.0, "slow": slow_ms}
            finals.add(index, [{name: Block(samples_ms=(value,)) for name, value in values.items()}])
        return finals.freeze()

    assert after(7, 9.0) == frozenset()
    assert after(8, 9.0) == {"slow"}
    assert after(8, 5.4) == frozenset()


def test_a_baseline_that_another_baseline_outruns_is_frozen():
    latencies = {"eager-1": 10.0, "eager-2": 20.0, "a": 5.0}
    finals = Finals(list(latencies), baselines=["eager-1", "eager-2"])
    verdict, _ = drive(finals, noisy(np.random.default_rng(4), latencies))
    assert finals.freeze() == {"eager-2"}
    assert (verdict.baseline, verdict.winner) == ("eager-1", "a")


def test_the_verdict_is_recomputed_from_stored_samples_frozen_ones_included():
    latencies = {"eager": 10.0, "a": 5.0, "b": 5.2, "slow": 9.0}
    keys = {name: (name,) for name in latencies}
    finals = Finals(list(latencies), baselines=["eager"], tie_keys=keys)
    verdict, _ = drive(finals, noisy(np.random.default_rng(5), latencies, 0.02))
    stored = json.loads(json.dumps(finals.samples()))
    processes = finals.measurement(verdict.winner, {}).conditions["processes"]
    assert None in stored["slow"]
    assert verdict_from_samples(stored, baselines=["eager"], tie_keys=keys, processes=processes) == verdict


def test_conclude_decides_with_what_there_is():
    finals = Finals(["eager", "a"], baselines=["eager"])
    with pytest.raises(ValueError):
        finals.conclude()
    blocks = {"eager": Block(samples_ms=(10.0,)), "a": Block(samples_ms=(5.0,))}
    finals.add(0, [blocks] * 6)
    assert finals.conclude().status == "undecided"
    finals.add(1, [blocks])
    assert finals.conclude().status == "promoted"


def test_a_failed_finalist_is_forgotten():
    finals = Finals(["eager", "a", "b"], baselines=["eager"])
    one = Block(samples_ms=(1.0,))
    finals.add(0, [{"eager": one, "a": one, "b": one}])
    finals.drop("b")
    finals.add(1, [{"eager": one, "a": one}])
    assert set(finals.samples()) == {"eager", "a"}
    with pytest.raises(ValueError, match="only baseline"):
        finals.drop("eager")
    with pytest.raises(ValueError, match="unknown"):
        finals.drop("b")


def test_rounds_with_other_finalists_are_refused_whole():
    finals = Finals(["eager", "a"], baselines=["eager"])
    one = Block(samples_ms=(1.0,))
    with pytest.raises(ValueError, match="expected"):
        finals.add(0, [{"eager": one, "a": one}, {"eager": one}])
    assert finals.rounds == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"baselines": []},
        {"baselines": ["absent"]},
        {"baselines": ["eager"], "tie_keys": {"eager": (1,)}},
        {"baselines": ["eager"], "processes": 0},
        {"baselines": ["eager"], "processes": 21},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError):
        Finals(["eager", "a"], **settings)


def test_a_measurement_keeps_blocks_with_round_process_and_place():
    finals = Finals(["eager", "a", "slow"], baselines=["eager"], processes=1)
    for process in range(2):
        values = {"eager": (3.0, 3.1), "a": (1.0, 1.1), "slow": (9.0, 9.1)}
        finals.add(
            process,
            [
                {
                    name: Block(samples_ms=values[name], cpu_ms=(0.5, 0.6), switches=(0, 1), position=place, grouped=2)
                    for place, name in enumerate(finals.running)
                }
            ]
            * 8,
        )
        finals.freeze()
    protocol = protocol_of("finals", "cpu", 3)
    measurement = finals.measurement("slow", protocol, {"seed": 4})
    assert measurement.samples_ms == ((9.0, 9.1),) * 8
    assert measurement.conditions["processes"] == [0] * 8 and measurement.conditions["rounds"] == list(range(8))
    assert measurement.conditions["positions"] == [2] * 8 and measurement.conditions["seed"] == 4
    assert measurement.conditions["switches"] == [[0, 1]] * 8
    assert measurement.protocol["name"] == "finals" and measurement.protocol["grouped"] == 2
    assert finals.measurement("a", protocol).conditions["processes"] == [0] * 8 + [1] * 8
    assert Measurement.from_dict(json.loads(json.dumps(measurement.as_dict()))) == measurement
