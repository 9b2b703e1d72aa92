"""Eager execution: the baseline, and its variants in precision, memory layout and launch (CUDA graph)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backend import Availability, Runner, SourceModel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload
from autotune.runtime.installed import torch_availability
from autotune.runtime.settings import Settings
from autotune.search_spaces import eager as spaces

if TYPE_CHECKING:
    import torch

PROGRAM = "program.pt2"


class EagerBackend:
    """Runs the user's own module (``form`` module) or its captured graph (``form`` graph) op by op.

    The module form needs the user's code on the machine that loads it; the graph form does not. A build only writes
    files.
    """

    name = "eager"
    toolchain: tuple[str, ...] = ("torch", "cudnn")
    build_uses_device = False
    times_kernels_in_turn = True
    loads_in_turn = True
    adapts_at_load = ("cpu", "cuda")

    def probe(self, device: Device) -> Availability:
        """Report if torch is installed and built for the device."""
        return torch_availability(device)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Vary precision, form, layout; CUDA graph and cuDNN's benchmark on a GPU, threads on a CPU."""
        return spaces.eager_space(device, workload, has_factory=has_factory)

    def is_baseline(self, configuration: Configuration, *, has_factory: bool) -> bool:
        """Return true if the configuration is the model as its user runs it today."""
        return spaces.is_baseline(configuration, has_factory=has_factory)

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Write the factory and the weights, or the captured graph in its precision."""
        settings = Settings.of(configuration, model.workload)
        if settings.form == "module":
            model.save_module(folder)
        else:
            import torch

            # On the CPU: loading moves it, so that a build never touches a GPU on which something is timed.
            host = dataclasses.replace(device, kind="cpu", index=0)
            torch.export.save(model.program(settings.precision, host), str(folder / PROGRAM))
        settings.write(folder)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return false: a build writes the module or the graph and runs nothing."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return true with cuDNN's benchmark, which times kernels at the first calls."""
        return bool(configuration.get("cudnn_benchmark", False))

    def load(self, folder: Path, device: Device) -> Runner:
        """Rebuild the module or load the graph, and warm it up on the device."""
        from autotune.runtime.artifact import read_example
        from autotune.runtime.torch_runner import torch_runner

        settings = Settings.read(folder)
        return torch_runner(_module(folder, settings, device), settings, device, read_example(folder))


def _module(folder: Path, settings: Settings, device: Device) -> "torch.nn.Module":
    import torch

    if settings.form == "module":
        from autotune.model.source import rebuild_module

        module = rebuild_module(folder, settings.precision, device)
    else:
        from autotune.model.precision import flat_module, on_device
        from autotune.model.program import load_program

        module = flat_module(on_device(load_program(folder / PROGRAM), device.torch_name))
    if settings.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.requires_grad_(False)


BACKEND = EagerBackend()
