"""Our own engine: a rewritten graph with kernels that were tuned for its shapes, replayed as one CUDA graph."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backend import Availability, Runner, SourceModel
from autotune.backends.native.kernel_kinds import KERNEL_KINDS
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload
from autotune.runtime.installed import torch_availability
from autotune.runtime.settings import Settings
from autotune.search_spaces import native as spaces

if TYPE_CHECKING:
    from autotune.kernel import KernelProvider
    from autotune.records.graph_coverage import GraphCoverage

PROGRAM = "program.pt2"


class NativeBackend:
    """Fuses the captured graph, runs tuned kernels in the place of its fused operators, and captures a CUDA graph.

    A build rewrites the graph on the CPU and packs kernels that are compiled already; the study tunes them (see
    :mod:`autotune.kernels.tuning`). On a CPU torch's own operators run the fused graph.
    """

    name = "native"
    toolchain: tuple[str, ...] = ("torch", "triton", "cuda", "cudnn", "cutlass", "cublaslt")
    build_uses_device = False
    times_kernels_in_turn = True
    loads_in_turn = True
    build_modules: tuple[str, ...] = ()
    builds_slowly = True
    kernel_kinds = KERNEL_KINDS
    graph_invariants = ("kernels", "cuda_graph", "cudnn_benchmark", "programmatic_launch", "threads")

    @property
    def kernels(self) -> "KernelProvider":
        """The kernels that are tuned one problem at a time."""
        from autotune.backends.native.native_kernels import KERNELS

        return KERNELS

    def probe(self, device: Device) -> Availability:
        """True if torch is here and built for the device; kernels that need a compiler are candidates if it is."""
        return torch_availability(device)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Return precision, every fusion that matches, layout; on a GPU also kernels, CUDA graph and cuDNN's search."""
        return spaces.native_space(device, workload)

    def graph_features(self, model: SourceModel, device: Device) -> Mapping[str, int]:
        """Return the number of matches of each fusion in the captured graph."""
        from autotune.backends.native.fusions import matches
        from autotune.backends.native.rewriting import on_host

        return matches(model.program("fp32", on_host(device)))

    def kernel_problems(
        self, model: SourceModel, configuration: Configuration, device: Device
    ) -> Mapping[GemmProblem, int]:
        """Return the kernel problems of the graph that a configuration builds, with their number in one call."""
        from autotune.backends.native.rewriting import rewritten
        from autotune.backends.native.sites import sites
        from autotune.model.precision import flat_module

        module = flat_module(rewritten(model, configuration, device).program)
        graph_sites = sites(module, channels_last=bool(configuration.get("channels_last", False)))
        return Counter(site.problem for site in graph_sites if site.problem is not None)

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Write the rewritten graph and its kernels."""
        from autotune.backends.native.packing import pack
        from autotune.backends.native.rewriting import rewritten

        settings = Settings.of(configuration, model.workload)
        graph = rewritten(model, configuration, device)
        graph.put(folder / PROGRAM)
        pack(folder, graph, configuration, device, model.known_kernels)
        settings.write(folder)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return false: a build packs kernels that the study has compiled and timed before."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return true with cuDNN's benchmark, which times at the first calls."""
        return bool(configuration.get("cudnn_benchmark", False))

    def load(self, folder: Path, device: Device) -> Runner:
        """Load graph and kernels; needs neither nvcc nor Triton's compiler."""
        from autotune.backends.native import operators  # noqa: F401 (registers the operators that the graph names)
        from autotune.backends.native.packing import set_known_kernels
        from autotune.backends.native.sites import reads_any_layout
        from autotune.backends.native.weight_layout import convolutions_in_channels_last
        from autotune.model.precision import flat_module, on_device
        from autotune.model.program import load_program
        from autotune.runtime.artifact import read_example
        from autotune.runtime.torch_runner import torch_runner

        settings = Settings.read(folder)
        module = flat_module(on_device(load_program(folder / PROGRAM), device.torch_name))
        if settings.channels_last:
            convolutions_in_channels_last(module)
        any_layout = reads_any_layout(module)
        set_known_kernels(folder, module, device)
        if any_layout:
            settings = dataclasses.replace(settings, channels_last=False)
        return torch_runner(module.requires_grad_(False), settings, device, read_example(folder))

    def explain_artifact(self, folder: Path) -> Mapping[str, object]:
        """Describe an artifact: nodes before and after, fusions with their places, kernels by site."""
        from autotune.backends.native.describe import describe
        from autotune.backends.native.native_record import read_record

        return describe(read_record(folder))

    def coverage(self, model: SourceModel, configuration: Configuration, device: Device) -> "GraphCoverage":
        """Return the launches of a call before and after the rewriting; nothing is compiled."""
        from autotune.backends.native.coverage import coverage
        from autotune.backends.native.rewriting import on_host

        return coverage(model.program(str(configuration["precision"]), on_host(device)), configuration, device)


BACKEND = NativeBackend()
