"""A captured model in a folder, as a build worker gets it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.kernel import KnownKernels
from autotune.model import model_file, torchscript
from autotune.model import precision as precisions
from autotune.model.capture import Captured, CapturedGraph, flat
from autotune.model.factory import make_module
from autotune.model.file_kind import ONNX, TORCH
from autotune.model.onnx_capture import OnnxSession
from autotune.model.precision import flat_module
from autotune.model.program import load_program
from autotune.model.tensors import is_lazy
from autotune.records.device import Device
from autotune.records.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

MODULE = "module.json"
"""The origin of the user's own module in an artifact that runs it."""
PROGRAM, WEIGHTS, RECORD, EXAMPLE = "program.pt2", "weights.safetensors", "model.json", "example.safetensors"
UNFINISHED = "unfinished-"
OWN_FILE = "own_model.bin"
"""A copy of the model file that a model came from, or of the one that a compiled module is saved as."""
OWN_ONNX = "own_model.onnx"
"""The ONNX model that a model came as, with fixed sizes; its weights are in a file beside it."""
ANSWERS, BUFFERS = "answers.safetensors", "buffers.safetensors"


class CapturedModel:
    """The content of a folder that :func:`write` wrote; satisfies :class:`autotune.backend.SourceModel`.

    Intermediate results that several builds share lie in the same folder. ``known_kernels`` belong to one build: the
    measured kernels that it may choose from, ``None`` if it got none.
    """

    def __init__(self, folder: Path, known_kernels: KnownKernels | None = None) -> None:
        record = json.loads((folder / RECORD).read_text())
        self.folder = folder
        self.known_kernels = known_kernels
        self.workload = Workload.from_dict(record["workload"])
        self.output_schema: dict[str, object] = record["output_schema"]
        self.signature: dict[str, object] | None = record["signature"]
        self.written: tuple[str, ...] = tuple(record.get("written", ()))
        self._module_refused: str = record.get("module_refused", "")
        self.treatments: dict[str, str] = record.get("treatments", {})
        self.model_format: str = record.get("model_format", TORCH)
        self.factory: str | None = record["factory"]
        self.seed: int = record["seed"]

    def program(self, precision: str, device: Device) -> "ExportedProgram":
        """Return the captured graph that computes in ``precision``, with its weights on ``device``.

        Raises ValueError if the model came in a format of which there is no captured graph.
        """
        if self.model_format != TORCH:
            raise ValueError(f"there is no captured graph of a model in {self.model_format}")
        program = precisions.in_precision(load_program(self.folder / PROGRAM), self._example(), precision)
        return precisions.on_device(program, device.torch_name)

    @property
    def file(self) -> Path | None:
        """The file that a model of another format came as, with fixed sizes; ``None`` if it has a captured graph."""
        return self.folder / OWN_ONNX if self.model_format == ONNX else None

    def reference(self, device: Device) -> "Callable[..., tuple[torch.Tensor, ...]]":
        """Return the function that judges candidates: flat tensors on the device in, flat tensors out, in fp32.

        That is the captured graph in eager mode. An ONNX model is run as it stands by ONNX Runtime on the CPU.
        """
        if self.file is None:
            return flat_module(self.program("fp32", device))
        session, names = OnnxSession(self.file, optimised=False), [spec.name for spec in self.workload.inputs]
        return lambda *tensors: tuple(session(dict(zip(names, tensors, strict=True))).values())

    def example_inputs(self, device: Device) -> "tuple[torch.Tensor, ...]":
        """Return one set of flat inputs on ``device``."""
        return tuple(tensor.to(device.torch_name) for tensor in self._example())

    def example(self) -> "dict[str, torch.Tensor]":
        """Return the study's own example inputs by name, on the CPU."""
        return dict(zip((spec.name for spec in self.workload.inputs), self._example(), strict=True))

    def save_module(self, folder: Path) -> None:
        """Write all that :func:`rebuild_module` needs: the model file, or the factory, its seed and the weights."""
        own_file = (self.folder / OWN_FILE).exists()
        if self.factory is None and not own_file:
            raise ValueError("this model came without a factory, and from no file")
        if self._module_refused:
            raise ValueError(f"the module's own weights cannot be stored: {self._module_refused}")
        record = {
            "factory": None if own_file else self.factory,
            "seed": self.seed,
            "inputs": [spec.name for spec in self.workload.inputs],
            "outputs": [spec.dtype for spec in self.workload.outputs],
            "written": list(self.written),
        }
        (folder / MODULE).write_text(json.dumps(record))
        for name in (OWN_FILE,) if own_file else (WEIGHTS, BUFFERS):
            shutil.copyfile(self.folder / name, folder / name)

    def shared(self, name: str, write: Callable[[Path], None]) -> Path:
        """Return the folder of an intermediate result that several builds share; the first one fills it."""
        target = self.folder / "shared" / name
        if not target.is_dir():
            target.parent.mkdir(exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=self.folder, prefix=UNFINISHED))
            try:
                write(unfinished)
                os.rename(unfinished, target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                if not target.is_dir():  # else another build was faster
                    raise
        return target

    @property
    def shared_bytes(self) -> int:
        """The size of all shared results so far."""
        size = 0
        for folder in (self.folder / "shared", *self.folder.glob(f"{UNFINISHED}*")):
            for file in folder.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # it was moved into place
                    size += file.stat().st_size
        return size

    def _example(self) -> "tuple[torch.Tensor, ...]":
        return read_tensors(self.folder / EXAMPLE, [spec.name for spec in self.workload.inputs])


def write(
    folder: Path,
    captured: Captured,
    example: Mapping[str, "torch.Tensor"],
    *,
    factory: str | None,
    seed: int,
    module: "torch.nn.Module | None" = None,
    treatments: Mapping[str, str] | None = None,
) -> None:
    """Put a captured model into a folder; ``module`` is the user's own, if a factory can make it or a file holds it.

    A copy of the model file lies in the folder already, as :data:`OWN_FILE` or :data:`OWN_ONNX`; of a compiled module
    it is written.
    ``treatments`` describe for each input how the other sets were made from a user's tensors.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(captured, CapturedGraph):
        torch.export.save(captured.program, str(folder / PROGRAM))
    save_tensors(folder / EXAMPLE, example)
    named = [dict(zip(captured.form.names, answer, strict=True)) for answer in captured.answers]
    answers = {f"{at}/{name}": tensor for at, answer in enumerate(named) for name, tensor in answer.items()}
    save_tensors(folder / ANSWERS, answers)
    reason = ""
    if module is not None and torchscript.is_scripted(module):
        if not (folder / OWN_FILE).exists():
            (folder / OWN_FILE).write_bytes(torchscript.content(module))
    elif module is not None and factory is not None and not model_file.is_file(factory):
        reason = _save_weights(module, folder)
    record = {
        "model_format": TORCH if isinstance(captured, CapturedGraph) else ONNX,
        "module_refused": reason,
        "workload": captured.workload.as_dict(),
        "output_schema": captured.output_schema,
        "signature": captured.inputs.as_dict(),
        "form": captured.form.digest,
        "written": list(captured.written),
        "treatments": dict(treatments or {}),
        "factory": factory,
        "seed": seed,
    }
    (folder / RECORD).write_text(json.dumps(record))


def rebuild_module(folder: Path, precision: str, device: Device) -> "torch.nn.Module":
    """Make the user's own module, flat tensors in and out, in ``precision``: from its file, or with stored weights."""
    import torch

    record = json.loads((folder / MODULE).read_text())
    if record["factory"] is None:
        module = model_file.module_of(folder / OWN_FILE, device.torch_name)
    else:
        module = make_module(record["factory"], record["seed"], stored_weights=True)
        _load_weights(module, folder)
    wrapped = flat(module, tuple(record["inputs"]), record.get("written", ()))
    if precision in precisions.REDUCED:
        dtype = getattr(torch, precisions.REDUCED[precision])
        outputs = tuple(getattr(torch, name) for name in record["outputs"])
        wrapped = precisions.border(wrapped.to(dtype), dtype, outputs)
    return wrapped.to(device.torch_name)


def holds_model_file(folder: Path) -> bool:
    """Return whether an artifact has the module that it runs as a model file, so that it needs no code of its user."""
    return (folder / OWN_FILE).exists()


def _save_weights(module: "torch.nn.Module", folder: Path) -> str:
    """Write a module's state, and the buffers that no state_dict holds; returns the reason of a failure, or nothing."""
    from safetensors.torch import save_model

    kept = set(module.state_dict())
    try:
        save_model(module, str(folder / WEIGHTS))
        save_tensors(folder / BUFFERS, {name: buffer for name, buffer in module.named_buffers() if name not in kept})
    except Exception as error:  # safetensors refuses overlapping views, and objects that are no tensors
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _load_weights(module: "torch.nn.Module", folder: Path) -> None:
    """Load the stored weights and buffers into a module; lazy layers take their shapes from them."""
    import torch
    from safetensors.torch import load_file, load_model

    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        module.load_state_dict(load_file(str(folder / WEIGHTS)))
    else:
        load_model(module, str(folder / WEIGHTS))
    buffers = dict(module.named_buffers())
    with torch.no_grad():
        for name, value in load_file(str(folder / BUFFERS)).items():
            buffers[name].copy_(value)


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write named tensors of any layout to a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: Path, names: list[str]) -> "tuple[torch.Tensor, ...]":
    """Read tensors by name, in the order of the names."""
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    return tuple(tensors[name] for name in names)
