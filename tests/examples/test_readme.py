"""The README's program runs, and its line that installs works from the checkout."""

import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.docs.pages import README, ROOT, blocks, shell_commands


@pytest.mark.timeout(900)
def test_the_program_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "plans.db"))
    program = tmp_path / "program.py"
    program.write_text("\n".join([*blocks(README, "python"), "print(fast)"]))
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True)
    if "could not decide" in done.stderr:
        done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan, shape, loaded = done.stdout.splitlines()[-3:]
    shown = blocks(README, "text")[0].splitlines()
    form = r"<OptimizedModel classifier: (\w+)\(.+\), [\d.]+ ms, [\d.]+x>"
    assert re.fullmatch(form, plan)
    assert re.fullmatch(form, shown[0])
    assert shape == shown[1]
    assert loaded == plan, "what is loaded at deploy time is what was found"


def test_the_package_installs_from_the_checkout_as_written(tmp_path):
    (line,) = [command for command in shell_commands(README) if command.startswith("pip install")]
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    # What the package needs is that of the environment of the tests, so that nothing is downloaded.
    Path(site, "needs.pth").write_text(sysconfig.get_path("purelib"))
    arguments = shlex.split(line)[2:]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = subprocess.run([tmp_path / "venv" / "bin" / "autotune", "--version"], capture_output=True, text=True)
    assert re.match(r"\d+\.\d+\.\d+", printed.stdout)
