"""Studies and their trials, kernels, roofs, plans and former plans between databases, in one zip file.

``records.json`` holds the records, ``artifacts/<digest>/<name>`` the files of the plans' artifacts, uncompressed. A
file is checked from end to end before a row or an artifact is written; the size of its unpacked content is bounded by
its own size and by the sizes that its records declare.
"""

import contextlib
import hashlib
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import select
from sqlalchemy.orm import Session

from autotune.database import trials
from autotune.database.files import CHUNK_BYTES
from autotune.database.former_plans import former_plans
from autotune.database.kernel_finals import kernel_final_rows
from autotune.database.manifest import ArtifactFile
from autotune.database.merging import KINDS, Counts, put
from autotune.database.parcel import (
    Parcel,
    TravellingKernelFinal,
    TravellingKernelTrial,
    TravellingMeasurement,
    TravellingTrial,
    from_json,
    to_json,
)
from autotune.database.roof_store import roofs_rows
from autotune.database.rows import kernel_record, plan_of, study_record, trial_record
from autotune.database.schema import (
    DeviceTable,
    KernelFinalTable,
    KernelTrialTable,
    MeasurementTable,
    PlanTable,
    StudyTable,
    TrialTable,
    WorkloadTable,
)
from autotune.database.store import Store
from autotune.errors import ArtifactError, DatabaseError
from autotune.records.device import Device
from autotune.records.trial import Measurement
from autotune.records.workload import Workload

RECORDS = "records.json"
RECORDS_LIMIT_BYTES = 512 << 20
_UNSOUND = (ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile)


def export_studies(store: Store, studies: Sequence[str], out: Path, artifacts: bool = True) -> dict[str, int]:
    """Write the finished trials, measurements, plans and former plans of studies (by name) into a file.

    Kernel trials, their finals and roofs belong to no study: those of the studies' device classes are added, or without
    a name all of them alone. Returns the number of each kind. ``artifacts`` adds the plans' artifacts, as far as the
    store has them. The file appears only when it is complete. Raises DatabaseError for an unknown study, if there is
    nothing to write, or if ``out`` cannot be written.
    """
    with _readable(store):
        parcel = _packed(store, studies, artifacts)
    content = to_json(parcel)
    if len(content) > RECORDS_LIMIT_BYTES:
        raise DatabaseError(
            f"{out} cannot be written",
            found=f"{len(content) >> 20} MiB of records",
            expected="fewer studies in one file",
        )
    try:
        descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                _write_zip(store, parcel, content, stream)
                os.fchmod(stream.fileno(), 0o644)
            os.replace(temporary, out)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise DatabaseError(
            f"{out} cannot be written",
            found=str(error.strerror),
            expected="a file in a folder that this user can write",
        ) from error
    return {kind: len(getattr(parcel, kind)) for kind in KINDS}


