"""``autotune reproduce``, and the command for it that ``autotune trials --failed`` prints."""

import json
import shlex

import pytest

from autotune.database.store import Store
from autotune.records.trial import Failure
from autotune.runtime import discovery
from autotune.study.reproduce import Reproduction
from tests.database import records

SETTINGS = {"factory": "models.py:make", "inputs": []}


@pytest.fixture
def two(tmp_path):
    """Two studies of one name and batch with a failed trial each, one of another batch, one from Python."""
    path = str(tmp_path / "autotune.db")
    with Store.open(path) as store:
        studies = [
            records.begin(store, settings=SETTINGS, device=discovery.cpu()),
            records.begin(store, settings=SETTINGS, device=discovery.cpu(), seed=1),
            records.begin(store, settings=SETTINGS, device=discovery.cpu(), workload=records.workload(batch=32)),
            records.begin(store, "from-python", settings={"factory": None}),
        ]
        uids = []
        for study in studies:
            claimed = store.trials.claim(study.uid, records.configuration(1), records.TOOLCHAIN.digest)
            store.trials.finish(records.failed(claimed))
            uids.append(claimed.uid)
    return path, uids


@pytest.fixture
def again(monkeypatch):
    """Play the reproduction; what it was asked is kept."""
    asked = []

    def play(row, trial, store, device, output):
        asked.append((row, trial, device))
        print("from a worker")
        failure = Failure(stage="build", kind="crash", detail="signal 11")
        return Reproduction(study=row.name, batch=row.batch, trial=trial, failure=failure, notes=("another torch",))

    monkeypatch.setattr("autotune.study.reproduce.reproduce", play)
    return asked


def test_each_failed_trial_is_printed_with_its_command_and_the_command_runs(autotune, two, again):
    path, uids = two
    text = autotune("trials", "resnet50", "--failed", "--db", path).stdout
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith("autotune reproduce")]
    assert commands == [
        f"autotune reproduce resnet50 {uids[0]} --batch 1 --db {path}",
        f"autotune reproduce resnet50 {uids[1]} --batch 1 --db {path}",
        f"autotune reproduce resnet50 0 --batch 32 --db {path}",
    ]
    for command, uid in zip(commands, uids, strict=False):
        result = autotune(*shlex.split(command)[1:])
        assert result.exit_code == 1
        assert again[-1][1].uid == uid and again[-1][2] == discovery.cpu()
        for part in ("then: build: crash: signal 11", "now: build: crash", "note: another torch", "as it did then"):
            assert part in " ".join(result.stdout.split())
    rows = json.loads(autotune("trials", "resnet50", "--batch", "32", "--db", path, "--json").stdout)
    assert [row["reproduce"] for row in rows] == [commands[2]]


def test_a_study_from_python_has_no_command(autotune, two):
    text = autotune("trials", "from-python", "--failed", "--db", two[0]).stdout
    assert "signal 11" in text and "autotune reproduce" not in text


def test_json_is_one_document(autotune, two, again):
    result = autotune("reproduce", "resnet50", two[1][2], "--db", two[0], "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (document["batch"], document["same"], document["failure"]["kind"]) == (32, True, "crash")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bert", "0"], "no study bert"),
        (["resnet50", "7", "--batch", "32"], "no such trial"),
        (["resnet50", "0"], "3 trials of that number"),
        (["from-python", "0"], "nvidia-h200"),
    ],
)
def test_a_wrong_request_exits_with_2(autotune, two, arguments, says):
    result = autotune("reproduce", *arguments, "--db", two[0])
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
