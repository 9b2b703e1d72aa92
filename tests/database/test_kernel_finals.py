"""Finals of kernels between databases, and in databases of earlier revisions, which have none."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from autotune.database.check import check
from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.testing.sample_records import kernel_final
from tests.database.records import DEVICE, PROBLEM, begin, kernel
from tests.database.test_read_only import child
from tests.database.test_roofs import former, rewritten
from tests.databases import Databases
from tests.read_only import WAYS

CLASS = DEVICE.device_class


def here(store: Store) -> list[str]:
    """The digests of the finals of the problem, the newest first."""
    finals = store.kernel_finals.of([PROBLEM], CLASS).get(PROBLEM.digest, ())
    return [final.digest for final in finals]


def test_finals_travel_with_the_kernels_of_their_device_class_and_merge_in_any_order(
    databases: Databases, tmp_path: Path
) -> None:
    files = []
    for number in range(2):
        with Store.open(databases.url(tmp_path / f"{number}.db")) as there:
            begin(there)
            there.kernel_finals.add(kernel_final((5.0 + number, 6.0)))
            there.kernel_finals.add(replace(kernel_final(), device_class="other"))
            files.append(tmp_path / f"{number}.zip")
            assert export_studies(there, ["resnet50"], files[-1])["kernel_finals"] == 1
            assert export_studies(there, [], tmp_path / "all.zip")["kernel_finals"] == 2
    united = []
    for turn, order in enumerate(permutations(files)):
        with Store.open(databases.url(tmp_path / f"united-{turn}.db")) as store:
            for file in order:
                assert merge_file(store, file)["kernel_finals"] == {"added": 1, "known": 0}
                assert merge_file(store, file)["kernel_finals"] == {"added": 0, "known": 1}
            united.append(here(store))
            assert check(store, 0.0) == []
    assert len(united[0]) == 2 and united[0] == united[1]


def test_a_file_of_an_older_version_has_no_finals(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        begin(store)
        store.kernel_finals.add(kernel_final())
        export_studies(store, ["resnet50"], tmp_path / "study.zip")
    with Store.open(str(tmp_path / "b.db")) as store:
        older = rewritten(tmp_path / "study.zip", kernel_finals=None, schema_revision="0005")
        assert merge_file(store, older)["kernel_finals"] == {"added": 0, "known": 0} and here(store) == []


def test_a_database_of_0005_is_brought_up_to_date(databases: Databases, tmp_path: Path) -> None:
    url = databases.url(tmp_path / "a.db")
    with Store.open(url) as store:
        study = begin(store)
        store.kernel_finals.add(kernel_final())
    former(url, "0005")
    with Store.open(url) as store:
        assert store.studies.list() == [study] and here(store) == []
        assert store.kernel_finals.add(kernel_final()) and check(store, 0.0) == []


READS = """
import json, sys, time
from pathlib import Path
from autotune.database.check import check
from autotune.database.exchange import export_studies
from autotune.database.store import Store
from autotune.testing.sample_records import DEVICE, PROBLEM
with Store.open(sys.argv[1], create=False) as store:
    print(json.dumps({
        "finals": len(store.kernel_finals.of([PROBLEM], DEVICE.device_class)),
        "listed": [row.final is not None for row in store.kernels.problems()],
        "findings": [finding.found for finding in check(store, time.time())],
        "exported": export_studies(store, ["resnet50"], Path(sys.argv[2]))["kernel_finals"],
    }))
"""


@pytest.mark.parametrize("revision", ["0005", "0006"])
@pytest.mark.parametrize("way", WAYS)
def test_a_database_that_nobody_may_write_is_read_with_or_without_finals(
    tmp_path: Path, way: str, revision: str
) -> None:
    file = tmp_path / "frozen" / "a.db"
    with Store.open(str(file)) as store:
        begin(store)
        store.kernels.add([kernel(1, 5.0)])
        store.kernel_finals.add(kernel_final())
    former(str(file), revision)
    seen = child(way, file.parent, READS, str(file), str(tmp_path / "out.zip"))
    there = revision == "0006"
    assert seen == {"finals": there, "listed": [there], "findings": [], "exported": there}
