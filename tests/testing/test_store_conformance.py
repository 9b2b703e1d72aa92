"""The conformance class notices a store that breaks its promises."""

import subprocess
import sys
from pathlib import Path

import pytest

from autotune.database.leases import Lease
from autotune.database.store import Store
from autotune.database.transactions import Transactions
from autotune.testing.store_conformance import SteppingClock, StoreConformance


class Unfenced(Transactions):
    """Transactions that check no lease."""

    def under(self, lease: Lease | None) -> Transactions:
        return self


def test_a_store_that_lets_a_former_coordinator_write_is_noticed(tmp_path: Path) -> None:
    clock = SteppingClock()
    check = StoreConformance().test_a_coordinator_that_lost_its_lease_can_write_nothing
    with Store.open(str(tmp_path / "a.db"), clock=clock) as store:
        check(store, clock, tmp_path)
    with Store.open(str(tmp_path / "b.db")) as store:
        unfenced = Store(Unfenced(store.transactions.engine, store.transactions.location, clock), store.artifacts)
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            check(unfenced, clock, tmp_path)


def test_the_fakes_are_imported_without_pytest() -> None:
    code = "import autotune.testing, autotune.testing.sample_records, sys; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
