"""One CUDA-graph runner for every backend that can be captured."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autotune.errors import ArtifactError
from autotune.runtime.signature import Signature

if TYPE_CHECKING:
    import torch

WARM_UP_CALLS = 3
"""Calls before the capture: libraries allocate workspaces, choose algorithms and compile at the first ones."""

log = logging.getLogger(__name__)


class CudaGraphRunner:
    """Replays a captured call: copies the inputs in, launches one graph, returns clones of its outputs.

    ``call`` takes flat CUDA tensors and returns a tuple of tensors; it must not synchronise. Its allocations stay in
    a memory pool of the graph's own. Inputs may lie on the CPU or the GPU. Safe from several threads and streams: a
    lock orders the host, and a call on another stream than the last call's waits for that call on the device.

    ``static_outputs=True`` returns the graph's own output tensors, which the next call overwrites: it saves a copy, and
    only a caller that reads them before its next call may ask for it.
    """

    def __init__(
        self,
        call: "Callable[..., tuple[torch.Tensor, ...]]",
        example_inputs: "Sequence[torch.Tensor]",
        *,
        signature: Signature,
        static_outputs: bool = False,
    ) -> None:
        """Warm up and capture on the device of the example inputs, which also give the layout of the input buffers.

        Raises ArtifactError if the call cannot be captured.
        """
        import torch

        self._device = example_inputs[0].device
        if self._device.type != "cuda":
            raise ValueError(f"a CUDA graph needs its inputs on a GPU, found {self._device}")
        self._signature = signature
        self._static_outputs = static_outputs
        self._lock = threading.Lock()
        # Both are entered only under the lock, so one of each is enough; making them anew costs microseconds a call.
        self._on_device, self._no_grad = torch.cuda.device(self._device), torch.no_grad()
        self._inputs = [tensor.detach().clone() for tensor in example_inputs]
        self._call: object = call  # the graph reads the weights that the call owns
        with self._on_device, self._no_grad:
            self._graph, self._outputs = _capture(call, self._inputs, self._device)
            self._current_stream, self._empty_like = torch.cuda.current_stream, torch.empty_like
            self._copy_together: Callable[..., None] = torch._foreach_copy_
            self._stream = self._current_stream(self._device)
            # Reading a stream's handle costs a tenth of making a stream object, and most calls need no more.
            self._handle_now: Callable[[int], int] = torch._C._cuda_getCurrentRawStream
            self._handle, self._index = self._stream.cuda_stream, self._stream.device.index

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call on the caller's current stream; raises ModelError if the inputs do not fit."""
        checked = self._signature.check(inputs)
        with self._lock, self._on_device, self._no_grad:
            if self._graph is None:
                raise ArtifactError("a closed runner was called", expected="a call before close()")
            if self._handle_now(self._index) != self._handle:
                stream = self._current_stream(self._device)
                stream.wait_stream(self._stream)
                self._stream, self._handle = stream, stream.cuda_stream
            self._copy(self._inputs, checked)  # blocking for memory of the host, which the caller may reuse at once
            self._graph.replay()
            if self._static_outputs:
                return self._outputs
            fresh = [self._empty_like(output) for output in self._outputs]
            self._copy(fresh, self._outputs)
            return tuple(fresh)

    def _copy(self, to: "list[torch.Tensor]", given: "Sequence[torch.Tensor]") -> None:
        """Copy tensors, by one launch if several lie on the device."""
        if len(to) > 1 and all(tensor.is_cuda for tensor in given):
            self._copy_together(to, given)
            return
        for buffer, tensor in zip(to, given, strict=True):
            buffer.copy_(tensor)

    def close(self) -> None:
        """Wait for the last replay, then free the graph, its memory pool and its buffers."""
        with self._lock:
            if self._graph is None:
                return
            self._stream.synchronize()
            self._graph.reset()
            self._graph, self._call, self._inputs, self._outputs = None, None, [], ()


def _capture(
    call: "Callable[..., tuple[torch.Tensor, ...]]", inputs: "list[torch.Tensor]", device: "torch.device"
) -> "tuple[torch.cuda.CUDAGraph | None, tuple[torch.Tensor, ...]]":
    """Warm up on a side stream, then capture on it; returns the graph and its own output tensors."""
    import torch

    side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call(*inputs)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: allocations of other threads neither enter the capture nor break it.
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            outputs = tuple(call(*inputs))
        if any(output.device != device for output in outputs):
            raise RuntimeError(f"an output lies on {', '.join(sorted({str(o.device) for o in outputs}))}, not {device}")
    except RuntimeError as error:
        # Out of memory is no fault of the graph: the trial must be recorded as out of memory.
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ArtifactError(
            "the call cannot be captured as a CUDA graph",
            found=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            expected="a call that neither synchronises with the device nor allocates outside torch",
            run="the same configuration with cuda_graph off",
        ) from error
    torch.cuda.current_stream(device).wait_stream(side)
    log.debug("captured a CUDA graph with %d inputs and %d outputs", len(inputs), len(outputs))
    return graph, outputs
