"""The rewritten graph of a configuration, which builds and the search for its kernel problems share."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A fused graph on the CPU, in a file and loaded, with the places of its fusions.

    ``places`` has exactly the requested fusions, see :class:`~autotune.backends.native.fusions.Fused`.
    """

    file: Path
    program: ExportedProgram
    places: Mapping[str, tuple[str, ...]]
    nodes_before: int
    nodes_after: int

    @property
    def matches(self) -> Mapping[str, int]:
        """The number of matches of each fusion."""
        return {name: len(places) for name, places in self.places.items()}

    def put(self, file: Path) -> None:
        """Put the graph's file into an artifact: as a link, because weights are large, or as a copy."""
        try:
            os.link(self.file, file)
        except OSError:
            shutil.copyfile(self.file, file)


def on_host(device: Device) -> Device:
    """Return the host of a device, where graphs are rewritten: that disturbs no timing."""
    return dataclasses.replace(device, kind="cpu", index=0)


def rewritten(model: SourceModel, configuration: Configuration, device: Device) -> Rewritten:
    """Return the fused graph of a configuration, captured again so that it can be saved.

    It depends on the precision and the fusions alone, so the first process that needs it leaves it to the others.
    """
    precision, fusions = str(configuration["precision"]), spaces.fusions(configuration)
    written: list[ExportedProgram] = []

    def write(folder: Path) -> None:
        host = on_host(device)
        fused = fuse(model.program(precision, host), fusions)
        with torch.no_grad():
            written.append(torch.export.export(fused.module, model.example_inputs(host)))
        torch.export.save(written[0], str(folder / PROGRAM))
        record = {"places": dict(fused.places), "nodes_before": fused.nodes_before, "nodes_after": fused.nodes_after}
        (folder / RECORD).write_text(json.dumps(record))

    key = digest([REDUCED.get(precision, "as captured"), *fusions])
    folder = model.shared(f"native-{key[:16]}", write)
    record = json.loads((folder / RECORD).read_text())
    return Rewritten(
        file=folder / PROGRAM, program=written[0] if written else load_program(folder / PROGRAM),
        places={name: tuple(places) for name, places in record["places"].items()},
        nodes_before=record["nodes_before"], nodes_after=record["nodes_after"],
    )  # fmt: skip
