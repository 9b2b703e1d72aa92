"""A torch callable as a runner: shared by eager, torchscript and inductor."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from autotune.backend import Runner
from autotune.errors import ArtifactError
from autotune.records.device import Device
from autotune.runtime.cuda_graph import CudaGraphRunner
from autotune.runtime.settings import Settings
from autotune.runtime.signature import Signature
from autotune.runtime.turn import alone, computing

if TYPE_CHECKING:
    import torch

SETTLING_CALLS = 3
"""Calls at load: TorchScript profiles in the first and optimises in the second, cuDNN chooses algorithms."""


def torch_runner(
    call: "Callable[..., Iterable[torch.Tensor]]", settings: Settings, device: Device, example: "Sequence[torch.Tensor]"
) -> Runner:
    """Settle a callable on the device by the study's own example, and capture a CUDA graph if the settings ask for it.

    ``call`` takes flat tensors on the device and returns a tuple or list of flat tensors. The deployed call is then the
    call that was timed: nothing compiles, profiles or searches in it. ``example`` may lie on the CPU. In a study the
    device is this load's alone meanwhile if cuDNN times kernels, and otherwise no timing's.
    """
    import torch

    signature = Signature(settings.inputs, device.torch_name)
    placed = signature.place(example)
    with alone() if settings.cudnn_benchmark else computing(), settings.switches.overlay(), torch.no_grad():
        if settings.channels_last:
            placed = list(map(channels_last, placed))
        borrowed = _settle(call, placed)
        if settings.cuda_graph:
            return CudaGraphRunner(lambda *inputs: tuple(call(*inputs)), placed, signature=signature)
    return TorchRunner(call, settings, signature, borrowed)


class TorchRunner:
    """Calls a torch callable under its configuration's switches; satisfies :class:`autotune.backend.Runner`.

    Runs under ``no_grad`` and not ``inference_mode``: the caller gets ordinary tensors, to be changed in place or fed
    into a module that is trained. ``borrowed`` are the outputs that the callable does not make anew.
    """

    def __init__(
        self,
        call: "Callable[..., Iterable[torch.Tensor]]",
        settings: Settings,
        signature: Signature,
        borrowed: frozenset[int],
    ) -> None:
        import torch

        self._call: Callable[..., Iterable[torch.Tensor]] | None = call
        self._overlay = settings.switches.overlay()
        self._signature = signature
        self._borrowed = borrowed
        self._channels_last = settings.channels_last
        self._no_grad = torch.no_grad

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call; raises ModelError if the inputs do not fit."""
        call = self._call
        if call is None:
            raise ArtifactError("a closed runner was called", expected="a call before close()")
        with self._overlay, self._no_grad():
            placed = self._signature.place(inputs)
            if self._channels_last:
                placed = list(map(channels_last, placed))
            outputs = tuple(call(*placed))
            if self._borrowed:
                return tuple(out.clone() if i in self._borrowed else out for i, out in enumerate(outputs))
            return outputs

    def close(self) -> None:
        """Drop the callable and with it the weights."""
        self._call = None


def _settle(call: "Callable[..., Iterable[torch.Tensor]]", example: "Sequence[torch.Tensor]") -> frozenset[int]:
    """Call until nothing is left to profile; return the outputs that share memory with an input or with other calls.

    Such an output is an input passed through, or a constant of the model, which the next caller would change in place.
    """
    inputs = [tensor.clone() for tensor in example]
    memory = _memory(inputs)
    first = tuple(call(*inputs))
    for _ in range(SETTLING_CALLS - 1):
        inputs = [tensor.clone() for tensor in example]
        again = tuple(call(*inputs))
    memory |= _memory(inputs) | _memory(first)
    return frozenset(i for i, output in enumerate(again) if _memory([output]) & memory)


def _memory(tensors: "Sequence[torch.Tensor]") -> set[int]:
    """Return the addresses of storages that are not empty; a layout without a storage has none."""
    import torch

    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
    return {storage.data_ptr() for storage in storages if storage.nbytes()}


def channels_last(tensor: "torch.Tensor") -> "torch.Tensor":
    """Put an image batch [batch, channels, height, width] into channels-last memory; leave other tensors alone."""
    import torch

    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
