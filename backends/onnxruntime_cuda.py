"""Runners on ONNX Runtime's CUDA provider: torch's own memory bound to the session, ordered by torch's streams.

The session computes on one stream, which the runner chooses. If the caller uses another stream, the session's stream
first waits for the caller's work, and the caller's stream then waits for the session's. Both wait on the device, not
on the host, so a caller sees the same order as with any operator of torch.
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

import contextlib
import io
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autotune.records.device import Device
from autotune.records.workload import TensorSpec
from autotune.runtime.signature import Signature

if TYPE_CHECKING:
    import onnxruntime
    import torch

# Kernels read up to 16 bytes at once; a slice of a tensor may start anywhere.
ALIGNMENT = 16
# ONNX's numbers for torch's dtypes (onnx.TensorProto.DataType); IO binding accepts them even if NumPy lacks the type.
ONNX_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}

log = logging.getLogger(__name__)


def preload_libraries() -> None:
    """Load the CUDA and cuDNN libraries of the ``nvidia-*`` packages, if ONNX Runtime can (1.21 and newer)."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            onnxruntime.preload_dlls()
        log.debug("%s", output.getvalue())


class CudaRunner:
    """Binds the caller's tensors and fresh outputs in each call; copies only inputs that lie on the CPU."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        stream: "torch.cuda.Stream",
        device: Device,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        import onnxruntime
        import torch

        self._session = session
        self._stream = stream
        self._device = torch.device(device.torch_name)
        self._signature = Signature(inputs, device.torch_name)
        self._lock = threading.Lock()
        read = {argument.name for argument in session.get_inputs()}
        self._inputs = [(spec.name, ONNX_TYPES[spec.dtype], spec.name in read) for spec in inputs]
        self._outputs = [
            (spec.name, ONNX_TYPES[spec.dtype], spec.shape, getattr(torch, spec.dtype)) for spec in outputs
        ]
        self._options = onnxruntime.RunOptions()
        # The streams order the work; without this the host waits for the device at the end of each run.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call; calls from several threads take turns. Raises ModelError if the inputs do not fit."""
        tensors = [_bindable(tensor) for tensor in self._signature.place(inputs)]
        answers = self._empty_outputs()
        with self._lock, self._ordered():
            self._session.run_with_iobinding(self._bind(tensors, answers), self._options)
        return tuple(answers)

    def close(self) -> None:
        """Wait for pending work, then release the session."""
        if self._session is not None:
            self._stream.synchronize()
        self._session = None

    def _empty_outputs(self) -> "list[torch.Tensor]":
        import torch

        return [torch.empty(shape, dtype=dtype, device=self._device) for _, _, shape, dtype in self._outputs]

    def _bind(self, inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]") -> "onnxruntime.IOBinding":
        binding = self._session.io_binding()
        index = self._device.index
        for (name, onnx_type, is_read), tensor in zip(self._inputs, inputs, strict=True):
            if is_read:
                binding.bind_input(name, "cuda", index, onnx_type, list(tensor.shape), tensor.data_ptr())
        for (name, onnx_type, shape, _), tensor in zip(self._outputs, outputs, strict=True):
            binding.bind_output(name, "cuda", index, onnx_type, list(shape), tensor.data_ptr())
        return binding

    @contextmanager
    def _ordered(self) -> Iterator[None]:
        """Order the session's work after the caller's earlier work, and the caller's later work after the session's.

        So memory that the caller frees afterwards is safe too, although the session runs on a stream of its own.
        """
        import torch

        current = torch.cuda.current_stream(self._device)
        if current == self._stream:
            yield
            return
        self._stream.wait_stream(current)
        try:
            yield
        finally:
            current.wait_stream(self._stream)


class OrtCudaGraphRunner(CudaRunner):
    """Replays the graph that ONNX Runtime captured over fixed buffers; copies inputs in and answers out.

    During the capture the buffers hold ``example``, the study's own inputs: a model need not accept any others.
    ONNX Runtime keeps one captured graph for each thread: the first call of a new thread captures again.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        stream: "torch.cuda.Stream",
        device: Device,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        example: "Sequence[torch.Tensor]",
    ) -> None:
        super().__init__(session, stream, device, inputs, outputs)
        self._fixed_inputs = [tensor.contiguous().clone() for tensor in self._signature.place(example)]
        self._fixed_outputs = self._empty_outputs()
        self._binding = self._bind(self._fixed_inputs, self._fixed_outputs)
        with self._lock, self._ordered():
            self._session.run_with_iobinding(self._binding, self._options)  # runs, captures and replays once
        stream.synchronize()

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call; calls from several threads take turns. Raises ModelError if the inputs do not fit."""
        import torch

        checked = self._signature.check(inputs)
        answers = self._empty_outputs()
        with self._lock, self._ordered():
            with torch.cuda.stream(self._stream):
                for fixed, tensor in zip(self._fixed_inputs, checked, strict=True):
                    fixed.copy_(tensor.detach())
            self._session.run_with_iobinding(self._binding, self._options)
            with torch.cuda.stream(self._stream):
                for answer, fixed in zip(answers, self._fixed_outputs, strict=True):
                    answer.copy_(fixed)
        return tuple(answers)

    def close(self) -> None:
        """Release the session before the buffers that its graph points to."""
        super().close()
        self._binding = None
        self._fixed_inputs = self._fixed_outputs = []


def _bindable(tensor: "torch.Tensor") -> "torch.Tensor":
    dense = tensor.detach().contiguous()
    return dense.clone() if dense.data_ptr() % ALIGNMENT else dense
