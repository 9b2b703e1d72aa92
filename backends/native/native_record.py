"""The record of a native artifact: its graph's size, its fusions, and the kernel of each fused operator."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from autotune.errors import ArtifactError
from autotune.records.configuration import Scalar

RECORD = "native.json"
SCHEMA = 2


class KernelEntry(TypedDict):
    """A kernel of a GEMM with the median that it was measured with, see :class:`autotune.kernel.KnownKernel`."""

    configuration: Mapping[str, Scalar]
    median_us: float


class PlanEntry(TypedDict):
    """A plan of Triton kernels, for the layouts of an operator's inputs."""

    file: str
    layouts: Sequence[Sequence[Sequence[int]]]
    channels_last: bool


class SiteHead(TypedDict):
    """The part of a site's entry that every fused operator has."""

    index: int
    name: str
    operator: str
    place: str


class SiteEntry(SiteHead, total=False):
    """A fused operator: a ``kernel`` of ours or ``plans`` of Triton kernels, or the reason ``why`` it has neither.

    ``library`` is the fastest call of a library for the same ``problem``.
    """

    problem: dict[str, object]
    library: KernelEntry | None
    kernel: KernelEntry | None
    plans: list[PlanEntry]
    why: str


class NativeRecord(TypedDict):
    """The whole record; ``early`` says that launches may overlap, ``sources`` has source digests by kernel file."""

    schema: int
    early: bool
    nodes_before: int
    nodes_after: int
    fusions: dict[str, int]
    places: Mapping[str, Sequence[str]]
    sites: list[SiteEntry]
    sources: dict[str, str]


def write_record(record: NativeRecord, folder: Path) -> None:
    """Write a record into an artifact's folder."""
    (folder / RECORD).write_text(json.dumps(record, sort_keys=True))


def read_record(folder: Path) -> NativeRecord:
    """Read the output of :func:`write_record`; raises ArtifactError if it is missing or of another schema."""
    try:
        record: NativeRecord = json.loads((folder / RECORD).read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the artifact in {folder.name} has no readable record of its kernels",
            found=f"{type(error).__name__}: {error}", expected=f"{RECORD} of schema {SCHEMA}", run="autotune db check",
        ) from error  # fmt: skip
    return record
