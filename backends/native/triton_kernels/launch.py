"""Compiled Triton kernels as something to call: launched into torch's current stream by the driver alone."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.backends.native.triton_kernels.ahead import CompiledKernel, CubinRecord
from autotune.backends.native.triton_kernels.driver import LOCAL_SIZE_BYTES, NUM_REGS, Driver, Module, driver
from autotune.backends.native.triton_kernels.plan import POINTER_ALIGNMENT_BYTES, Argument, Launch
from autotune.errors import WorkError

_NUMBERS: Mapping[str, Any] = {
    "i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip


class LoadedKernel:
    """One compiled kernel on a device, by its number in torch."""

    def __init__(self, compiled: CompiledKernel, device: int, *, on: Driver | None = None) -> None:
        """Load it; raises WorkError where there is no driver, or the cubin is damaged or for another architecture."""
        self.record, cubin = compiled.read()
        self._asked = f"Triton kernel {self.record.function} ({compiled.key[:16]}, {self.record.target})"
        unknown = [kind for _, kind in self.record.parameters if not kind.startswith("*") and kind not in _NUMBERS]
        if unknown:
            raise WorkError(self._asked, found=f"parameters of {unknown}", expected=f"pointers and {sorted(_NUMBERS)}")
        self._module = Module(
            on or driver(), device, cubin, self.record.function, self.record.shared_bytes, self._asked
        )  # fmt: skip

    @property
    def made(self) -> dict[str, float]:
        """What the compiler made of it: registers and spilled bytes a thread, bytes of shared memory a block."""
        return {
            "registers": self._module.attribute(NUM_REGS),
            "spilled_bytes": self._module.attribute(LOCAL_SIZE_BYTES),
            "shared_bytes": self.record.shared_bytes,
        }

    def launch(self, grid: tuple[int, int, int], arguments: Mapping[str, int | float], stream: int) -> None:
        """Put one launch into a stream; ``arguments`` are numbers, and addresses on the device, by name.

        Raises WorkError where the driver refuses it, or an address is not aligned as the kernel takes for granted.
        """
        values = [_value(self._asked, name, kind, arguments[name]) for name, kind in self.record.parameters]
        values += [ctypes.c_void_p()] * self.record.hidden_pointers
        record = self.record
        self._module.launch(grid, record.threads, record.shared_bytes, stream, values, early=record.early)

    def close(self) -> None:
        """Unload it; no launch may be under way, and no graph that holds one may be replayed any more."""
        self._module.close()


class LoadedPlan:
    """The launches of a plan on a device. Stateless, so that it serves several threads, streams and CUDA graphs."""

    def __init__(
        self, compiled: Sequence[CompiledKernel], launches: Sequence[Launch], *, workspace_bytes: int, device: int,
        on: Driver | None = None,
    ) -> None:  # fmt: skip
        """Load the kernels of ``plan.sources``, in their order, and keep ``plan.launches`` and its workspace's size."""
        self._launches, self._workspace_bytes, self._device = tuple(launches), workspace_bytes, device
        self._kernels: list[LoadedKernel] = []
        try:
            for kernel in compiled:
                self._kernels.append(LoadedKernel(kernel, device, on=on))
            for launch in self._launches:
                _check(self._kernels[launch.kernel].record, launch)
        except WorkError:
            self.close()
            raise

    @property
    def made(self) -> dict[str, float]:
        """What the compiler made of the first kernel, which does the work; a second one only adds up."""
        return self._kernels[0].made

    def __call__(self, buffers: Mapping[str, Any]) -> None:
        """Put the launches into torch's current stream; may be captured in a CUDA graph.

        ``buffers`` are contiguous tensors on the device, by the names of ``plan.buffers``.
        """
        import torch

        given = {name: tensor.data_ptr() for name, tensor in buffers.items()}
        workspace = None
        if self._workspace_bytes:
            # Of torch's own, each time: its allocator keeps what one stream or graph uses from the others.
            workspace = torch.empty(self._workspace_bytes, dtype=torch.uint8, device=f"cuda:{self._device}")
            given["workspace"] = workspace.data_ptr()
        self.launch(given, torch.cuda.current_stream(self._device).cuda_stream)

    def launch(self, addresses: Mapping[str, int], stream: int) -> None:
        """Put the launches into a stream; ``addresses`` of the buffers and, where there is one, of ``workspace``."""
        for launch in self._launches:
            arguments = {name: _bound(value, addresses) for name, value in launch.arguments}
            self._kernels[launch.kernel].launch(launch.grid, arguments, stream)

    def close(self) -> None:
        """Unload the kernels; no launch may be under way, and no graph that holds one may be replayed any more."""
        while self._kernels:
            self._kernels.pop().close()


def _bound(value: Argument, addresses: Mapping[str, int]) -> int | float:
    return addresses[value] if isinstance(value, str) else value


def _check(record: CubinRecord, launch: Launch) -> None:
    names, given = {name for name, _ in record.parameters}, {name for name, _ in launch.arguments}
    if names != given:
        raise WorkError(
            f"launching Triton kernel {record.function}", found=f"arguments {sorted(given)}",
            expected=f"{sorted(names)}, as it was compiled", run="the same with the kernel that the plan names",
        )  # fmt: skip


def _value(asked: str, name: str, kind: str, value: int | float) -> Any:
    if not kind.startswith("*"):
        return _NUMBERS[kind](value)
    address = int(value)
    if address % POINTER_ALIGNMENT_BYTES:
        raise WorkError(
            asked, found=f"{name} at {address:#x}",
            expected=f"an address that is a multiple of {POINTER_ALIGNMENT_BYTES} bytes; a copy has one",
        )  # fmt: skip
    return ctypes.c_void_p(address)
