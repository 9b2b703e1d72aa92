import json
import shutil

import pytest

from autotune.programs import comparison_cost
from autotune.programs.comparison_cost import main


def test_the_command_and_the_page_are_timed(tmp_path, capsys):
    file = tmp_path / "times.json"
    assert main(["--workloads", "2", "--trials", "100", "--runs", "1", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    command, page, size, paint = document["checks"]
    assert command["check"] == "autotune compare --json, 100 trials" and command["raw"]["seconds"][0] > 0
    assert page["check"] == "page of 2 workloads, 16 rows" and size["raw"]["bytes"] > 1e6
    assert ("seconds" in paint["raw"]) == (shutil.which("chromium") is not None)
    assert document["quick"] is True


@pytest.mark.parametrize("limit", ["COMMAND_S", "PAGE_S", "PAGE_MB"])
def test_a_limit_that_is_not_kept_fails(monkeypatch, limit):
    monkeypatch.setattr(comparison_cost, limit, 1e-6)
    monkeypatch.setattr(comparison_cost.shutil, "which", lambda name: None)
    assert main(["--workloads", "1", "--trials", "1", "--runs", "1"]) == 1
