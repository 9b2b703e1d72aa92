"""``py.typed``: a package that imports an installed autotune is checked against its types."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODULE = """
import autotune


def tuned(model: object) -> float:
    return autotune.tune(model, {}, trials=4).seconds


objective = autotune.Objective(name="latency_p50")
metric: autotune.Metric = autotune.Metric(function="metric.py:close", at_least=0.9)
"""
WRONG = """
name: int = objective.name
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """An environment with autotune as a wheel lays it out, and a folder for a package of its user."""
    folder = tmp_path_factory.mktemp("typed")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    ignored = shutil.ignore_patterns("__pycache__", "backends", "search_spaces")
    shutil.copytree(ROOT / "autotune", site / "autotune", ignore=ignored)
    for top in ("backends", "search_spaces"):
        shutil.copytree(ROOT / top, site / "autotune" / top, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "plugin").mkdir()
    (folder / "plugin" / "__init__.py").touch()
    return folder


def check(user, text):
    """Let mypy check the user's package in that environment; return its lines."""
    (user / "plugin" / "speed.py").write_text(text)
    python = user / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={python}", "plugin"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=user, env={"PATH": ""}, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    return ran.stdout.splitlines()


def test_a_right_use_passes_and_a_wrong_one_is_reported(user):
    assert check(user, MODULE)[-1].startswith("Success")
    error, summary = check(user, MODULE + WRONG)
    line = MODULE.count("\n") + 2
    assert error.startswith(f"plugin/speed.py:{line}: error: Incompatible types in assignment")
    assert summary.startswith("Found 1 error")


def test_without_the_marker_types_would_not_count(user):
    (marker,) = user.glob("venv/lib/python*/site-packages/autotune/py.typed")
    marker.rename(marker.with_suffix(".away"))
    try:
        lines = check(user, MODULE + WRONG)
    finally:
        marker.with_suffix(".away").rename(marker)
    assert any("py.typed" in line for line in lines) and not any("Incompatible" in line for line in lines)
