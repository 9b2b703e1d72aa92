"""OpenVINO on a CPU.

A graph with attention is converted by OpenVINO's own PyTorch frontend, which keeps scaled dot-product attention as one
operator (two layers of BERT: 2 transposes instead of the ONNX export's 22, and no separate softmax). Any other graph is
converted by the ONNX export, which yields the same operators ten times sooner. A model that came as ONNX is read as it
is. The artifact is OpenVINO's own format
(``.xml`` and ``.bin``), which is compiled in the process as it loads: importing an exported blob gave the same answers
but took longer (ResNet-50: 0.3 s, not 0.2 s).
"""

import functools
import queue
import shutil
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backend import Availability, Runner, SourceModel
from autotune.backends import onnx_exporter
from autotune.errors import ArtifactError
from autotune.model.file_kind import ONNX
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import SearchSpace
from autotune.records.workload import TensorSpec, Workload
from autotune.runtime.artifact import read_record
from autotune.runtime.installed import install_command
from autotune.runtime.signature import Signature
from autotune.search_spaces import openvino as options

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from openvino import CompiledModel, Core, InferRequest, Model

    from autotune.model.source import CapturedModel

MODEL = "model.xml"
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# Operators that do the arithmetic; operators between them may have any type.
_ARITHMETIC = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "RNNSeq")


