"""ONNX Runtime: the graph exported by torch.onnx, run by the CPU provider or the CUDA provider.

On a CPU a build runs ONNX Runtime's graph optimisation and stores the result, so that loading neither optimises nor
repacks (ResNet-50: 0.05 s of CPU time instead of 0.2 s, answers equal bit by bit). The CUDA provider's optimisations
depend on provider options, and not all of them can be stored. For a GPU a build therefore stores the exported graph,
which needs no GPU, and the session optimises at load.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
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
from autotune.runtime.artifact import ArtifactRecord, read_example, read_record
from autotune.runtime.installed import install_command
from autotune.runtime.signature import Signature
from autotune.search_spaces import onnxruntime as options

if TYPE_CHECKING:
    import onnxruntime
    import torch

    from autotune.model.source import CapturedModel

# Parameters that are options of the CUDA provider, by its names; truth values become 0 and 1.
_CUDA_OPTIONS = {"conv_algo_search": "cudnn_conv_algo_search", "nhwc": "prefer_nhwc", "cuda_graph": "enable_cuda_graph"}

log = logging.getLogger(__name__)


class OnnxRuntimeBackend:
    """Exports the captured graph to ONNX, or takes a model that came as ONNX, and runs it in ONNX Runtime."""

    name = options.NAME
    toolchain = ("cuda", "cudnn", "onnxruntime")
    build_uses_device = False
    serving_formats = ("onnx",)
    build_modules = onnx_exporter.MODULES
    builds_slowly = False
    # For a CPU the stored graph is laid out for the vector width of the processor that built it.
    adapts_at_load = ("cuda",)
    model_formats = (ONNX,)

    def probe(self, device: Device) -> Availability:
        """Report if ONNX Runtime and the exporter are installed; on a GPU, with the CUDA provider's library."""
        extra = "cpu" if device.kind == "cpu" else "gpu"
        remedy = install_command(extra)
        for package in ("onnxruntime", "onnx", "onnxscript"):
            if find_spec(package) is None:
                return Availability(works=False, reason=f"{package} is not installed", remedy=remedy)
        spec = find_spec("onnxruntime")
        library = Path(spec.origin or "").parent / "capi" / "libonnxruntime_providers_cuda.so" if spec else Path()
        if device.kind == "cuda" and not library.is_file():
            reason = "the installed onnxruntime has no CUDA provider; it is the package for CPUs"
            return Availability(works=False, reason=reason, remedy=f"pip uninstall -y onnxruntime && {remedy}")
        return Availability(works=True)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Return the search space; it is the same with and without a factory."""
        return options.space(device, workload)

    def is_own_way(self, configuration: Configuration, device: Device, model_format: str) -> bool:
        """Return true for a session without options, by which an ONNX model is run today."""
        return options.is_plain_export(configuration, device)

    def is_served(self, configuration: Configuration, device: Device) -> bool:
        """Return true for files that a session without options runs."""
        return options.is_served(configuration, device)

    def is_plain_export(self, configuration: Configuration, device: Device) -> bool:
        """Return true for the exported graph, in full precision."""
        return options.is_plain_export(configuration, device)

    def write_served(self, artifact: Path, target: Path, mark: Mapping[str, str]) -> None:
        """Copy the model and its weights; the mark is in the model's metadata."""
        from autotune.model.onnx import FILE
        from autotune.model.onnx_file import with_metadata

        (target / FILE).write_bytes(
            with_metadata((artifact / FILE).read_bytes(), {f"autotune.{name}": value for name, value in mark.items()})
        )
        for weights in artifact.glob(f"{FILE}.*"):
            shutil.copyfile(weights, target / weights.name)

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Export the graph, fuse it if the configuration says so, and write the model."""
        from autotune.model.onnx import FILE, WEIGHTS, exported
        from autotune.model.source import CapturedModel

        if not isinstance(model, CapturedModel):
            raise TypeError(f"an ONNX graph needs a CapturedModel, found {type(model).__name__}")
        precision = str(configuration["precision"])
        fused = bool(configuration.get("transformer_fusions", False))
        source = fused_model(model, precision) if fused else exported(model, precision)
        if device.kind == "cpu":
            import onnxruntime

            store = _session_options(configuration, level=str(configuration["graph_optimization"]))
            store.optimized_model_filepath = str(folder / FILE)
            store.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
            store.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            onnxruntime.InferenceSession(str(source / FILE), store, providers=["CPUExecutionProvider"])
        else:
            shutil.copytree(source, folder, dirs_exist_ok=True)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return false: graph optimisation follows rules; convolution algorithms are chosen at the first run."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return true with the exhaustive search among convolution algorithms, which the first run does."""
        return configuration.get("conv_algo_search", "") == "EXHAUSTIVE"

    def load(self, folder: Path, device: Device) -> Runner:
        """Open a session on the stored model."""
        from autotune.model.onnx import FILE
        from autotune.model.onnx_file import check_onnx

        check_onnx(folder / FILE)
        record = read_record(folder)
        if device.kind == "cpu":
            import onnxruntime

            stored = _session_options(record.configuration, level="disabled")
            session = onnxruntime.InferenceSession(str(folder / FILE), stored, providers=["CPUExecutionProvider"])
            return CpuRunner(session, record.inputs, record.outputs)
        return _load_on_cuda(folder / FILE, record, device)


