import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from autotune.database.plan_rows import VERSION_TABLE
from autotune.database.reading import PREFIX, plan_reader
from autotune.database.store import Store
from autotune.errors import DeviceError
from tests.database.records import DEVICE, plan, workload

OTHER = replace(DEVICE, name="NVIDIA L40S", uuid="GPU-2")


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "autotune.db"
    with Store.open(str(path)) as store:
        store.plans.promote(plan("p1"))
        store.plans.promote(plan("p2", workload("bert-base", batch=32)))
        store.plans.promote(plan("p3", device=OTHER))
    return path


@pytest.mark.parametrize(
    "asked", [{}, {"name": "resnet50"}, {"batch": 32}, {"device": "h200"}, {"name": "resnet50", "device": "l40s"}]
)
def test_it_reads_what_the_store_reads(database, asked):
    for url in (str(database), f"{PREFIX}{database}"):
        with Store.open(url) as store, plan_reader(url) as reader:
            found = reader.plans.list(**asked)
            assert found == store.plans.list(**asked) and found
            assert reader.location == store.location and reader.artifacts.digests() == store.artifacts.digests()
            with pytest.raises(DeviceError, match="several"):
                reader.plans.list(device="nvidia")


def test_it_leaves_to_the_store_what_it_does_not_know(database, tmp_path):
    assert plan_reader(str(tmp_path / "nothing.db")) is None and not (tmp_path / "nothing.db").exists()
    assert plan_reader("postgresql://localhost/autotune") is None
    (tmp_path / "text.db").write_text("no database")
    assert plan_reader(str(tmp_path / "text.db")) is None
    with sqlite3.connect(database) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    assert plan_reader(str(database)) is None


def test_it_cannot_write(database):
    with plan_reader(str(database)) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM plan")


def test_reading_plans_imports_no_sqlalchemy(database):
    code = f"import sys; from autotune.database.reading import plan_reader; plan_reader({str(database)!r}).plans.list()"
    code += "; assert not {'sqlalchemy', 'alembic', 'torch', 'optuna'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
