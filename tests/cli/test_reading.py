"""The commands that read the tuning database: plan, trials, compare, db."""

import json
from dataclasses import replace

import pytest

from autotune.database.store import Store
from autotune.records.plan import Plan
from tests.database import records


def words(text):
    return " ".join(text.replace("│", " ").replace("┃", " ").split())


def test_plan_show_prints_everything_about_one_plan(autotune, database):
    result = autotune("plan", "show", "resnet50", "--batch", "1", "--device", "h200", "--db", database, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    plan = Plan.from_dict(document)
    assert (plan.name, plan.batch, plan.device.sku, plan.latency_ms) == ("resnet50", 1, "nvidia-h200", 1.0)
    assert document["backend"] == "inductor"
    assert document["toolchain"] == {"torch": "2.13.0"}
    assert {"artifact", "evidence", "device_class", "status", "speedup"} <= set(document)
    assert document["evidence"]["finalists"][0]["samples_ms"]


def test_plan_show_without_batch_and_device_shows_all(autotune, database):
    documents = json.loads(autotune("plan", "show", "resnet50", "--db", database, "--json").stdout)
    assert sorted((each["batch"], each["device_class"].split("/")[0]) for each in documents) == [
        (1, "nvidia-a100"),
        (1, "nvidia-h200"),
        (32, "nvidia-h200"),
    ]


def test_plan_show_for_people(autotune, database):
    result = autotune("plan", "show", "resnet50", "--batch", "1", "--device", "nvidia-h200", "--db", database)
    text = words(result.stdout)
    assert result.exit_code == 0
    for part in ("inductor: fp16, freezing=yes", "1.000 [0.9000 – 1.100] ms", "speedup 2.00×", "NVIDIA H200", "Finals"):
        assert part in text
    assert "eager: fp32 2.000 [1.990 – 2.010]" in text


def test_plan_list(autotune, database):
    rows = json.loads(autotune("plan", "list", "--db", database, "--json").stdout)
    assert len(rows) == 3
    assert all("evidence" not in row for row in rows)
    assert len(json.loads(autotune("plan", "list", "--db", database, "--batch", "32", "--json").stdout)) == 1
    text = words(autotune("plan", "list", "--db", database, "--device", "a100").stdout)
    assert "nvidia-a100/whole/400w" in text
    assert "h200" not in text


def test_the_database_may_come_from_the_environment(autotune, database, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_DB", database)
    assert len(json.loads(autotune("plan", "list", "--json").stdout)) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "show", "bert"], ["no plan for bert", "resnet50 at batch 1 on nvidia-h200", "autotune plan list"]),
        (["plan", "show", "resnet50", "--batch", "7"], ["at batch 7", "resnet50 at batch 32"]),
        (["plan", "show", "resnet50", "--device", "nvidia"], ["could be several", "nvidia-a100, nvidia-h200"]),
        (["plan", "show", "resnet50", "--device", "cpu"], ["no plan for resnet50"]),
        (["plan", "show", "resnet50", "--device", "cuda:99"], ["cuda:99 is not there"]),
        (["trials", "bert"], ["no study bert", "resnet50 at batch 1"]),
        (["compare", "bert"], ["no plan of bert", "resnet50"]),
        (["db", "export", "bert", "--out", "x.zip"], ["bert", "resnet50"]),
        (["db", "merge", "absent.zip"], ["absent.zip", "no such file"]),
    ],
)
def test_a_wrong_request_exits_with_2_and_one_message(autotune, database, arguments, says):
    result = autotune(*arguments, "--db", database, *(["--json"] if arguments[0] != "db" else []))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for part in says:
        assert part in result.stderr


@pytest.mark.parametrize("arguments", [["plan", "list"], ["plan", "show", "x"], ["trials", "x"], ["compare"]])
def test_reading_makes_no_database(autotune, tmp_path, arguments):
    path = tmp_path / "absent.db"
    result = autotune(*arguments, "--db", path)
    assert result.exit_code == 2
    assert "autotune tune" in result.stderr
    assert not path.exists()


