"""Compiled Triton kernels that are loaded: the driver alone launches them into torch's current stream."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.backends.native.cuda_driver import LOCAL_SIZE_BYTES, NUM_REGS, CudaDriver, CudaModule, driver
from autotune.backends.native.triton_kernels.launch_plan import POINTER_ALIGNMENT_BYTES, Argument, Launch
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, CubinRecord
from autotune.errors import WorkError

if TYPE_CHECKING:
    from _ctypes import _CData as CData

    from torch import Tensor

_NUMBERS: "Mapping[str, Callable[..., CData]]" = {
    "i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip


class LoadedCubin:
    """One compiled kernel on a device, which has torch's number."""

    def __init__(self, compiled: CompiledCubin, device: int, *, on: CudaDriver | None = None) -> None:
        """Load it; raises WorkError if there is no driver, or the cubin is damaged or for another architecture."""
        self.record, cubin = compiled.read()
        self._action = f"Triton kernel {self.record.function} ({compiled.key[:16]}, {self.record.target})"
        unknown = [kind for _, kind in self.record.parameters if not kind.startswith("*") and kind not in _NUMBERS]
        if unknown:
            raise WorkError(self._action, found=f"parameters of {unknown}", expected=f"pointers and {sorted(_NUMBERS)}")
        self._module = CudaModule(
            on or driver(), device, cubin, self.record.function, self.record.shared_bytes, self._action
        )  # fmt: skip

    @property
    def resource_usage(self) -> dict[str, float]:
        """Registers and spilled bytes per thread, bytes of shared memory per block."""
        return {
            "registers": self._module.attribute(NUM_REGS),
            "spilled_bytes": self._module.attribute(LOCAL_SIZE_BYTES),
            "shared_bytes": self.record.shared_bytes,
        }

    def launch(self, grid: tuple[int, int, int], arguments: Mapping[str, int | float], stream: int) -> None:
        """Enqueue one launch in a stream; ``arguments`` are numbers, and addresses on the device, by name.

        Raises WorkError if the driver refuses it, or an address does not have the alignment that the kernel requires.
        """
        values = [_value(self._action, name, kind, arguments[name]) for name, kind in self.record.parameters]
        values += [ctypes.c_void_p()] * self.record.hidden_pointers
        record = self.record
        self._module.launch(
            grid, record.threads, record.shared_bytes, stream, values, programmatic_launch=record.programmatic_launch
        )

    def close(self) -> None:
        """Unload the kernel; no launch may be running, and no graph that contains one may be replayed afterwards."""
        self._module.close()


class LoadedPlan:
    """The launches of a plan on a device. Stateless: several threads, streams and CUDA graphs may use it at once."""

    def __init__(
        self, compiled: Sequence[CompiledCubin], launches: Sequence[Launch], *, workspace_bytes: int, device: int,
        on: CudaDriver | None = None,
    ) -> None:  # fmt: skip
        """Load the kernels of ``plan.sources``, in their order, and keep ``plan.launches`` and its workspace's size."""
        self._launches, self._workspace_bytes, self._device = tuple(launches), workspace_bytes, device
        self._kernels: list[LoadedCubin] = []
        try:
            for kernel in compiled:
                self._kernels.append(LoadedCubin(kernel, device, on=on))
            for launch in self._launches:
                _check(self._kernels[launch.kernel].record, launch)
        except WorkError:
            self.close()
            raise

    @property
    def resource_usage(self) -> dict[str, float]:
        """The resources of the first kernel, which does the work; a second one only adds partial sums."""
        return self._kernels[0].resource_usage

    def __call__(self, buffers: "Mapping[str, Tensor]") -> None:
        """Enqueue the launches in torch's current stream; may be captured in a CUDA graph.

        ``buffers`` are contiguous tensors on the device, by the names of ``plan.buffers``.
        """
        import torch

        given = {name: tensor.data_ptr() for name, tensor in buffers.items()}
        workspace = None
        if self._workspace_bytes:
            # From torch's allocator each time, which keeps the memory of one stream or graph separate from the others.
            workspace = torch.empty(self._workspace_bytes, dtype=torch.uint8, device=f"cuda:{self._device}")
            given["workspace"] = workspace.data_ptr()
        self.launch(given, torch.cuda.current_stream(self._device).cuda_stream)

    def launch(self, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue the launches in a stream; ``addresses`` are those of the buffers, and of any ``workspace``."""
        for launch in self._launches:
            arguments = {name: _bound(value, addresses) for name, value in launch.arguments}
            self._kernels[launch.kernel].launch(launch.grid, arguments, stream)

    def close(self) -> None:
        """Unload the kernels; no launch may be running, and no graph that contains one may be replayed afterwards."""
        while self._kernels:
            self._kernels.pop().close()


def _bound(value: Argument, addresses: Mapping[str, int]) -> int | float:
    return addresses[value] if isinstance(value, str) else value


def _check(record: CubinRecord, launch: Launch) -> None:
    names, given = {name for name, _ in record.parameters}, {name for name, _ in launch.arguments}
    if names != given:
        raise WorkError(
            f"launching Triton kernel {record.function}", found=f"arguments {sorted(given)}",
            expected=f"{sorted(names)}, as it was compiled", run="the same call with the kernel that the plan names",
        )  # fmt: skip


def _value(action: str, name: str, kind: str, value: int | float) -> "CData":
    if not kind.startswith("*"):
        return _NUMBERS[kind](value)
    address = int(value)
    if address % POINTER_ALIGNMENT_BYTES:
        raise WorkError(
            action, found=f"{name} at {address:#x}",
            expected=f"an address that is a multiple of {POINTER_ALIGNMENT_BYTES} bytes; a copy has one",
        )  # fmt: skip
    return ctypes.c_void_p(address)
