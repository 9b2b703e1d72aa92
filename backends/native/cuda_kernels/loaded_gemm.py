"""Our own GEMMs, loaded into torch's context and launched by the driver."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autotune.backends.native.cuda_driver import CudaDriver, CudaModule, driver
from autotune.backends.native.cuda_kernels.cubin_cache import CompiledKernel
from autotune.backends.native.cuda_kernels.launch_arguments import HopperOrder, Order, order_of
from autotune.backends.native.cuda_kernels.tensor_maps import in_whole_boxes, map_rows, map_window
from autotune.backends.native.kernel_kind import check_operands
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch import Tensor

Blocks = tuple[int, int, int]


class LoadedGemm(ABC):
    """A kernel with the tile and the splits of a candidate, for one problem; a subclass knows its parameter.

    Loading it raises WorkError if it is for another architecture or a later driver. It must be loaded before a CUDA
    graph is captured, and its code stays on the device until the process ends: graphs may hold it.
    """

    def __init__(
        self, compiled: CompiledKernel, problem: GemmProblem, candidate: Configuration, device: Device, *,
        programmatic_launch: bool, on: CudaDriver | None = None,
    ) -> None:  # fmt: skip
        self._problem, self._tile, self._programmatic_launch = problem, candidate, programmatic_launch
        self._driver = on or driver()
        self._record, code = compiled.read()
        self._action = f"kernel {compiled.name[:16]} ({candidate}, {self._record.build.architecture})"
        if self._record.cuda[0] > self._driver.version[0]:
            raise WorkError(
                self._action, found="a kernel of CUDA {}.{}, and a driver of CUDA {}.{}".format(
                    *self._record.cuda, *self._driver.version
                ),
                expected=f"a driver of CUDA {self._record.cuda[0]}, or a kernel of an earlier release",
                run="nvidia-smi, and autotune kernels list",
            )  # fmt: skip
        self._module = CudaModule(
            self._driver, device.index, code, self._record.function, self._record.shared_bytes, self._action
        )  # fmt: skip

    @property
    def resource_usage(self) -> Mapping[str, float]:
        """Registers and spilled bytes per thread, bytes of shared memory per block."""
        record = self._record
        return {
            "registers": float(record.registers), "spilled_bytes": float(record.spilled_bytes),
            "shared_bytes": float(record.shared_bytes),
        }  # fmt: skip

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> None:
        """Enqueue the kernel in torch's current stream."""
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        order = order_of(
            self._problem, (a, b, bias, residual, out), programmatic_launch=self._programmatic_launch
        )  # fmt: skip
        stream = torch.cuda.current_stream(out.device).cuda_stream if out.device.type == "cuda" else 0
        self.launch(order, stream)

    def launch(self, order: Order, stream: int) -> None:
        """Enqueue one launch in a stream."""
        grid, cluster = self._blocks(order)
        self._module.launch(
            grid, self._record.threads, self._record.shared_bytes, stream, [self._parameter(order)], cluster=cluster,
            programmatic_launch=bool(order.early),
        )  # fmt: skip

    def _side(self, name: str) -> int:
        return int(self._tile.get(name, 1))

    def _blocks(self, order: Order) -> tuple[Blocks, Blocks]:
        """Return the grid and the cluster: whole clusters of tiles, each tile by as many blocks as there are splits."""
        along_m, along_n, splits = self._side("cluster_m"), self._side("cluster_n"), self._side("splits")
        columns = -(-order.m // (self._side("tile_m") * along_m)) * along_m
        rows = -(-order.n // (self._side("tile_n") * along_n)) * along_n
        return (columns, rows, splits), (along_m, along_n, splits)

    @abstractmethod
    def _parameter(self, order: Order) -> ctypes.Structure:
        """Return what the kernel takes."""


class LoadedClusterGemm(LoadedGemm):
    """A kernel of ``gemm_cluster.cuh``."""

    def _parameter(self, order: Order) -> ctypes.Structure:
        return order


class LoadedHopperGemm(LoadedGemm):
    """A kernel of ``gemm_hopper.cuh``."""

    def _parameter(self, order: Order) -> ctypes.Structure:
        given = HopperOrder.aligned()
        map_a = ctypes.addressof(given) + HopperOrder.map_a.offset
        map_b = ctypes.addressof(given) + HopperOrder.map_b.offset
        own_m, own_n = (
            self._side("tile_m") // self._side("cluster_n"),  # blocks along N read the same A, and share its copies
            self._side("tile_n") // self._side("cluster_m"),
        )
        dtype = self._problem.dtype
        map_rows(self._driver, self._action, map_b, order.b, dtype, rows=order.n, columns=order.k, box_rows=own_n)
        if self._problem.window is None:
            map_rows(self._driver, self._action, map_a, order.a, dtype, rows=order.m, columns=order.k, box_rows=own_m)
        else:
            pixel, row = order.channels, order.width * order.channels
            in_whole_boxes(order)
            map_window(self._driver, self._action, map_a, order, dtype, pixel=pixel, row=row, box_pixels=own_m)
        given.order = order
        given.steps = -(-order.k // self._side("tile_k"))
        given.share = -(-given.steps // self._side("splits"))
        return given
