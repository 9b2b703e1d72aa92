"""Kinds of model files: each has a name and a format, and may have the module of its user."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

TORCH, ONNX = "torch", "onnx"
"""The formats of models: a backend builds from the graph that torch captures, or from the file itself."""

EXPECTED = "a file of torch.jit.save (TorchScript), of torch.export.save (.pt2), or an ONNX model (.onnx)"
FACTORY = "a factory, model: {factory: path.py:callable}, that makes the module and loads its weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredInput:
    """One input as a file describes it; shape and dtype are ``None`` if the file does not say them.

    A size that is a text is the name of one that varies, ``""`` if it has none.
    """

    name: str
    shape: tuple[int | str, ...] | None = None
    dtype: str | None = None
    required: bool = True

    @property
    def is_fixed(self) -> bool:
        """True if the file says every size."""
        return self.shape is not None and all(isinstance(size, int) for size in self.shape)


class FileKind(Protocol):
    """One kind of file: it gives the module of its user, if it is of torch."""

    name: str
    model_format: str

    def module(self, path: Path, device: str) -> "torch.nn.Module":
        """Return the module that the file's user calls, ready for inference on a device; raises ModelError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model file: its kind and its inputs, in the order of a call."""

    path: Path
    kind: FileKind
    inputs: tuple[DeclaredInput, ...]
