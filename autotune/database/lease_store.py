"""The leases of the tuning database: LeaseStore, the attribute ``leases`` of a store."""

from autotune.database import leases
from autotune.database.leases import Held, Lease, Owner
from autotune.database.transactions import Transactions


class LeaseStore:
    """The lease of each study's coordinator; errors as those of :class:`autotune.database.store.Store`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def holder(self, study_uid: str) -> Held | None:
        """Return the lease that a process holds on a study, if one does."""
        with self._transactions.reading() as session:
            return leases.holder(session, study_uid, self._transactions.now())

    def take(self, study_uid: str, owner: Owner, watched: Held | None = None) -> Lease:
        """Become the coordinator of a study; raises StudyHeldError if another process is, see :func:`leases.take`."""
        with self._transactions.writing() as session:
            return leases.take(session, study_uid, owner, self._transactions.now(), watched)

    def renew(self, lease: Lease) -> None:
        """Record that the coordinator is alive; raises StudyTakenOverError if another process has taken over."""
        with self._transactions.writing() as session:
            leases.renew(session, lease, self._transactions.now())

    def release(self, lease: Lease) -> None:
        """Let another process coordinate the study."""
        with self._transactions.writing() as session:
            leases.release(session, lease)
