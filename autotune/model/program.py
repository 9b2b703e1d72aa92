"""Captured graphs in ``.pt2`` files, read without unpickling anything.

``torch.export.load`` unpickles several parts of such a file: tensors of other classes, opaque constants, and example
inputs that ``weights_only`` refuses (torch 2.13, ``torch/export/pt2_archive/_package.py`` and
``deserialize_torch_artifact``). No graph that autotune captures has any of these.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from autotune.errors import ArtifactError
from autotune.model.floors import require_safe

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

_CONFIGURATIONS = ("data/weights/", "data/constants/")
# A script object is read by torch's own C++ reader, which makes only classes that are registered there.
_READ_WITHOUT_PICKLE = "custom_obj_"
_PICKLED = "opaque_obj_"


def load_program(path: Path) -> "ExportedProgram":
    """Read a captured graph; raises ArtifactError if that would run a pickle, or the file is no such graph.

    Raises WorkError if torch is too old to read one safely.
    """
    require_safe("torch")
    import torch

    try:
        reason = next(_reasons(path), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
    if reason is not None:
        raise ArtifactError(
            f"{path.name} is refused", found=reason, expected="a graph saved by torch.export.save, without pickles"
        )
    if path.suffix == ".pt2":
        return torch.export.load(str(path))
    with path.open("rb") as file:  # torch takes a path with that suffix only
        return torch.export.load(file)


def has_varying_sizes(module: "GraphModule") -> bool:
    """Return whether the module of an exported program takes inputs of several sizes."""
    inputs = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return any(not isinstance(size, int) for value in inputs for size in getattr(value, "shape", ()))


def _reasons(path: Path) -> Iterator[str]:
    import torch

    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any("/" not in entry.filename for entry in entries):  # the format before torch 2.8, which is a pickle
            yield "an entry outside the archive's folder"
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            yield "a compressed entry"
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            yield "entries that overlap"
    bindings: ModuleType = torch._C
    reader = bindings.PyTorchFileReader(str(path))  # the same reader that torch.export.load uses
    if not reader.has_record("archive_format") or reader.get_record("archive_format") != b"pt2":
        yield "no archive of the format pt2"
    for name in reader.get_all_records():
        if name.endswith("_config.json") and name.startswith(_CONFIGURATIONS):
            for what, payload in json.loads(reader.get_record(name))["config"].items():
                place = str(payload["path_name"])
                if place.startswith(_PICKLED) or (payload["use_pickle"] and not place.startswith(_READ_WITHOUT_PICKLE)):
                    yield f"{what} is a pickle"
        elif name.endswith(".pt") and (content := reader.get_record(name)):
            try:
                torch.load(io.BytesIO(content), weights_only=True)
            except Exception as error:  # torch refuses content by errors of several kinds
                yield f"{name} holds more than tensors ({type(error).__name__})"