class OpenVinoBackend:
    """Converts the captured graph, and compiles it for the CPU."""

    name = options.NAME
    toolchain = ("openvino",)
    build_uses_device = False
    build_modules = onnx_exporter.MODULES
    builds_slowly = False
    adapts_at_load = ("cpu",)
    model_formats = (ONNX,)

    def probe(self, device: Device) -> Availability:
        """Report if OpenVINO and the exporter are installed; CPUs only."""
        if device.kind != "cpu":
            return Availability(works=False, reason="OpenVINO runs on CPUs and Intel GPUs, not on NVIDIA GPUs")
        for package, extra in (("openvino", "openvino"), ("onnx", "cpu"), ("onnxscript", "cpu")):
            if find_spec(package) is None:
                reason = f"{package} is not installed"
                return Availability(works=False, reason=reason, remedy=install_command(extra))
        return Availability(works=True)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Return the search space; it is the same with and without a factory."""
        return options.space(device, workload)

    def is_own_way(self, configuration: Configuration, device: Device, model_format: str) -> bool:
        """Return false: nobody is assumed to run an ONNX model by OpenVINO today."""
        return False

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Convert the graph, and prove that it compiles in the precision of the configuration.

        Raises RuntimeError if OpenVINO would compute in another precision.
        """
        from autotune.model.source import CapturedModel

        if not isinstance(model, CapturedModel):
            raise TypeError(f"a conversion needs a CapturedModel, found {type(model).__name__}")
        converted = converted_model(model)
        for name in (MODEL, Path(MODEL).with_suffix(".bin").name):
            shutil.copyfile(converted / name, folder / name)
        require_precision(_compiled(folder, configuration), str(configuration["precision"]))

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return false: OpenVINO's CPU plugin chooses its primitives by rules."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return false: OpenVINO's CPU plugin chooses its primitives by rules."""
        return False

    def load(self, folder: Path, device: Device) -> Runner:
        """Compile the stored graph in this process; needs nothing but OpenVINO."""
        record = read_record(folder)
        return OpenVinoRunner(_compiled(folder, record.configuration), record.inputs, record.outputs)


class OpenVinoRunner:
    """A compiled model with an infer request for each concurrent call; reads the caller's tensors in place."""

    def __init__(self, compiled: "CompiledModel", inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        import torch

        self._compiled: CompiledModel | None = compiled
        self._signature = Signature(inputs, "cpu")
        self._dtypes = [getattr(torch, spec.dtype) for spec in outputs]
        self._idle: queue.SimpleQueue[InferRequest] = queue.SimpleQueue()
        self._idle.put(compiled.create_infer_request())

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call, from any thread; raises ModelError if the inputs do not fit."""
        import torch

        placed = self._signature.place(inputs)
        compiled = self._compiled
        if compiled is None:
            raise ArtifactError("a closed runner was called", expected="a call before close()")
        idle = self._idle  # a call that still runs when the runner is closed returns its request to the old queue
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            arrays = {at: tensor.detach().contiguous().numpy() for at, tensor in enumerate(placed)}
            # With shared inputs the request may keep a view of a caller's tensor, which the next call replaces.
            answers = request.infer(arrays, share_inputs=True, share_outputs=False)
            return tuple(torch.from_numpy(answers[at]).to(dtype) for at, dtype in enumerate(self._dtypes))
        finally:
            idle.put(request)

    def close(self) -> None:
        """Release the requests and the compiled model."""
        self._idle = queue.SimpleQueue()
        self._compiled = None


def converted_model(model: "CapturedModel") -> Path:
    """Return the folder with the model in OpenVINO's format, fp32; inputs and outputs in the workload's order."""

    def write(folder: Path) -> None:
        openvino = library()
        through_torch = model.file is None and "attention" in model.workload.features
        graph = _through_torch(model) if through_torch else _through_onnx(model)
        for side, ports, specs in (
            ("input", graph.inputs, model.workload.inputs),
            ("output", graph.outputs, model.workload.outputs),
        ):
            if len(ports) != len(specs):
                raise RuntimeError(f"OpenVINO's graph has {len(ports)} {side}s, the model {len(specs)}")
            for port, spec in zip(ports, specs, strict=True):
                port.get_tensor().set_names({spec.name})
        _reduce_in_two_steps(graph)
        openvino.save_model(graph, str(folder / MODEL), compress_to_fp16=False)

    return model.shared("openvino-fp32", write)


def _reduce_in_two_steps(graph: "Model") -> None:
    """Make each reduction over the last of three dimensions keep that dimension, and squeeze it afterwards.

    Into a reduction that drops it, the CPU plugin fuses a following product or sum with a vector along the wrong
    dimension (OpenVINO 2026.4: ``x.mean(2) * weight`` of x [2, 6, 8] is off by 90%).
    """
    library()
    from openvino import opset13

    kinds = {"ReduceMean": opset13.reduce_mean, "ReduceSum": opset13.reduce_sum, "ReduceMax": opset13.reduce_max,
             "ReduceMin": opset13.reduce_min, "ReduceProd": opset13.reduce_prod, "ReduceL1": opset13.reduce_l1,
             "ReduceL2": opset13.reduce_l2}  # fmt: skip
    for node in graph.get_ops():
        make = kinds.get(node.get_type_name())
        if make is None or node.get_attributes()["keep_dims"] or len(node.get_input_partial_shape(0)) != 3:
            continue
        values, axes = node.input_value(0), node.input_value(1)
        constant = axes.get_node()
        if constant.get_type_name() != "Constant" or constant.get_data().reshape(-1).tolist() not in ([2], [-1]):
            continue
        targets = list(node.output(0).get_target_inputs())
        names = node.output(0).get_names()
        dropped = opset13.squeeze(make(values, axes, keep_dims=True), axes).output(0)
        for target in targets:
            target.replace_source_output(dropped)
        dropped.set_names(names)
    graph.validate_nodes_and_infer_types()


def require_precision(compiled: "CompiledModel", precision: str) -> None:
    """Raise RuntimeError unless the compiled graph does its arithmetic in ``precision``."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if hint != HINTS[precision]:
        raise RuntimeError(f"asked OpenVINO for {precision}, found its precision hint at {hint}")
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    types = {str(n["runtimePrecision"].value) for n in nodes if str(n["layerType"].value) in _ARITHMETIC}
    if types and (HINTS[precision] not in types or (precision == "fp32" and types & {"bf16", "f16"})):
        raise RuntimeError(f"asked OpenVINO for {precision}, found its arithmetic in {', '.join(sorted(types))}")


def library() -> "ModuleType":
    """Import OpenVINO without its usage statistics, which every import would send over the network."""
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it fails, as if not installed
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    module: ModuleType = openvino
    return module


@functools.cache
def core() -> "Core":
    """Return the only core of this process, which stays until the process ends.

    The CPU plugin gives the thread that makes it a stack for signal handlers, and takes that stack away when the last
    model of the core goes, in whatever thread that is (OpenVINO 2026.4). If it is another one, the first thread's next
    signal ends the process.
    """
    return library().Core()


def _through_torch(model: "CapturedModel") -> "Model":
    cpu = Device(kind="cpu", name="host", uuid="cpu-host")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = library().convert_model(model.program("fp32", cpu))
    # The frontend makes sizes dynamic; inputs keep the order of the captured graph.
    graph.reshape({at: list(spec.shape) for at, spec in enumerate(model.workload.inputs)})
    return graph


def _through_onnx(model: "CapturedModel") -> "Model":
    from autotune.model.onnx import FILE, exported

    return core().read_model(str(exported(model, "fp32") / FILE))


def _compiled(folder: Path, configuration: Configuration) -> "CompiledModel":
    properties = {
        "INFERENCE_PRECISION_HINT": HINTS[str(configuration["precision"])],
        "INFERENCE_NUM_THREADS": configuration["threads"],
        "ENABLE_CPU_PINNING": configuration["pinning"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core().compile_model(str(folder / MODEL), "CPU", properties)


BACKEND = OpenVinoBackend()