def test_a_file_that_is_no_database(autotune, tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("not a database, just some notes " * 50)
    result = autotune("plan", "list", "--db", path)
    assert result.exit_code == 2
    assert "notes.db" in result.stderr


def test_trials(autotune, database):
    rows = json.loads(autotune("trials", "resnet50", "--db", database, "--json").stdout)
    assert [(row["number"], row["state"], row["batch"]) for row in rows] == [(0, "complete", 1), (1, "failed", 1)]
    assert rows[0]["latency_ms"] == 1.1
    assert rows[0]["failure"] is None
    assert rows[0]["configuration"]["backend"] == "inductor"
    assert (rows[1]["failure"]["stage"], rows[1]["failure"]["kind"], rows[1]["latency_ms"]) == ("build", "crash", None)
    failed = json.loads(autotune("trials", "resnet50", "--failed", "--db", database, "--json").stdout)
    assert [row["number"] for row in failed] == [1]
    text = words(autotune("trials", "resnet50", "--failed", "--db", database).stdout)
    assert "1 failed" in text
    assert "build: crash: signal 11" in text
    assert "the linker said no" in text


def cells(result):
    """The batch and the cell of each plan of a comparison."""
    workloads = json.loads(result.stdout)["workloads"]
    return [(entry["batch"], cell) for entry in workloads for cell in entry["cells"] if cell["plan"] is not None]


def test_compare_has_one_row_a_device_class(autotune, database):
    rows = cells(autotune("compare", "resnet50", "--db", database, "--json"))
    assert [(batch, cell["device"], cell["figures"]["latency"]["value"]) for batch, cell in rows] == [
        (1, "nvidia-h200", 1.0),
        (1, "nvidia-a100", 4.0),
        (32, "nvidia-h200", 8.0),
    ]
    assert rows[1][1]["plan"]["baseline_latency_ms"] == 6.0
    assert rows[1][1]["figures"]["latency"]["interval"] == [3.9, 4.2]
    assert rows[1][1]["plan"]["speedup"] == 1.5
    only = cells(autotune("compare", "resnet50", "--devices", "a100", "--db", database, "--json"))
    assert [cell["device"] for _, cell in only] == ["nvidia-a100"]
    assert len(cells(autotune("compare", "--devices", "a100,h200", "--db", database, "--json"))) == 3
    text = words(autotune("compare", "--db", database).stdout)
    assert "resnet50, batch 1, latency_p50" in text
    assert "nvidia-a100/whole/400w 6.000 ms" in text
    assert "4.000 [3.900 – 4.200] ms" in text


def test_plans_of_two_structures_under_one_name_are_all_shown_or_picked(autotune, database):
    other = records.plan("other", replace(records.workload(), structure=records.digest("other")), latency_ms=3.0)
    with Store.open(database) as store:
        store.plans.promote(other)
    known, new = records.workload().structure[:8], other.structure[:8]
    asked = ("--batch", "1", "--device", "h200", "--db", database)
    text = words(autotune("plan", "list", *asked).stdout)
    assert "device structure plan" in text and known in text and new in text
    for command in ("show", "explain"):
        begin = ("plan", "show") if command == "show" else (command,)
        text = words(autotune(*begin, "resnet50", *asked).stdout)
        assert f"resnet50, batch 1, structure {known}" in text and f"resnet50, batch 1, structure {new}" in text
        both = json.loads(autotune(*begin, "resnet50", *asked, "--json").stdout)
        assert sorted(each["structure"][:8] for each in both) == sorted([known, new])
        picked = json.loads(autotune(*begin, "resnet50", "--structure", new[:4], *asked, "--json").stdout)
        assert (picked["structure"], picked["weights"]) == (other.structure, other.weights)
        refused = autotune(*begin, "resnet50", "--structure", "zz", *asked)
        assert refused.exit_code == 2 and known in refused.stderr and new in refused.stderr
    rows = cells(autotune("compare", "resnet50", "--db", database, "--batch", "1", "--json"))
    assert {(cell["device"], cell["plan"]["structure"][:8]) for _, cell in rows} == {
        ("nvidia-h200", known),
        ("nvidia-h200", new),
        ("nvidia-a100", known),
    }


def test_export_and_merge_carry_plans(autotune, database, tmp_path):
    file, other = tmp_path / "resnet50.zip", tmp_path / "other.db"
    assert autotune("db", "export", "resnet50", "--out", file, "--db", database).exit_code == 0
    first = json.loads(autotune("db", "merge", file, "--db", other, "--json").stdout)
    assert first["trials"] == {"added": 2, "known": 0}
    again = json.loads(autotune("db", "merge", file, "--db", other, "--json").stdout)
    assert again["trials"] == {"added": 0, "known": 2}
    assert len(json.loads(autotune("plan", "list", "--db", other, "--json").stdout)) == 3


def test_check_lists_what_is_wrong_and_gc_deletes_what_nothing_needs(autotune, database):
    sound = autotune("db", "check", "--db", database)
    assert sound.exit_code == 0 and "are sound" in words(sound.stdout)
    with Store.open(database) as store, store.artifacts.scratch() as folder:
        (folder / "half").write_bytes(b"x" * 2**20)
        half = folder.parent / "half"
        (folder / "half").rename(half)
    document = json.loads(autotune("db", "check", "--db", database, "--json").stdout)
    assert [finding["kind"] for finding in document["findings"]] == ["leftover"]
    table = autotune("db", "check", "--db", database)
    assert table.exit_code == 1 and "temporary/half" in words(table.stdout) and "1 leftover" in words(table.stdout)
    would = words(autotune("db", "gc", "--dry-run", "--db", database).stdout)
    assert "would delete 0 artifacts, 0 blobs and 1 leftovers (1.0 MiB)" in would and half.exists()
    done = json.loads(autotune("db", "gc", "--db", database, "--json").stdout)
    assert done["deleted"] and done["leftovers"] == ["temporary/half"] and not half.exists()
    assert autotune("db", "check", "--db", database).exit_code == 0


def test_upgrade_makes_a_database(autotune, tmp_path):
    path = tmp_path / "new" / "autotune.db"
    assert autotune("db", "upgrade", "--db", path).exit_code == 0
    assert json.loads(autotune("plan", "list", "--db", path, "--json").stdout) == []
    assert "no plan yet" in autotune("plan", "list", "--db", path).stdout


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["plan", "show"], ["plan", "list", "--batch", "x"], ["--nonsense"]]
)
def test_wrong_arguments_exit_with_2(autotune, arguments):
    result = autotune(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_help_names_every_command(autotune):
    result = autotune("--help")
    assert result.exit_code == 0
    for command in ("tune", "plan", "trials", "compare", "db", "doctor"):
        assert command in result.stdout


def test_a_plan_that_another_study_replaced_is_explained(autotune, tmp_path):
    path = tmp_path / "replaced.db"
    with Store.open(str(path)) as store:
        study = records.begin(store, "former")
        unfinished = autotune("plan", "show", "former", "--db", path)
        store.studies.finish(study.uid, {})
        replaced = autotune("plan", "show", "former", "--db", path)
    assert "a study that has not ended" in unfinished.stderr
    assert "under another name has replaced" in replaced.stderr and replaced.exit_code == unfinished.exit_code
