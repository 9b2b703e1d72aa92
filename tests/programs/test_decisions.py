import json

import numpy as np
import pytest

from autotune.programs import decisions
from autotune.programs.decisions import SCENARIOS, Scenario, decide, main, result_of, simulate


@pytest.fixture(scope="module", autouse=True)
def short_timing():
    """Keep the product's own rules, which conftest.py shortens for other tests: the simulation is about them."""


BY_NAME = {row.name: row for row in SCENARIOS}


def test_the_program_prints_and_writes_every_row(tmp_path, monkeypatch, capsys):
    rows = [row for row in SCENARIOS if not row.judged][:2]
    monkeypatch.setattr(decisions, "SCENARIOS", rows)
    file = tmp_path / "decisions.json"
    assert main(["--repeats", "3", "--seed", "1", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["repeats"] == 3 and document["quick"]
    assert [row["group"] for row in document["checks"]] == [row.name for row in rows for _ in (3, 5)]
    assert "undecided" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [3, 5])
def test_a_true_lead_is_found_with_one_process_ten_times_slower(processes):
    shares = simulate(BY_NAME["1.5x faster, one process ten times slower"], processes, 30, seed=0)
    assert shares["faster"] == 1.0 and shares["slower"] == 0.0


@pytest.mark.parametrize("name", ["equals, outlying processes", "equals, a neighbour that hurts one of them"])
def test_equals_are_seldom_found_different(name):
    shares = simulate(BY_NAME[name], 5, 60, seed=0)
    assert shares["faster"] + shares["slower"] <= 0.1


def test_a_lasting_load_is_no_lead():
    shares = simulate(BY_NAME["equals, a lasting load that hurts one of them"], 5, 5, seed=0)
    assert shares["undecided"] == 1.0


def test_a_row_that_misses_its_limit_fails():
    row = Scenario(name="equals", noise=decisions.Quiet)
    shares = {"faster": 0.04, "slower": 0.02, "undecided": 0.0, "first_look": 0.0}
    assert not result_of(row, 5, shares).passed
    assert result_of(row, 5, {**shares, "slower": 0.01}).passed
    lead = Scenario(name="lead", noise=decisions.Quiet, lead=0.4, limit=0.99)
    assert not result_of(lead, 5, {**shares, "faster": 0.98}).passed
    assert result_of(lead, 5, {**shares, "faster": 0.99}).passed


def test_a_race_has_the_processes_to_its_first_look_and_one_for_each_further_one():
    noise = decisions.UnlikeProcesses(np.random.default_rng(1), 0.0, 3)
    verdict, looks = decide(noise, 3)
    assert verdict.rounds == 20 * looks and 1 <= looks <= 5
