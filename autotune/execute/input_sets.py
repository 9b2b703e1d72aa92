"""Several sets of named tensors in one file, as steps hand them on: inputs, and answers to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from autotune.model.source import CapturedModel

TIMING, HELD_OUT, REFERENCE = "timing.safetensors", "heldout.safetensors", "reference.safetensors"
TIMING_SETS = 4
HELD_OUT_SETS = 8


def write_sets(path: Path, sets: "Sequence[Mapping[str, torch.Tensor]]") -> None:
    """Write several sets of named tensors into one file."""
    from autotune.model.source import save_tensors

    numbered = {f"{index}/{name}": tensor for index, named in enumerate(sets) for name, tensor in named.items()}
    save_tensors(path, numbered)


def read_sets(path: Path, model: "CapturedModel", *, outputs: bool = False) -> "list[tuple[torch.Tensor, ...]]":
    """Read what :func:`write_sets` wrote, each set in the order of the workload's inputs (or outputs)."""
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    names = [spec.name for spec in (model.workload.outputs if outputs else model.workload.inputs)]
    count = 1 + max(int(key.partition("/")[0]) for key in tensors)
    return [tuple(tensors[f"{index}/{name}"] for name in names) for index in range(count)]
