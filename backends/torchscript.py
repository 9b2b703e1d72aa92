"""TorchScript: trace, freeze, optimise."""

import contextlib
import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backend import Availability, Runner, SourceModel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload
from autotune.runtime.installed import torch_availability
from autotune.runtime.settings import Settings
from autotune.search_spaces import torchscript as spaces

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

MODEL = "model.ts"
MARK = "autotune.json"


class TorchScriptBackend:
    """Traces the captured graph and freezes it; ``optimize`` adds ``torch.jit.optimize_for_inference`` at load.

    That pass rewrites the graph for the processor of the machine (oneDNN weights on a CPU, fused convolutions on a
    GPU); torch cannot read such a graph back once it is saved. The pass compiles nothing. Tracing runs the model once,
    also on a GPU, and folding and saving compute there too: a build on a GPU has one turn for all of that.
    """

    name = "torchscript"
    toolchain: tuple[str, ...] = ("torch", "cudnn")
    build_uses_device = True
    builds_in_turn = True
    times_kernels_in_turn = True
    loads_in_turn = True
    adapts_at_load = ("cpu", "cuda")
    serving_formats = ("torchscript",)

    def probe(self, device: Device) -> Availability:
        """Report if torch is installed and built for the device."""
        return torch_availability(device)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Vary precision, optimisation, layout; a CUDA graph, cuDNN's benchmark on a GPU; threads, packing on a CPU."""
        return spaces.torchscript_space(device, workload)

    def is_served(self, configuration: Configuration, device: Device) -> bool:
        """Return true for files that torch loads and runs with its default flags; precision and layout are in them."""
        return spaces.is_served(configuration, device)

    def is_plain_export(self, configuration: Configuration, device: Device) -> bool:
        """Return true for the graph in full precision and the usual layout."""
        return spaces.is_plain_export(configuration, device)

    def write_served(self, artifact: Path, target: Path, mark: Mapping[str, str]) -> None:
        """Copy the file as ``model.pt``; the mark is an extra file, which ``torch.jit.load`` reads on request."""
        served = target / "model.pt"
        shutil.copyfile(artifact / MODEL, served)
        with zipfile.ZipFile(served, "a") as archive:
            root = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{root}/extra/{MARK}", json.dumps(dict(mark)))

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Trace and freeze the captured graph in its precision and layout, and save it.

        Raises RuntimeError if weights are to be packed and no convolution of the graph can be.
        """
        import torch

        from autotune.model.precision import flat_module
        from autotune.runtime.turn import computing

        settings = Settings.of(configuration, model.workload)
        module = flat_module(model.program(settings.precision, device))
        _keep_norms_apart(module)
        for part in module.modules():
            part.training = False  # a captured graph refuses eval(), and freezing refuses a module in training
        with computing(), settings.switches.overlay(), torch.no_grad(), _quiet():
            laid_out = _laid_out(module) if settings.channels_last else module
            traced = torch.jit.trace(laid_out, model.example_inputs(device), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced)
            if configuration.get("packed_weights", False):
                from autotune.backends.torchscript_packing import pack

                pack(frozen, model.example_inputs(device))
            torch.jit.save(frozen, str(folder / MODEL))
        settings.write(folder)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return true with cuDNN's benchmark: tracing calls the model once; the kernels chosen then are not kept."""
        return bool(configuration.get("cudnn_benchmark", False))

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return true with cuDNN's benchmark, which times kernels at the first calls."""
        return bool(configuration.get("cudnn_benchmark", False))

    def load(self, folder: Path, device: Device) -> Runner:
        """Load the graph, optimise it if the configuration says so, and let it profile itself."""
        import torch

        from autotune.runtime.artifact import read_example
        from autotune.runtime.torch_runner import torch_runner

        settings = Settings.read(folder)
        with settings.switches.overlay(), torch.no_grad(), _quiet():
            module = torch.jit.load(str(folder / MODEL), map_location=device.torch_name)  # type: ignore[no-untyped-call]
            if settings.optimize:
                module = torch.jit.optimize_for_inference(module)
        return torch_runner(module, settings, device, read_example(folder))


def _laid_out(module: "torch.nn.Module") -> "torch.nn.Module":
    """Return a module with its weights in channels-last memory, which puts images into it as well."""
    import torch

    from autotune.runtime.torch_runner import channels_last

    class LaidOut(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.training = False

        def forward(self, *tensors: torch.Tensor) -> object:
            return self.inner(*map(channels_last, tensors))

    return LaidOut()


def _keep_norms_apart(module: "GraphModule") -> None:
    """Put a copy between each linear layer whose output has more than two dimensions and a batch norm of that output.

    TorchScript folds such a norm into the layer as if it normalised the last dimension, but it normalises the second
    (torch 2.13, ``torch/csrc/jit/passes/frozen_linear_folding.cpp``).
    """
    import torch

    from autotune.model.fingerprint import graphs

    norms = (torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default)
    for part in graphs(module):
        after_linear = [
            node
            for node in part.graph.nodes
            if node.target in norms
            and getattr(node.args[0], "target", None) is torch.ops.aten.linear.default
            and node.args[0].meta["val"].dim() > 2
        ]
        for node in after_linear:
            with part.graph.inserting_before(node):
                copied = part.graph.call_function(torch.ops.aten.clone.default, (node.args[0],))
            node.args = (copied, *node.args[1:])
        if after_linear:
            part.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings that TorchScript is deprecated and that tracing makes some values constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python", category=Warning)
        yield


BACKEND = TorchScriptBackend()
