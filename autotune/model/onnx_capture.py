"""An ONNX model as its user runs it, and what a study has to know of it: onnx_session, capture_onnx."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import ModelError
from autotune.model import onnx_graph
from autotune.model.behaviour import dtype_name, observe
from autotune.model.capture import Captured
from autotune.model.schema import InputSchema
from autotune.records.workload import TensorSpec, Workload

if TYPE_CHECKING:
    import torch

    Inputs = Mapping[str, torch.Tensor]


class OnnxSession:
    """A session of ONNX Runtime on the CPU: named tensors in, named tensors out.

    With ``optimised`` it has ONNX Runtime's defaults, as its user's has; without, the graph is run as it stands.
    Raises ModelError if ONNX Runtime is not installed or refuses the model.
    """

    def __init__(self, path: Path, *, optimised: bool) -> None:
        if find_spec("onnxruntime") is None:
            raise ModelError(
                "an ONNX model is run by ONNX Runtime", found="onnxruntime is not installed",
                expected="the package onnxruntime, or onnxruntime-gpu", run="pip install onnxruntime",
            )  # fmt: skip
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class of errors for each of its own codes
            raise ModelError(
                "ONNX Runtime refuses the model", found=_reason(error),
                expected="a valid model of operators that ONNX Runtime has on a CPU",
                run="onnx.checker.check_model(path, full_check=True), which names the node",
            ) from error  # fmt: skip

    def __call__(self, inputs: "Inputs") -> "dict[str, torch.Tensor]":
        """Answer one call; raises ModelError if the model refuses it."""
        import torch

        feeds = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in inputs.items()}
        names = [output.name for output in self._session.get_outputs()]
        try:
            answers: list[Any] = self._session.run(names, feeds)
        except Exception as error:  # see above
            raise ModelError(
                "the ONNX model fails on its inputs", found=_reason(error), expected="inputs that it takes"
            ) from error
        return {name: torch.from_numpy(answer) for name, answer in zip(names, answers, strict=True)}


def capture_onnx(name: str, batch: int, path: Path, inputs: "Inputs", other: "Inputs") -> Captured:
    """Describe an ONNX model with fixed sizes as it answers the named ``inputs`` (tensors on the CPU).

    Its answer is a dict by the names of its outputs. ``other`` is another set of inputs of the same shapes. Raises
    ModelError if the model refuses its inputs, or answers as no plan can (see :mod:`autotune.model.behaviour`).
    """
    import onnx
    import torch

    session = OnnxSession(path, optimised=True)
    behaviour = observe(name, torch.nn.Module(), session, inputs, other)
    model = onnx.load(str(path))
    begin = time.perf_counter()
    weights = onnx_graph.weights(model)
    weights_s = time.perf_counter() - begin
    counted = onnx_graph.work(onnx.load(str(path), load_external_data=False))
    workload = Workload(
        name=name,
        batch=batch,
        structure=onnx_graph.structure(model),
        weights=weights,
        inputs=tuple(_spec(*entry) for entry in inputs.items()),
        outputs=tuple(map(_spec, behaviour.form.names, behaviour.answer)),
        features=onnx_graph.features(model),
        flops=counted.flops,
        traffic_bytes=counted.traffic_bytes,
    )
    names = tuple(inputs)
    return Captured(
        workload=workload, form=behaviour.form, inputs=InputSchema(names=names, positions=names), weights_s=weights_s,
        answers=(behaviour.answer, behaviour.other), notes=behaviour.notes,
    )  # fmt: skip


def _spec(name: str, tensor: "torch.Tensor") -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype_name(tensor))


def _reason(error: Exception) -> str:
    """Return the first line of an error of ONNX Runtime, which begins with its code."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]
