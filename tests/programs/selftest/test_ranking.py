import pytest

from autotune.programs.selftest import ranking
from autotune.programs.selftest.ranking import check, race, scaled, tau_b, winner_regret
from autotune.programs.selftest.rig import Rig


def ladder(step, *, rounds=40, process=0, order=range(8), wobble=0.001):
    def samples(place):
        return [[(1 + step) ** place * (1 + wobble * ((7 * i + 3 * place + process) % 5))] for i in range(rounds)]

    return {str(name): samples(place) for name, place in zip(range(8), order, strict=True)}


def found(monkeypatch, processes):
    monkeypatch.setattr(ranking, "recorded", lambda rig: tuple(processes))
    return {outcome.check: outcome for outcome in check(Rig("cpu", quick=True))}


def test_processes_that_agree_pass(monkeypatch):
    rows = found(monkeypatch, [ladder(0.04, process=i) for i in range(3)])
    assert list(rows) == ["rank agreement", "regret/steps of 4.0%", "regret/steps of 0.4%"]
    assert all(row.passed for row in rows.values()), [row.figure for row in rows.values()]
    assert rows["rank agreement"].raw["taus"] == [1.0, 1.0, 1.0]
    regrets = rows["regret/steps of 4.0%"].raw
    assert regrets["live"] == [0.0] * 3 and regrets["replayed"] == [0.0] * 17


def test_one_process_that_disagrees_fails(monkeypatch):
    wrong = ladder(0.04, order=[3, 2, 1, 0, 4, 5, 6, 7])
    rows = found(monkeypatch, [ladder(0.04), ladder(0.04), wrong])
    assert not rows["rank agreement"].passed
    assert rows["rank agreement"].raw["taus"][0] == 1.0


def test_a_race_that_crowns_the_wrong_one_fails(monkeypatch):
    wrong = ladder(0.04, order=[4, 5, 6, 0, 1, 2, 3, 7])
    rows = found(monkeypatch, [wrong] * 3)
    assert not rows["regret/steps of 4.0%"].passed
    assert rows["regret/steps of 4.0%"].raw["live"][0] == pytest.approx(1.04**3 - 1, rel=1e-6)


def test_regret_is_by_the_amount_of_work():
    assert winner_regret(ladder(0.04), 0.04) == 0.0
    assert winner_regret(ladder(0.04, order=[1, 0, 2, 3, 4, 5, 6, 7]), 0.04) == pytest.approx(0.04)


def test_scaling_makes_the_steps_smaller():
    close = scaled(ladder(0.04, wobble=0.0), 1.004 / 1.04)
    assert [blocks[0][0] for blocks in close.values()] == pytest.approx([1.004**place for place in range(8)])


def test_tau_b():
    assert tau_b([1, 2, 3], [10, 20, 30]) == 1.0
    assert tau_b([1, 2, 3], [30, 20, 10]) == -1.0


def test_a_race_runs_every_candidate_in_every_round():
    samples = race("cpu", [2_000, 4_000], 3, 0)
    assert set(samples) == {"0", "1"}
    assert all(len(blocks) == 3 and all(blocks) for blocks in samples.values())


def test_a_host_that_changes_its_speed_between_rounds_does_not_change_the_order(monkeypatch):
    changing = {
        name: [[value * (1.5 if i % 3 else 1.0) for value in block] for i, block in enumerate(blocks)]
        for name, blocks in ladder(0.04).items()
    }
    rows = found(monkeypatch, [ladder(0.04), changing, ladder(0.04, process=1)])
    assert rows["rank agreement"].passed
