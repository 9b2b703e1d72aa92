"""The captured graph as an ONNX file, made once for each precision and shared by the builds that need it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.model.silence import silenced
from autotune.model.source import CapturedModel
from autotune.records.device import Device

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

FILE, WEIGHTS = "model.onnx", "model.onnx.data"
Rewrite = Callable[["ExportedProgram", "tuple[torch.Tensor, ...]"], "ExportedProgram"]

# The exporter warns of optional packages that are absent. Its constant folding calls ONNX's reference operators and
# warns if one refuses, such as Expand written as a reshape; it then leaves the node in the graph, which is harmless.
_NOISY = ("torch.onnx", "onnxscript.optimizer._constant_folding")


def exported(model: CapturedModel, precision: str, *, variant: str = "", rewrite: Rewrite | None = None) -> Path:
    """Return a folder with ``model.onnx`` and its weights as external data; names are those of the workload.

    A model that came as ONNX stays what it is: it is never made a torch graph, and takes no ``rewrite``. The graph
    computes in ``precision``; tf32 is set at the provider and exports as fp32. ``rewrite`` changes the
    captured graph before the export (it gets example inputs as well); ``variant`` names its result.
    """
    import torch

    if model.file is not None:
        return _own(model, model.file, precision)
    name = "-".join(filter(None, ("onnx", precision if precision in ("bf16", "fp16") else "fp32", variant)))
    cpu = Device(kind="cpu", name="host", uuid="cpu-host")

    def write(folder: Path) -> None:
        with silenced(*_NOISY, level=logging.ERROR), torch.no_grad():
            program = model.program(precision, cpu)
            if rewrite is not None:
                program = rewrite(program, model.example_inputs(cpu))
            torch.onnx.export(
                program,
                (),
                str(folder / FILE),
                input_names=[spec.name for spec in model.workload.inputs],
                output_names=[spec.name for spec in model.workload.outputs],
                dynamo=True,
                external_data=True,
                verbose=False,
            )

    return model.shared(name, write)


def _own(model: CapturedModel, own: Path, precision: str) -> Path:
    """Return a folder with the model's own file; for fp16, with its constants and arithmetic in fp16."""

    def write(folder: Path) -> None:
        import onnx

        whole = onnx.load(str(own))
        if precision == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            whole = convert_float_to_float16(whole, keep_io_types=True)
        onnx.save(whole, str(folder / FILE), save_as_external_data=True, location=WEIGHTS, size_threshold=1024)

    return model.shared("onnx-fp16" if precision == "fp16" else "onnx-fp32", write)
