import json

import pytest

from autotune.programs.check_result import CheckResult
from autotune.programs.reliability import main as program
from autotune.programs.reliability import postgresql

DONE = CheckResult(check="promise", figure="0", limit="0", passed=True)


@pytest.fixture
def seen(monkeypatch):
    """What the one promise of the program was run on."""
    seen = []

    def promise(campaign):
        seen.append(dict(campaign.databases))
        return [DONE]

    monkeypatch.setattr(program, "PROMISES", {"promise": promise})
    return seen


@pytest.mark.parametrize("form", ["--postgresql={}", "--postgresql {}"])
def test_the_password_of_a_database_is_not_in_the_file_or_on_the_screen(seen, tmp_path, capsys, form):
    url = "postgresql://me:hunter2%40@127.0.0.1:1/tuning"
    assert program.main([*form.format(url).split(), "--json", str(tmp_path / "out.json")]) == 0
    assert seen[0]["postgresql"] == url
    written = (tmp_path / "out.json").read_text()
    assert "postgresql://me@127.0.0.1:1/tuning" in json.loads(written)["command"]
    assert "hunter2" not in written + "".join(capsys.readouterr())


def test_a_server_is_started_where_it_is_asked_for(seen, postgresql):
    assert program.main(["--postgresql", "auto"]) == 0
    assert seen[0]["postgresql"].startswith("postgresql+psycopg://autotune:")


def test_without_postgresql_the_command_that_installs_it_is_said(seen, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(postgresql, "PACKAGED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program.main(["--postgresql", "auto"]) == 2
    assert seen == [] and "apt-get install -y postgresql" in capsys.readouterr().err


def test_without_a_gpu_what_needs_one_is_left_out(monkeypatch):
    ran = []
    monkeypatch.setattr(program, "PROMISES", {program.DEVICE_FAULTS: ran.append, "other": lambda _: [DONE]})
    assert program.main([]) == 0 and ran == []


def test_what_needs_a_gpu_is_refused_on_a_cpu_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(program, "PROMISES", {program.DEVICE_FAULTS: lambda _: [DONE], "other": lambda _: [DONE]})
    assert program.main(["--only", program.DEVICE_FAULTS]) == 2
    assert "--device cuda:0" in capsys.readouterr().err