@contextlib.contextmanager
def _readable(store: Store) -> Iterator[None]:
    """Turn the error of a row that holds no record into DatabaseError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatabaseError(
            f"{store.location} holds a row that cannot be read",
            found=f"{type(error).__name__}: {error}".split("\n")[0],
            expected="a database that is sound",
            run="autotune db check",
        ) from error


def _write_zip(store: Store, parcel: Parcel, content: bytes, stream: BinaryIO) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(zipfile.ZipInfo(RECORDS), content, zipfile.ZIP_DEFLATED)
        for digest, files in parcel.artifacts.items():
            folder = store.artifacts.open(digest)
            for file in files:
                entry = zipfile.ZipInfo(_member(digest, file))
                entry.file_size = file.size_bytes
                with open(folder / file.name, "rb") as source, archive.open(entry, "w") as target:
                    while chunk := source.read(CHUNK_BYTES):
                        target.write(chunk)


def _member(digest: str, file: ArtifactFile) -> str:
    return f"artifacts/{digest}/{file.name}"


def _packed(store: Store, names: Sequence[str], artifacts: bool) -> Parcel:
    with store.transactions.reading() as session:
        studies = session.scalars(select(StudyTable).where(StudyTable.name.in_(names)).order_by(StudyTable.uid)).all()
        unknown = sorted(set(names) - {study.name for study in studies})
        classes = {study.device_class for study in studies} if names else None
        kernels = tuple(_kernel_trials(session, classes))
        finals = tuple(_kernel_finals(session, classes))
        roofs = tuple(row for row in roofs_rows(session) if classes is None or row.device_class in classes)
        if unknown or not (names or kernels or finals or roofs):
            others = session.scalars(select(StudyTable.name).distinct().order_by(StudyTable.name)).all()
            raise DatabaseError(
                f"{store.location} has no study {', '.join(unknown) or 'without a name'}",
                expected=", ".join(others) or "a study, but there is none yet",
            )
        promoted = [plan_of(row) for row in session.scalars(select(PlanTable).where(PlanTable.name.in_(names)))]
        digests = sorted({plan.artifact for plan in promoted if artifacts and plan.artifact is not None})
        parcel_trials = list(_travelling(session, studies))
        return Parcel(
            workloads=tuple(
                Workload.from_dict(session.get_one(WorkloadTable, key).record)
                for key in sorted({(study.structure, study.weights) for study in studies})
            ),
            devices=tuple(
                Device.from_dict(session.get_one(DeviceTable, key).record)
                for key in sorted({study.device_class for study in studies})
            ),
            studies=tuple(study_record(study) for study in studies),
            trials=tuple(parcel_trials),
            measurements=tuple(_measurements(session, parcel_trials)),
            kernel_trials=kernels,
            kernel_finals=finals,
            roofs=roofs,
            plans=tuple(promoted),
            former_plans=tuple(former_plans(session, names)),
            artifacts={name: store.artifacts.files(name) for name in digests if store.artifacts.has(name)},
        )


def _travelling(session: Session, studies: Sequence[StudyTable]) -> Iterator[TravellingTrial]:
    for study in studies:
        query = select(TrialTable).where(TrialTable.study == study.uid, TrialTable.state != "running")
        for row in session.scalars(query.order_by(TrialTable.number)):
            yield TravellingTrial(
                study=study.uid, trial=trial_record(row), created=row.created, finished=row.finished or row.created
            )


def _measurements(session: Session, exported: Sequence[TravellingTrial]) -> Iterator[TravellingMeasurement]:
    for item in exported:
        query = select(MeasurementTable).where(MeasurementTable.trial == item.trial.uid)
        for row in session.scalars(query.order_by(MeasurementTable.uid)):
            yield TravellingMeasurement(
                trial=row.trial,
                role=row.role,  # type: ignore[arg-type]  # the table has no other
                measurement=Measurement.from_dict(row.record),
                created=row.created,
            )


def _kernel_trials(session: Session, device_classes: set[str] | None) -> Iterator[TravellingKernelTrial]:
    query = select(KernelTrialTable).order_by(KernelTrialTable.uid)
    if device_classes is not None:
        query = query.where(KernelTrialTable.device_class.in_(sorted(device_classes)))
    for row in session.scalars(query):
        yield TravellingKernelTrial(uid=row.uid, trial=kernel_record(row.record), created=row.created)


def _kernel_finals(session: Session, device_classes: set[str] | None) -> Iterator[TravellingKernelFinal]:
    where = [] if device_classes is None else [KernelFinalTable.device_class.in_(sorted(device_classes))]
    for row, final in kernel_final_rows(session, *where):
        yield TravellingKernelFinal(final=final, created=row.created)


def merge_file(store: Store, path: Path) -> Counts:
    """Merge a file of :func:`export_studies`; returns how many of each kind were ``added`` and ``known`` already.

    A study with the same identity is one study here too; a trial counts once, by its uid, and so do a kernel trial and
    a final of kernels; of two plans with one key the newer stays, and the other one becomes a former plan if it was
    measured under another toolchain. A damaged artifact of the store is replaced. Raises DatabaseError for a
    file that is damaged, or if a row of this database cannot be read; then nothing is written.
    """
    added: list[str] = []
    try:
        with contextlib.ExitStack() as held:
            parcel, before = _read(store, path, added, held)
            with store.transactions.writing() as session, _readable(store):
                counts = put(session, store, parcel)
    finally:
        _discard_unneeded(store, added)  # all of them after a failure, else those of plans older than what is here
    new = sum(store.artifacts.has(digest) for digest in set(added) - before)
    counts["artifacts"] = {"added": new, "known": len(parcel.artifacts) - new}
    return counts


def read_records(path: Path) -> Parcel:
    """Return the records of a file of :func:`export_studies`, checked, without a database to merge them into.

    Raises DatabaseError for a file that is damaged.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        return _opened(archive)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise DatabaseError with the name of a file that is damaged or cannot be read."""
    try:
        yield
    except _UNSOUND as error:
        raise DatabaseError(
            f"{path} cannot be merged", found=str(error), expected="a file that autotune db export wrote"
        ) from error
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read", found=str(error.strerror or error)) from error


def _read(store: Store, path: Path, added: list[str], held: contextlib.ExitStack) -> tuple[Parcel, set[str]]:
    """Read the file and store its artifacts, held; returns its records, and the artifacts that were here before."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        parcel = _opened(archive)
        before = {digest for digest in parcel.artifacts if store.artifacts.has(digest)}
        _store_artifacts(store, archive, parcel, added, held)
    return parcel, before


