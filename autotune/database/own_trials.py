"""The writes of a coordinator about its own trials, in as few statements as possible, each of them built once.

A statement checks the lease itself, writes only if every condition holds, and returns whether it has written. It does
not return the reason: :mod:`autotune.database.trials` then repeats the write in a transaction of its own, which handles
the rare cases (a trial that was cut off is taken over) or raises. The statements go to the driver, because SQLAlchemy's
own work around a statement takes longer than the database takes for it.

On PostgreSQL a write is one statement, so one round trip. It sees the database as it was when the statement began, and
may have waited since. A change in the meantime does no harm: the lease's row is read again when it is locked, a trial's
row when it is changed; and if two processes begin a trial at once, both use the same number, of which the unique
constraint accepts one.
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping

from sqlalchemy.engine.interfaces import DBAPICursor

from autotune.database.engine import ADVISORY_LOCK
from autotune.database.leases import Lease
from autotune.database.rows import Role, measurement_content, trial_values
from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.records.trial import Measurement, Trial

Execute = Callable[[str, Mapping[str, object]], DBAPICursor]
"""A driver's ``execute``; the rows of its statement are fetched from the cursor that it returns."""


def _for_psycopg(statement: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", statement)


_MINE = "lease.study = :study AND lease.fence = :fence AND lease.token = :token"
_GATE = f"""
gate AS (SELECT pg_advisory_xact_lock_shared({ADVISORY_LOCK})),
held AS (SELECT lease.study FROM lease, gate WHERE {_MINE} FOR UPDATE OF lease)"""
"""On PostgreSQL: the lock that coordinators share, then the lease, which keeps its owner until all is written."""

# Only if the study has no row of the configuration: otherwise it was tried, or cut off. The query is for the nearest
# digest and not for this very one, since the order leaves a single index to choose; otherwise PostgreSQL may settle,
# while the table is still small, on the index of the numbers, and then reads all trials of the study each time.
_BEGIN = """
INSERT INTO trial (
    uid, study, number, attempt, handed_back, backend, configuration, configuration_digest,
    structure, weights, device_class, toolchain, state, reused, tried_here, created
)
SELECT
    :uid, study.uid, (SELECT coalesce(max(number) + 1, 0) FROM trial WHERE study = :study), 1, 0,
    :backend, :configuration, CAST(:digest AS VARCHAR), study.structure, study.weights, study.device_class,
    :toolchain, 'running', FALSE, TRUE, :now
FROM study JOIN {held} ON {held}.study = study.uid
WHERE {is_mine} AND :digest <> coalesce((
    SELECT configuration_digest FROM trial WHERE study = :study AND configuration_digest >= :digest
    ORDER BY configuration_digest LIMIT 1
), '')
ON CONFLICT DO NOTHING RETURNING number"""
_CLAIM = {
    "sqlite": _BEGIN.format(held="lease", is_mine=_MINE),
    "postgresql": _for_psycopg(f"WITH {_GATE}{_BEGIN.format(held='held', is_mine='TRUE')}"),
}

_END = """
UPDATE trial SET
    state = :state, latency_ms = :latency_ms, score = :score, signal_error = :signal_error, build_s = :build_s,
    artifact = :artifact, kernels = :kernels, failure = :failure, reused = :reused, finished = :now
FROM {held}
WHERE {is_mine} AND trial.study = {held}.study AND trial.uid = :uid AND trial.number = :number
    AND trial.configuration_digest = :digest AND trial.attempt = :attempt AND trial.state = 'running'
RETURNING trial.uid"""
_KEEP = "INSERT INTO measurement (uid, trial, role, created, record) {row} ON CONFLICT DO NOTHING"
_DONE = f"WITH {_GATE}, done AS ({_END.format(held='held', is_mine='TRUE')})"
_FINISH = {
    "sqlite": _END.format(held="lease", is_mine=_MINE),
    "postgresql": _for_psycopg(f"{_DONE} SELECT uid FROM done"),
}
_MEASURED = _KEEP.format(row="VALUES (:measurement, :uid, :role, :now, :record)")
_ROW = "SELECT :measurement, done.uid, :role, CAST(:now AS VARCHAR), :record FROM done"
_FINISH_MEASURED = _for_psycopg(f"{_DONE}, kept AS ({_KEEP.format(row=_ROW)}) SELECT uid FROM done")


def begin(
    dialect: str, execute: Execute, lease: Lease, study_uid: str, configuration: Configuration, toolchain: str, now: str
) -> Trial | None:
    """Write the row of a trial that is new to the study; ``None`` if nothing was written, for any reason.

    ``dialect`` is the name of the database's dialect.
    """
    if study_uid != lease.study:
        return None
    content = configuration.canonical
    uid = uuid.uuid4().hex
    values = _lease_values(lease) | {
        "uid": uid,
        "backend": configuration.backend,
        "configuration": content,
        "digest": hashlib.sha256(content.encode()).hexdigest(),
        "toolchain": toolchain,
        "now": now,
    }
    row = execute(_CLAIM[dialect], values).fetchone()
    if row is None:
        return None
    return Trial(uid=uid, number=row[0], configuration=configuration, state="running", toolchain=toolchain)


def end(
    dialect: str, execute: Execute, lease: Lease, trial: Trial, measurements: Mapping[Role, Measurement], now: str
) -> bool:
    """Write the result of a trial of the study; false if nothing was written, for any reason."""
    if trial.state == "running" or len(measurements) > 1:
        return False
    result = trial_values(trial)
    values = _lease_values(lease) | {
        **result,
        "failure": None if result["failure"] is None else canonical(result["failure"]),
        "uid": trial.uid,
        "number": trial.number,
        "digest": trial.configuration.digest,
        "attempt": trial.attempt,
        "now": now,
    }
    measured: dict[str, object] = {}
    for role, measurement in measurements.items():
        uid, record = measurement_content(trial.uid, role, measurement)
        measured = {"measurement": uid, "uid": trial.uid, "role": role, "now": now, "record": record}
    if measured and dialect == "postgresql":
        return execute(_FINISH_MEASURED, values | measured).fetchone() is not None
    done = execute(_FINISH[dialect], values).fetchone() is not None
    if done and measured:
        execute(_MEASURED, measured)
    return done


def _lease_values(lease: Lease) -> dict[str, object]:
    return {"study": lease.study, "fence": lease.fence, "token": lease.token}
