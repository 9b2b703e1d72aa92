"""Models from files: the kinds of files that autotune takes, and what each says of its inputs.

A file is described without torch and without unpickling anything, so that a wrong one is refused before any work.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import ModelError
from autotune.model import onnx_model, torch_files
from autotune.model.file_kind import EXPECTED, FACTORY, TORCH, ModelFile

if TYPE_CHECKING:
    import torch

PREFIX = "file:"
"""The beginning of a model's source that names a file; any other source names a callable."""

NOT_YET = {".pdmodel": "a Paddle model", ".tflite": "a TensorFlow Lite model"}
"""Model files of kinds that cannot be tuned, by the ends of their names."""

SUFFIXES = (".pt", ".pth", ".pt2", ".ts", onnx_model.SUFFIX, *NOT_YET)
"""The ends of the names of model files, by which a command tells them from study files."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, zipfile.BadZipFile)


def is_file(source: str) -> bool:
    """Return whether the source of a model is a file."""
    return source.startswith(PREFIX)


def path_of(source: str) -> Path:
    """Return the path in the source of a model that is a file."""
    return Path(source.removeprefix(PREFIX))


def source_of(path: Path) -> str:
    """Return the source of a model that is in a file."""
    return f"{PREFIX}{path.resolve()}"


def is_saved_model(path: Path) -> bool:
    """Return whether a folder is a SavedModel of TensorFlow."""
    return (path / "saved_model.pb").is_file()


def format_of(source: str | None) -> str:
    """Return the format of the model of a source, by the name of its file; anything but a file is a torch module."""
    of_onnx = source is not None and is_file(source) and onnx_model.is_named(path_of(source))
    return onnx_model.FILE.model_format if of_onnx else TORCH


def read(path: Path) -> ModelFile:
    """Describe a model file; raises ModelError, which says what the file is instead, if it is no such file.

    An ONNX model is told by its name, which ends in ``.onnx``, any other file by its content.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        if is_saved_model(path):
            found = "a SavedModel, which autotune does not take yet"
        raise ModelError(f"the model file {path}", found=found, expected=EXPECTED)
    if onnx_model.is_named(path):
        return ModelFile(path=path, kind=onnx_model.FILE, inputs=onnx_model.inputs(path))
    try:
        if not zipfile.is_zipfile(path):
            raise ModelError(
                f"the model file {path} cannot be taken", found=_no_archive(path), expected=EXPECTED, run=FACTORY
            )
        with zipfile.ZipFile(path) as archive:
            for kind in torch_files.KINDS:
                if kind.is_of(archive):
                    return ModelFile(path=path, kind=kind, inputs=kind.inputs(archive))
            found, run = torch_files.other_archive(archive)
    except _DAMAGED as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ModelError(f"the model file {path} cannot be read", found=found, expected=EXPECTED) from error
    raise ModelError(f"the model file {path} cannot be taken", found=found, expected=EXPECTED, run=run)


def module_of(path: Path, device: str = "cpu") -> "torch.nn.Module":
    """Return the module of a model file, as its user runs it, on a device; raises ModelError."""
    return read(path).kind.module(path, device)


def _no_archive(path: Path) -> str:
    if kind := NOT_YET.get(path.suffix.lower()):
        return f"{kind}, which autotune does not take yet"
    with path.open("rb") as file:
        begin = file.read(2)
    if begin[:1] == b"\x80":
        return "a pickle, which autotune does not run"
    return "an empty file" if not begin else "a file that is no archive"
