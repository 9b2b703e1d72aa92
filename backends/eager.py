"""Eager execution: the baseline, and what its precisions, layout and a CUDA graph make of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.backend import Availability, Runner, SourceModel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload
from autotune.runtime.installed import torch_availability
from autotune.runtime.settings import Settings
from autotune.search_spaces import eager as spaces

PROGRAM = "program.pt2"


class EagerBackend:
    """Runs the user's own module (``form`` module) or its captured graph (``form`` graph) op by op.

    The module form needs the user's code where it is loaded; the graph form does not. A build only writes files.
    """

    name = "eager"
    toolchain: tuple[str, ...] = ("torch", "cudnn")
    build_uses_device = False

    def probe(self, device: Device) -> Availability:
        """Whether torch is here and built for the device."""
        return torch_availability(device)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Precision, form, layout; CUDA graph and cuDNN's search on a GPU, threads on a CPU."""
        return spaces.eager_space(device, workload, has_factory=has_factory)

    def is_baseline(self, configuration: Configuration, *, has_factory: bool) -> bool:
        """Whether it is the model as its user runs it today."""
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
        """Never: it writes the module or the graph and runs nothing."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """With cuDNN's benchmark, at the first calls."""
        return bool(configuration.get("cudnn_benchmark", False))

    def load(self, folder: Path, device: Device) -> Runner:
        """Rebuild the module or load the graph, and settle it on the device."""
        from autotune.runtime.artifact import read_example
        from autotune.runtime.torch_runner import torch_runner

        settings = Settings.read(folder)
        return torch_runner(_callable(folder, settings, device), settings, device, read_example(folder))


def _callable(folder: Path, settings: Settings, device: Device) -> Callable[..., Any]:
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
