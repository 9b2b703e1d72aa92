import json

import pytest

from autotune.programs import deployed_cost
from autotune.programs.deployed_cost import main


@pytest.fixture
def _generous(monkeypatch):
    """A host that is busy with other tests keeps no limit."""
    monkeypatch.setattr(deployed_cost, "OVERHEAD_US", 1e6)
    monkeypatch.setattr(deployed_cost, "FIRST_ANSWER_S", 1e6)


@pytest.mark.usefixtures("_generous")
def test_calls_and_first_answers_are_timed(tmp_path):
    file = tmp_path / "times.json"
    assert main(["--rounds", "3", "--runs", "1", "--backends", "torchscript", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    by_position, by_name, bundle, plan = document["checks"]
    assert by_position["check"] == "torchscript: a call by position, beyond its runner"
    assert len(by_name["raw"]["plan_us"]) == len(by_name["raw"]["runner_us"]) == 3
    assert all(0 < first["raw"]["seconds"][0] < 60 for first in (bundle, plan))
    assert document["quick"] is True


def test_a_limit_that_is_not_kept_fails(monkeypatch):
    monkeypatch.setattr(deployed_cost, "OVERHEAD_US", -1e6)
    monkeypatch.setattr(deployed_cost, "_first_answers", lambda folder, runs: [])
    assert main(["--rounds", "1", "--runs", "1", "--backends", "torchscript"]) == 1