class CpuRunner:
    """A session on the CPU provider; reads the caller's tensors in place, and answers with fresh ones."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._signature = Signature(inputs, "cpu")
        # A fusion drops an input that nothing reads.
        read = {argument.name for argument in session.get_inputs()}
        self._inputs = [(spec.name, spec.name in read) for spec in inputs]
        self._outputs = [spec.name for spec in outputs]

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call, from any thread; raises ModelError if the inputs do not fit."""
        import torch

        session = self._session
        if session is None:
            raise ArtifactError("a closed runner was called", expected="a call before close()")
        feeds = {
            name: tensor.detach().contiguous().numpy()
            for (name, is_read), tensor in zip(self._inputs, self._signature.place(inputs), strict=True)
            if is_read
        }
        return tuple(torch.from_numpy(answer) for answer in session.run(self._outputs, feeds))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def fused_model(model: "CapturedModel", precision: str) -> Path:
    """Return the folder with the model after ONNX Runtime's offline fusions for transformers; builds share it.

    Attention is fused in the captured graph, of a model that came as ONNX by the library like the rest (bias and GELU,
    residual and layer norm, embeddings): ``onnxruntime.transformers``. Raises RuntimeError if nothing was fused.
    """
    from onnxruntime.transformers.optimizer import optimize_model

    from autotune.backends.onnxruntime_attention import fuse_attention
    from autotune.model.onnx import FILE, exported

    def write(folder: Path) -> None:
        if model.file is not None:
            attention = exported(model, precision)
        else:
            attention = exported(model, precision, variant="attention", rewrite=fuse_attention)
        logging.getLogger("fusion_base").setLevel(logging.WARNING)
        optimized = optimize_model(str(attention / FILE), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
        statistics: dict[str, int] = optimized.get_fused_operator_statistics()
        if not any(count for operator, count in statistics.items() if operator not in ("Gelu", "LayerNormalization")):
            raise RuntimeError("transformer_fusions: nothing in this graph could be fused")
        log.debug("fused %s", {operator: count for operator, count in statistics.items() if count})
        optimized.save_model_to_file(str(folder / FILE), use_external_data_format=True)

    return model.shared(f"onnxruntime-{'fp16' if precision == 'fp16' else 'fp32'}-fused", write)


def _session_options(configuration: Configuration, *, level: str) -> "onnxruntime.SessionOptions":
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    levels = onnxruntime.GraphOptimizationLevel
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    session_options.inter_op_num_threads = 1
    session_options.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "disabled": levels.ORT_DISABLE_ALL,
    }[level]
    session_options.intra_op_num_threads = int(configuration.get("threads", 1))
    session_options.add_session_config_entry(
        "session.intra_op.allow_spinning", str(int(configuration.get("spinning", True)))
    )
    return session_options


def _load_on_cuda(path: Path, record: ArtifactRecord, device: Device) -> Runner:
    import torch  # first: it brings the CUDA libraries that the provider needs

    from autotune.backends.onnxruntime_cuda import CudaRunner, OrtCudaGraphRunner, preload_libraries

    preload_libraries()
    import onnxruntime

    configuration = record.configuration
    stream = torch.cuda.current_stream(device.index)
    if stream.cuda_stream == 0:
        # To the provider 0 means "no stream": it would create one that is not ordered with torch's.
        stream = torch.cuda.Stream(device.index)  # type: ignore[no-untyped-call]
    provider = {
        "device_id": str(device.index),
        "user_compute_stream": str(stream.cuda_stream),
        "use_tf32": str(int(configuration["precision"] == "tf32")),
    }
    for parameter, option in _CUDA_OPTIONS.items():
        value = configuration.get(parameter, "")
        if value != "":
            provider[option] = str(int(value)) if isinstance(value, bool) else str(value)
    session = onnxruntime.InferenceSession(
        str(path),
        _session_options(configuration, level=str(configuration["graph_optimization"])),
        providers=[("CUDAExecutionProvider", provider), "CPUExecutionProvider"],
    )
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise ArtifactError(
            f"{configuration} does not load on {device.torch_name}",
            found=f"ONNX Runtime fell back to {session.get_providers()}",
            expected="its CUDA provider, built for the CUDA and cuDNN versions that torch brings",
            run="autotune doctor",
        )
    if configuration["cuda_graph"]:
        return OrtCudaGraphRunner(session, stream, device, record.inputs, record.outputs, read_example(path.parent))
    return CudaRunner(session, stream, device, record.inputs, record.outputs)


BACKEND = OnnxRuntimeBackend()
