"""The tuning database as the rest of autotune sees it: records in, records out."""

from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from autotune.database.artifacts import ArtifactStore
from autotune.database.engine import engine_at
from autotune.database.kernel_finals import KernelFinals
from autotune.database.kernel_trials import KernelTrials
from autotune.database.lease_store import LeaseStore
from autotune.database.leases import Lease
from autotune.database.location import locate
from autotune.database.plan_store import PlanStore
from autotune.database.roof_store import RoofStore
from autotune.database.study_store import StudyStore
from autotune.database.transactions import Transactions, utc_now
from autotune.database.trial_store import TrialStore


class Store:
    """The tuning database and its artifacts, in parts; close it, or use it as a context manager.

    ``studies``, ``leases``, ``trials``, ``plans``, ``kernels``, ``kernel_finals`` and ``roofs`` read and write records,
    ``artifacts`` holds files, ``transactions`` is for the modules of this package. Safe to use from several threads and
    processes: one writes at a time. Every method of a part may raise DatabaseError, and ``ValueError`` if it is given
    what cannot be true; nothing is half-written then.
    """

    def __init__(self, transactions: Transactions, artifacts: ArtifactStore) -> None:
        self.transactions = transactions
        self.artifacts = artifacts
        self.studies = StudyStore(transactions)
        self.leases = LeaseStore(transactions)
        self.trials = TrialStore(transactions, artifacts)
        self.plans = PlanStore(transactions, artifacts)
        # Kernel trials, their finals and roofs belong to no study, so no lease is checked.
        self.kernels = KernelTrials(transactions.under(None))
        self.kernel_finals = KernelFinals(transactions.under(None))
        self.roofs = RoofStore(transactions.under(None))

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = True, clock: Callable[[], datetime] = utc_now) -> "Store":
        """Open the database at a path or URL, else at ``AUTOTUNE_DB``, else in the user's data folder.

        Raises DatabaseError if there is none and ``create`` is false, or if it cannot be used.
        """
        location = locate(url)
        engine = engine_at(location, create=create)
        return cls(Transactions(engine, location, clock), ArtifactStore(location.artifacts))

    @property
    def location(self) -> str:
        """The place of the database, without a password."""
        return self.transactions.location.shown

    @property
    def read_only(self) -> bool:
        """Whether this process can only read the database: each method that writes raises DatabaseError."""
        return self.transactions.read_only

    def under(self, lease: Lease) -> "Store":
        """Return this store for a coordinator: each of its writes raises StudyTakenOverError once the lease is lost."""
        return Store(self.transactions.under(lease), self.artifacts)

    def close(self) -> None:
        """Close the connections, and delete copies of artifacts that were opened."""
        self.transactions.engine.dispose()
        self.artifacts.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
