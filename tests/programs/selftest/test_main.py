import json
import subprocess
import sys

import pytest

from autotune.errors import DeviceError
from autotune.programs.check_result import CheckResult
from autotune.programs.selftest import main as selftest
from autotune.programs.selftest.rig import chosen_device


def test_the_short_form_runs_every_check_and_writes_the_table_and_the_file(tmp_path):
    """Real timings on whatever machine this is: what must hold is that all run to their end, not that all pass."""
    file = tmp_path / "found.json"
    arguments = ["-m", "autotune.programs.selftest", "--device", "cpu", "--quick", "--json", str(file)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240)
    document = json.loads(file.read_text())
    assert {row["group"] for row in document["checks"]} == set(selftest.CHECKS)
    assert not [row for row in document["checks"] if "broke off" in row["figure"]]
    assert done.returncode == (0 if document["passed"] else 1), done.stderr
    assert document["passed"] == all(row["passed"] for row in document["checks"])
    assert document["command"] == "python " + " ".join(arguments)
    assert document["environment"]["device"] == "cpu" and document["environment"]["versions"]["scipy"]
    for row in document["checks"]:
        assert row["check"] in done.stdout
    sure = {row["check"]: row["passed"] for row in document["checks"]}
    for check in ("known/fake clock", "faults", "summaries from samples", "coverage/skewed noise"):
        assert sure[check], check


@pytest.mark.gpu
def test_the_short_form_runs_on_a_gpu(tmp_path):
    file = tmp_path / "found.json"
    selftest.main(["--device", "cuda", "--quick", "--json", str(file)])
    document = json.loads(file.read_text())
    assert not [row for row in document["checks"] if "broke off" in row["figure"]]
    rows = {row["check"]: row for row in document["checks"]}
    assert rows["known/spin kernel"]["raw"]["truth"] == "%globaltimer"
    assert "aa/device clock" in rows


def test_sure_checks_alone_end_well(tmp_path, capsys):
    file = tmp_path / "found.json"
    assert selftest.main(["--device", "cpu", "--quick", "--only", "faults", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert [row["group"] for row in document["checks"]] == ["faults"]
    assert document["checks"][0]["seconds"] is not None
    assert "all 1 passed" in capsys.readouterr().out


def test_a_check_that_fails_gives_exit_code_1(monkeypatch, capsys):
    failing = CheckResult(check="hopeless", figure="2", limit="1", passed=False, raw={"found": 2})
    monkeypatch.setattr(selftest, "CHECKS", {**selftest.CHECKS, "faults": lambda rig: [failing]})
    assert selftest.main(["--device", "cpu", "--only", "faults"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_unknown_check_is_a_wrong_request(capsys):
    with pytest.raises(SystemExit) as refused:
        selftest.main(["--only", "faults,typo"])
    assert refused.value.code == 2
    assert "typo" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu", "cuda:-1", "cuda:x", "cuda:99", ""])
def test_a_device_that_is_not_there_is_a_wrong_request(name, capsys):
    with pytest.raises(DeviceError, match="expected: auto, cpu, cuda or cuda:N"):
        chosen_device(name)
    assert selftest.main(["--device", name, "--only", "faults"]) == 2
