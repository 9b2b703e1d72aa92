"""The groups of tests themselves: what is in no quick group, and that their lists name files that are there."""

import subprocess
import sys

import pytest

from tests import groups

SAMPLE = """
import time
import pytest
from autotune.execute.server import WorkerServer

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with WorkerServer(tmp_path_factory.mktemp("server")) as server:
        yield server

def test_moments(): ...

def test_workers_of_its_own(tmp_path):
    with pytest.raises(Exception), WorkerServer(tmp_path):
        raise AssertionError("it was started")

def test_shared_workers(server):
    raise AssertionError("they were started")

@pytest.mark.slow
def test_slow():
    raise AssertionError("it ran")

def test_long():
    end_s = time.process_time() + 0.3
    while time.process_time() < end_s:
        pass
"""


def test_quick_tests_start_no_workers_and_take_moments(tmp_path):
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [
        *(sys.executable, "-m", "pytest", "--quick", "-rA", "-p", "tests.conftest", "-p", "no:cacheprovider"),
        *("-c", str(groups.TESTS.parent / "pyproject.toml"), str(tmp_path)),
    ]
    limit = f"import sys, pytest, tests.groups; tests.groups.QUICK_S = 0.2; sys.exit(pytest.main({command[3:]}))"
    ran = subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True, cwd=groups.TESTS.parent)
    lines = ran.stdout.splitlines()
    results = {line.split("::")[-1].split(" - ")[0]: line.split()[0] for line in lines if "::test_" in line}
    assert results == {"test_moments": "PASSED", "test_long": "ERROR"}, ran.stdout
    assert "1 deselected" in lines[-1] and "2 skipped" in lines[-1]
    assert sum("starts worker processes" in line for line in lines) == 2
    assert "a quick test took 0.3 s of CPU" in ran.stdout


ON_THE_DEVICE = [path for paths in groups.ON_THE_DEVICE.values() for path in paths]


@pytest.mark.parametrize(
    "paths", [groups.SLOW, groups.ALONE, groups.NOT_ALONE, groups.THOROUGH, groups.COMPILATION, ON_THE_DEVICE]
)
def test_every_listed_path_and_test_is_there(paths):
    for entry in paths:
        path, _, name = entry.partition("::")
        assert (groups.TESTS / path).exists(), path
        assert not name or f"def {name}(" in (groups.TESTS / path).read_text(), entry


def test_a_file_runs_alone_for_its_folder_unless_it_is_listed():
    assert groups.runs_alone(groups.TESTS / "execute/test_faults.py")
    assert all(groups.listed(groups.TESTS / name, groups.ALONE) for name in groups.NOT_ALONE)
    assert not any(groups.runs_alone(groups.TESTS / name) for name in (*groups.NOT_ALONE, "cli/test_main.py"))


def test_one_process_runs_a_group_of_files_that_hold_the_device_and_others_by_file():
    assert groups.unit_of("tests/study/test_study.py::test_a[b@c]") == "study"
    assert groups.unit_of("tests/cli/test_tune.py::test_a") == groups.unit_of("tests/examples/test_readme.py::test_b")
    assert groups.unit_of("tests/cli/test_main.py::TestA::test_a") == "tests/cli/test_main.py"
    assert groups.unit_of("tests/backends/native/test_passes.py::test_a") == "tests/backends/native/test_passes.py"
    assert set(groups.ON_THE_DEVICE) < set(groups.ORDER)
