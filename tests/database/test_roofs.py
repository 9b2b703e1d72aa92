"""Measured roofs between databases, in damaged ones, and in those of revision 0003, which has none."""

import json
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database import migrate
from autotune.database.check import check
from autotune.database.engine import engine_at, for_writing
from autotune.database.exchange import RECORDS, export_studies, merge_file
from autotune.database.location import locate
from autotune.database.reading import plan_reader
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.testing.sample_records import OTHER_DEVICE, sample_roofs
from tests.database.records import begin, plan
from tests.database.test_read_only import child
from tests.databases import Databases
from tests.read_only import WAYS

NEWER = sample_roofs(created="2026-06-01T00:00:00.000000+00:00", launch_us=4.0)


def test_studies_take_along_the_roofs_of_their_device_classes_and_the_newer_stay(
    databases: Databases, tmp_path: Path
) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there:
        begin(there)
        there.roofs.put(NEWER)
        there.roofs.put(sample_roofs(OTHER_DEVICE))
        assert export_studies(there, ["resnet50"], tmp_path / "study.zip")["roofs"] == 1
        assert export_studies(there, [], tmp_path / "all.zip")["roofs"] == 2
    with Store.open(databases.url(tmp_path / "b.db")) as here:
        here.roofs.put(sample_roofs())
        assert merge_file(here, tmp_path / "study.zip")["roofs"] == {"added": 1, "known": 0}
        assert here.roofs.list() == [NEWER]
        assert merge_file(here, tmp_path / "all.zip")["roofs"] == {"added": 1, "known": 1}
        assert here.roofs.list() == [sample_roofs(OTHER_DEVICE), NEWER] and check(here, 0.0) == []


def rewritten(path: Path, **changes: object) -> Path:
    """The file with other values in its records; one of ``None`` is left out."""
    with zipfile.ZipFile(path) as archive:
        records = {**json.loads(archive.read(RECORDS)), **changes}
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(RECORDS, json.dumps({name: value for name, value in records.items() if value is not None}))
    return target


def test_a_file_of_an_older_version_is_merged_and_one_with_malformed_roofs_refused(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        begin(store)
        store.roofs.put(NEWER)
        export_studies(store, ["resnet50"], tmp_path / "study.zip")
    with Store.open(str(tmp_path / "b.db")) as store:
        older = rewritten(tmp_path / "study.zip", roofs=None, schema_revision="0003")
        assert merge_file(store, older)["roofs"] == {"added": 0, "known": 0} and store.studies.list()
        good = NEWER.as_dict()
        for change in ({"created": "yesterday"}, {"device_class": "a\x00b"}, {"device_class": 7}, {"copy_gb_s": 5},
                       {"matrix_tflops": {"fp8": good["copy_gb_s"]}}, {"schema": 9}, {"launch_us": None}):  # fmt: skip
            with pytest.raises(DatabaseError, match="cannot be merged"):
                merge_file(store, rewritten(tmp_path / "study.zip", roofs=[{**good, **change}]))
        assert store.roofs.list() == []


def test_a_damaged_row_is_named_by_check_and_refused_by_reading(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        store.roofs.put(NEWER)
        for damage, found in (
            ("created = '2026-01-01T00:00:00.000000+00:00'", "created is"),
            ("record = '{}'", "no record"),
        ):
            with store.transactions.writing() as session:
                session.execute(text(f"UPDATE roofs SET {damage}"))
            (finding,) = check(store, 0.0)
            assert finding.what == "roofs row" and finding.name == NEWER.device_class and found in finding.found
        with pytest.raises(DatabaseError, match="autotune db check"):
            store.roofs.list()


def former(url: str, revision: str = "0003") -> None:
    """Bring a database back to an earlier revision."""
    engine = engine_at(locate(url))
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, revision)
    engine.dispose()


def test_a_database_of_0003_is_brought_up_to_date_with_all_that_it_has(databases: Databases, tmp_path: Path) -> None:
    url = databases.url(tmp_path / "a.db")
    with Store.open(url) as store:
        study = begin(store)
        store.plans.promote(plan("p1"))
        store.roofs.put(NEWER)
    former(url)
    with Store.open(url) as store:
        assert store.studies.list() == [study] and store.plans.list() == [plan("p1")]
        assert store.roofs.list() == [] and store.roofs.put(NEWER) and check(store, 0.0) == []


READS = """
import json, sys, time
from pathlib import Path
from autotune.database.check import check
from autotune.database.exchange import export_studies
from autotune.database.reading import plan_reader
from autotune.database.store import Store
with plan_reader(sys.argv[1]) as reader, Store.open(sys.argv[1], create=False) as store:
    print(json.dumps({
        "plans": [[row.uid for row in source.plans.list()] for source in (reader, store)],
        "studies": len(store.studies.list()), "roofs": len(store.roofs.list()),
        "findings": [finding.found for finding in check(store, time.time())],
        "exported": export_studies(store, ["resnet50"], Path(sys.argv[2]))["roofs"],
    }))
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_database_of_0003_that_nobody_may_write_is_read_as_before(tmp_path: Path, way: str) -> None:
    file = tmp_path / "frozen" / "a.db"
    with Store.open(str(file)) as store:
        begin(store)
        store.plans.promote(plan("p1"))
    former(str(file))
    seen = child(way, file.parent, READS, str(file), str(tmp_path / "out.zip"))
    assert seen == {"plans": [["p1"], ["p1"]], "studies": 1, "roofs": 0, "findings": [], "exported": 0}


def test_plans_of_0003_are_looked_up_without_an_upgrade(tmp_path: Path) -> None:
    file = str(tmp_path / "a.db")
    with Store.open(file) as store:
        store.plans.promote(plan("p1"))
    former(file)
    reader = plan_reader(file)
    assert reader is not None
    with reader:
        assert [row.uid for row in reader.plans.list()] == ["p1"]
