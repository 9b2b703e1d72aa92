"""A captured model in a folder, as a build worker gets it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.device import Device
from autotune.kernel import KnownKernels
from autotune.model import precision as precisions
from autotune.model.capture import Captured, flat
from autotune.model.factory import make_module
from autotune.model.program import load_program
from autotune.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

PROGRAM, WEIGHTS, RECORD, EXAMPLE = "program.pt2", "weights.safetensors", "model.json", "example.safetensors"
KERNELS = "kernels.json"


class CapturedModel:
    """What :func:`write` left in a folder; satisfies :class:`autotune.backend.SourceModel`.

    Intermediate results that several builds share, such as an ONNX export, lie in the same folder.
    """

    def __init__(self, folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        self.folder = folder
        self.workload = Workload.from_dict(record["workload"])
        self.output_schema: dict[str, Any] = record["output_schema"]
        self.factory: str | None = record["factory"]
        self.seed: int = record["seed"]

    def program(self, precision: str, device: Device) -> "ExportedProgram":
        """The captured graph computing in ``precision`` with its weights on ``device``."""
        program = precisions.in_precision(load_program(self.folder / PROGRAM), self._example(), precision)
        return precisions.on_device(program, device.torch_name)

    def example_inputs(self, device: Device) -> "tuple[torch.Tensor, ...]":
        """One set of flat inputs on ``device``."""
        return tuple(tensor.to(device.torch_name) for tensor in self._example())

    def save_module(self, folder: Path) -> None:
        """Write the factory, its seed and the weights, so that :func:`rebuild_module` can make the module again."""
        if self.factory is None:
            raise ValueError("this model came without a factory")
        record = {
            "factory": self.factory,
            "seed": self.seed,
            "inputs": [spec.name for spec in self.workload.inputs],
            "outputs": [spec.dtype for spec in self.workload.outputs],
        }
        (folder / "module.json").write_text(json.dumps(record))
        shutil.copyfile(self.folder / WEIGHTS, folder / WEIGHTS)

    def shared(self, name: str) -> Path:
        """A folder for an intermediate result that several builds share; see :meth:`publish`."""
        return self.folder / "shared" / name

    def publish(self, name: str, made: Path) -> Path:
        """Move a finished intermediate result into place; where another build was faster, its result stands."""
        target = self.shared(name)
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(made, target)
        except OSError:
            shutil.rmtree(made)
        return target

    def scratch(self) -> Path:
        """A fresh folder on the same file system as the shared results."""
        return Path(tempfile.mkdtemp(dir=self.folder, prefix="scratch-"))

    @property
    def known_kernels(self) -> KnownKernels | None:
        """The measured kernels that a build may choose from; ``None`` where nobody has told any."""
        told = self.folder / KERNELS
        return KnownKernels.from_dict(json.loads(told.read_text())) if told.exists() else None

    def _example(self) -> "tuple[torch.Tensor, ...]":
        return read_tensors(self.folder / EXAMPLE, [spec.name for spec in self.workload.inputs])


def tell_kernels(folder: Path, known: KnownKernels) -> None:
    """Tell the builds of a captured model which kernels were measured."""
    made = folder / f"{KERNELS}.new"
    made.write_text(json.dumps(known.as_dict()))
    os.replace(made, folder / KERNELS)


def write(
    folder: Path,
    captured: Captured,
    example: Mapping[str, "torch.Tensor"],
    *,
    factory: str | None,
    seed: int,
    module: "torch.nn.Module | None" = None,
) -> None:
    """Put a captured model into a folder; ``module`` is the user's own, where a factory can make it again."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(captured.program, str(folder / PROGRAM))
    save_tensors(folder / EXAMPLE, example)
    if factory is not None and module is not None:
        from safetensors.torch import save_model

        save_model(module, str(folder / WEIGHTS))
    record = {
        "workload": captured.workload.as_dict(),
        "output_schema": captured.output_schema,
        "factory": factory,
        "seed": seed,
    }
    (folder / RECORD).write_text(json.dumps(record))


def rebuild_module(folder: Path, precision: str, device: Device) -> "torch.nn.Module":
    """The user's own module with the stored weights, flat tensors in and out, computing in ``precision``."""
    import torch
    from safetensors.torch import load_model

    record = json.loads((folder / "module.json").read_text())
    module = make_module(record["factory"], record["seed"], stored_weights=True)
    load_model(module, str(folder / WEIGHTS))
    wrapped = flat(module, tuple(record["inputs"]))
    if precision in precisions.REDUCED:
        dtype = getattr(torch, precisions.REDUCED[precision])
        outputs = tuple(getattr(torch, name) for name in record["outputs"])
        wrapped = precisions.border(wrapped.to(dtype), dtype, outputs)
    return wrapped.to(device.torch_name)


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write named tensors of any layout to a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: Path, names: list[str]) -> "tuple[torch.Tensor, ...]":
    """Read tensors by name, in the order of the names."""
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    return tuple(tensors[name] for name in names)
