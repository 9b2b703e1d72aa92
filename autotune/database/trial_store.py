"""The trials of the tuning database: TrialStore, the attribute ``trials`` of a store."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from autotune.database import own_trials, trials
from autotune.database.artifacts import ArtifactStore
from autotune.database.manifest import is_digest
from autotune.database.rows import Role, StudyRow, trial_record
from autotune.database.schema import MeasurementTable, TrialTable
from autotune.database.transactions import Transactions
from autotune.records.configuration import Configuration
from autotune.records.identity import Identity
from autotune.records.trial import Measurement, Trial


class TrialStore:
    """Trials, their measurements and their artifacts; errors as those of :class:`autotune.database.store.Store`."""

    def __init__(self, transactions: Transactions, artifacts: ArtifactStore) -> None:
        self._transactions = transactions
        self._artifacts = artifacts

    def claim(self, study_uid: str, configuration: Configuration, toolchain_digest: str) -> Trial:
        """Write the row of a trial, in state running, before its build.

        A trial that was cut off by the death of its coordinator keeps its number and begins the next attempt; after
        :data:`trials.MOST_ATTEMPTS` such deaths it is returned as failed. Raises ``ValueError`` if the study has
        finished this configuration.
        """
        lease = self._transactions.lease
        if lease is not None and self._transactions.has_own_statements:
            with self._transactions.own_statements() as (dialect, execute):
                trial = own_trials.begin(
                    dialect, execute, lease, study_uid, configuration, toolchain_digest, self._transactions.now()
                )
            if trial is not None:
                return trial
        with self._transactions.writing(own=True) as session:
            study = trials.study_row(session, study_uid)
            return trials.claim(session, study, configuration, toolchain_digest, self._transactions.now())

    def finish(self, trial: Trial, measurements: Mapping[Role, Measurement] | None = None) -> None:
        """Write the result of a claimed trial, and its measurements, in one transaction.

        A second call with the same result changes nothing; later measurements of a finished trial may be added. Raises
        ``ValueError`` if the trial was taken over since, or is finished with another result.
        """
        lease = self._transactions.lease
        if lease is not None and self._transactions.has_own_statements:
            with self._transactions.own_statements() as (dialect, execute):
                written = own_trials.end(dialect, execute, lease, trial, measurements or {}, self._transactions.now())
            if written:
                return
        with self._transactions.writing(own=True) as session:
            trials.finish(session, trial, measurements or {}, self._transactions.now())

    def hand_back(self, claimed: Sequence[Trial]) -> None:
        """Let the running attempts of these trials not count against them: they were stopped in good order."""
        with self._transactions.writing(own=True) as session:
            trials.hand_back(session, claimed)

    def withdraw(self, trial: Trial) -> None:
        """Delete the row of a claimed trial that has no result: the study may try its configuration again later."""
        with self._transactions.writing(own=True) as session:
            trials.withdraw(session, trial)

    def get(self, uid: str) -> Trial:
        """Return the trial with this uid; raises ``ValueError`` if there is none."""
        with self._transactions.reading() as session:
            return trial_record(trials.trial_row(session, uid))

    def of_study(self, study_uid: str, failed: bool = False) -> list[Trial]:
        """Return the trials of a study by number, all or the failed ones."""
        query = select(TrialTable).where(TrialTable.study == study_uid).order_by(TrialTable.number)
        if failed:
            query = query.where(TrialTable.state == "failed")
        with self._transactions.reading() as session:
            return [trial_record(row) for row in session.scalars(query)]

    def earlier(
        self, identity: Identity, toolchain_digest: str, configuration: Configuration, kernels: str = ""
    ) -> Trial | None:
        """Return a trial of any study that may be reused: a complete one or, if there is none, a failed one.

        It was judged and timed under the same conditions (:attr:`autotune.records.identity.Identity.trial`), on the
        same model and device class, built by the same ``toolchain_digest`` with the same ``kernels``. Kinds of failure
        that put a configuration into quarantine do not count: see :meth:`quarantined_by`.
        """
        if identity.trial is None:
            return None
        with self._transactions.reading() as session:
            return trials.earlier(session, identity, toolchain_digest, configuration, kernels)

    def quarantined_by(
        self, structure: str, device_class: str, toolchain_digest: str, configuration: Configuration
    ) -> tuple[StudyRow, Trial] | None:
        """Return the trial because of which a configuration is not built again under a toolchain, and its study.

        It took its process down, with these or other weights, and no later trial has shown that the configuration runs.
        """
        with self._transactions.reading() as session:
            return trials.quarantined_by(session, structure, device_class, toolchain_digest, configuration)

    def add_measurement(self, trial_uid: str, role: Role, measurement: Measurement) -> None:
        """Store one more measurement of a trial, such as that of the finals; the same one is stored once."""
        with self._transactions.writing(own=True) as session:
            trials.trial_row(session, trial_uid)
            trials.add_measurement(session, trial_uid, role, measurement, self._transactions.now())

    def measurements(self, trial_uid: str, role: Role | None = None) -> list[Measurement]:
        """Return the measurements of a trial in the order they were written, in one role or in all."""
        query = select(MeasurementTable).where(MeasurementTable.trial == trial_uid)
        if role is not None:
            query = query.where(MeasurementTable.role == role)
        with self._transactions.reading() as session:
            rows = session.scalars(query.order_by(MeasurementTable.created, MeasurementTable.uid))
            return [Measurement.from_dict(row.record) for row in rows]

    def keep_artifact(self, trial_uid: str, digest: str, kernels: str) -> None:
        """Store the artifact of a trial that was built again, and the digest of the tuned kernels that are in it."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} names no artifact")
        with self._transactions.writing() as session:
            row = trials.trial_row(session, trial_uid)
            row.artifact, row.kernels = digest, kernels

    def drop_unnamed(self, digest: str) -> None:
        """Drop the artifact of a trial whose row does not name it, unless another trial or a plan needs it."""
        with self._transactions.writing() as session:
            self._artifacts.discard(trials.unneeded(session, {digest}))

    def drop_losers(self, study_uid: str, keep: set[str]) -> None:
        """Drop the artifacts of a study's trials except those whose uid is in ``keep``; the rows stay."""
        with self._transactions.writing() as session:
            others = TrialTable.uid.not_in(sorted(keep))
            self._artifacts.discard(trials.release(session, TrialTable.study == study_uid, others))
