"""The rewritten graph of a configuration, which builds and the search for its kernel problems share."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram

from autotune.backend import SourceModel
from autotune.backends.native.fusions import fuse
from autotune.model.precision import REDUCED
from autotune.model.program import load_program
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.search_spaces import native as spaces

PROGRAM, RECORD = "program.pt2", "rewritten.json"

SHARED_BYTES = 4 << 30
"""The size of a model's shared results from which no further graph is added: a study may rewrite dozens of them."""


class _NoRoomError(Exception):
    """The shared results of a model are large already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A fused graph on the CPU, with the places of its fusions; ``file`` has it as well if it is shared.

    ``places`` has exactly the requested fusions, see :class:`~autotune.backends.native.fusions.Fused`.
    """

    program: ExportedProgram
    places: Mapping[str, tuple[str, ...]]
    nodes_before: int
    nodes_after: int
    file: Path | None = None

    @property
    def matches(self) -> Mapping[str, int]:
        """The number of matches of each fusion."""
        return {name: len(places) for name, places in self.places.items()}

    def put(self, file: Path) -> None:
        """Write the graph into an artifact."""
        if self.file is None:
            torch.export.save(self.program, str(file))
        else:
            shutil.copyfile(self.file, file)


def on_host(device: Device) -> Device:
    """Return the host of a device, where graphs are rewritten: that disturbs no timing."""
    return dataclasses.replace(device, kind="cpu", index=0)


def rewritten(model: SourceModel, configuration: Configuration, device: Device) -> Rewritten:
    """Return the fused graph of a configuration, captured again so that it can be saved.

    It depends on the precision and the fusions alone, so the first process that needs it leaves it to the others.
    """
    precision, fusions = str(configuration["precision"]), spaces.fusions(configuration)
    fresh: list[Rewritten] = []

    def write(folder: Path) -> None:
        fresh.append(_rewrite(model, precision, fusions, on_host(device)))
        if model.shared_bytes > SHARED_BYTES:
            raise _NoRoomError
        try:
            fresh[0].put(folder / PROGRAM)
        except (OSError, RuntimeError) as error:  # a full disk; torch's writer has no error of its own
            raise _NoRoomError from error
        values = {name: getattr(fresh[0], name) for name in ("places", "nodes_before", "nodes_after")}
        (folder / RECORD).write_text(json.dumps(values))

    key = digest([REDUCED.get(precision, "as captured"), *fusions])
    try:
        folder = model.shared(f"native-{key[:16]}", write)
    except _NoRoomError:
        return fresh[0]
    if fresh:
        return dataclasses.replace(fresh[0], file=folder / PROGRAM)
    record = json.loads((folder / RECORD).read_text())
    return Rewritten(
        file=folder / PROGRAM, program=load_program(folder / PROGRAM),
        places={name: tuple(places) for name, places in record["places"].items()},
        nodes_before=record["nodes_before"], nodes_after=record["nodes_after"],
    )  # fmt: skip


def _rewrite(model: SourceModel, precision: str, fusions: Sequence[str], host: Device) -> Rewritten:
    fused = fuse(model.program(precision, host), fusions)
    with torch.no_grad():
        program = torch.export.export(fused.module, model.example_inputs(host))
    return Rewritten(
        program=program, places=dict(fused.places), nodes_before=fused.nodes_before, nodes_after=fused.nodes_after
    )
