"""Commands that read, on a database that nobody may write."""

import json

import pytest

from autotune.database.store import Store
from tests.read_only import WAYS, run_python

MAIN = "from autotune.cli.main import main; main()"
COMMANDS = {
    "plan list": ["plan", "list"],
    "plan show": ["plan", "show", "resnet50"],
    "compare": ["compare"],
    "explain": ["explain", "resnet50", "--batch", "1"],
    "trials": ["trials", "resnet50"],
}


@pytest.fixture
def frozen(database, tmp_path):
    """The database of the fixture in a folder of its own, with the artifact of one plan."""
    folder = tmp_path / "frozen"
    with Store.open(database) as store:
        artifact = store.artifacts.add(_built(tmp_path / "built"))
        plan = store.plans.list(device="a100")[0]
        store.plans.replace_artifact(plan.uid, artifact, plan.weights, plan.toolchain)
    folder.mkdir()
    for path in tmp_path.glob("autotune*"):
        path.rename(folder / path.name)
    return folder


def _built(folder):
    folder.mkdir()
    (folder / "model.so").write_bytes(b"machine code")
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_read_as_any_other(frozen, command, way):
    database = str(frozen / "autotune.db")
    done = run_python(way, frozen, MAIN, *COMMANDS[command], "--db", database, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) >= 2


def test_what_would_write_says_that_it_is_read_only(frozen):
    database = str(frozen / "autotune.db")
    done = run_python("permissions", frozen, MAIN, "db", "gc", "--db", database)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "is read-only" in done.stderr and "--db PATH" in done.stderr