def _opened(archive: zipfile.ZipFile) -> Parcel:
    """Read and check every entry; raises ``ValueError`` with the first error."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if RECORDS not in entries:
        raise ValueError(f"no {RECORDS}")
    if len(entries) != len(archive.infolist()):
        raise ValueError("two entries of one name")
    if entries[RECORDS].file_size > RECORDS_LIMIT_BYTES:
        raise ValueError(f"{RECORDS} declares more than {RECORDS_LIMIT_BYTES >> 20} MiB")
    with archive.open(RECORDS) as stream:
        content = stream.read(RECORDS_LIMIT_BYTES + 1)
    if len(content) != entries[RECORDS].file_size:
        raise ValueError(f"{RECORDS} does not have the size it declares")
    parcel = from_json(content)
    declared = {_member(digest, file): file for digest, files in parcel.artifacts.items() for file in files}
    stray = sorted(set(entries) ^ (set(declared) | {RECORDS}))
    if stray:
        raise ValueError(f"{stray[0][:200]!r} is declared and absent, or present and not declared")
    for name, file in declared.items():
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != file.size_bytes:
            raise ValueError(f"{name} does not have the form and size that are declared")
    if sum(file.size_bytes for file in declared.values()) > os.path.getsize(str(archive.filename)):
        raise ValueError("its entries overlap")
    for name, file in declared.items():
        _copy(archive, name, file)
    return parcel


def _copy(archive: zipfile.ZipFile, name: str, file: ArtifactFile, target: BinaryIO | None = None) -> None:
    """Read one file, no further than its declared size, and compare its SHA-256."""
    digest, left = hashlib.sha256(), file.size_bytes
    with archive.open(name) as source:
        while chunk := source.read(min(CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            digest.update(chunk)
            if left < 0:
                break
            if target is not None:
                target.write(chunk)
    if left != 0 or digest.hexdigest() != file.sha256:
        raise ValueError(f"{name} does not match its SHA-256")


def _store_artifacts(
    store: Store, archive: zipfile.ZipFile, parcel: Parcel, added: list[str], held: contextlib.ExitStack
) -> None:
    """Add the artifacts that the store lacks or has damaged, and hold all of them."""
    for digest, files in parcel.artifacts.items():
        held.enter_context(store.artifacts.held(digest))
        with contextlib.suppress(ArtifactError):
            store.artifacts.open(digest)
            continue
        with store.artifacts.scratch() as folder:
            for file in files:
                path = folder / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as target:
                    _copy(archive, _member(digest, file), file, target)
            added.append(store.artifacts.add(folder))
        if added[-1] != digest:
            raise ValueError(f"artifact {digest} changed while it was being read")


def _discard_unneeded(store: Store, digests: Sequence[str]) -> None:
    """Drop the artifacts that no row names; if that fails, ``autotune db gc`` will."""
    with contextlib.suppress(DatabaseError, ArtifactError), store.transactions.writing() as session:
        store.artifacts.discard(trials.unneeded(session, set(digests)))
