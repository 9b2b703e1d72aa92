"""The kernels of a native artifact: chosen and packed at build, set into the graph when it is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autotune.backends.native.binding import ConvSite, FusedConvSite, GemmSite, bind_kernels, lies_as_read, site_bias
from autotune.backends.native.graph import constant
from autotune.backends.native.library import TORCH
from autotune.backends.native.native_kernels import KERNELS
from autotune.backends.native.native_record import (
    SCHEMA,
    KernelEntry,
    NativeRecord,
    SiteEntry,
    read_record,
    write_record,
)
from autotune.backends.native.sites import CONV2D, GEMM, Site, fused_nodes, sites
from autotune.backends.native.triton_codegen import compile_triton_sites
from autotune.backends.native.triton_codegen_sites import load_site_module
from autotune.errors import ArtifactError, WorkError
from autotune.kernel import KnownKernel, KnownKernels
from autotune.model.precision import flat_module
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from autotune.backends.native.rewriting import Rewritten

FOLDER = "kernels"


def pack(
    folder: Path, graph: "Rewritten", configuration: Configuration, device: Device, known: KnownKernels | None
) -> None:
    """Choose a kernel for each site, copy the compiled kernels into ``folder``, and write the artifact's record."""
    channels_last = bool(configuration.get("channels_last", False))
    programmatic_launch = bool(configuration.get("programmatic_launch", False))
    module = flat_module(graph.program)
    target = folder / FOLDER
    target.mkdir()
    triton_sites = compile_triton_sites(
        module, device, target, channels_last=channels_last, programmatic_launch=programmatic_launch
    )
    sources: dict[str, str] = {}
    entries = []
    for site in sites(module, channels_last=channels_last):
        entry = SiteEntry(index=site.index, name=site.name, operator=site.operator, place=site.place)
        if site.problem is not None:
            sources |= _pack_gemm(entry, site.problem, chosen(site, configuration, known), known, device, target)
        if site.index in triton_sites:
            plans = triton_sites[site.index]
            sources |= plans.sources
            entry.update({"plans": plans.plans} if plans.plans else {"why": plans.why})
        entries.append(entry)
    record = NativeRecord(
        schema=SCHEMA, early=programmatic_launch, nodes_before=graph.nodes_before, nodes_after=graph.nodes_after,
        fusions=dict(graph.matches), places=dict(graph.places), sites=entries, sources=sources,
    )  # fmt: skip
    write_record(record, folder)


def _pack_gemm(
    entry: SiteEntry, problem: GemmProblem, kernel: KnownKernel | None, known: KnownKernels | None, device: Device,
    target: Path,
) -> Mapping[str, str]:  # fmt: skip
    """Complete the entry of a GEMM and copy its kernel; returns the digests of the kernel's sources by file."""
    library = known.library.get(problem.digest) if known else None
    entry["problem"] = problem.as_dict()
    entry["library"] = _kernel_entry(library)
    if kernel is None or known is None:
        return {}
    sources: Mapping[str, str] = {}
    try:
        sources = KERNELS.pack(device, problem, kernel.configuration, known.folder, target)
    except WorkError as error:  # its compiler is not installed here, and it is not in the cache
        entry["why"] = str(error)
        kernel = library
    entry["kernel"] = _kernel_entry(kernel)
    return sources


def _kernel_entry(kernel: KnownKernel | None) -> KernelEntry | None:
    if kernel is None:
        return None
    return KernelEntry(configuration=kernel.configuration.as_dict(), median_us=kernel.median_us)


def set_known_kernels(folder: Path, module: GraphModule, device: Device) -> None:
    """Load the kernels of an artifact and set them into its graph; at the other sites torch's own calls stay."""
    nodes = list(fused_nodes(module))
    site_modules: dict[int, nn.Module] = {}
    record = read_record(folder)
    for entry in record["sites"]:
        index, kernel = entry["index"], entry.get("kernel")
        if index >= len(nodes):
            raise ArtifactError(
                f"the artifact in {folder.name} has a kernel for an operator that its graph does not have",
                found=f"site {index} ({entry['name']}), in a graph with {len(nodes)} fused operators",
                expected="the graph that it was built with", run="autotune db check",
            )  # fmt: skip
        node = nodes[index]
        if kernel:
            site_modules[index] = _gemm_module(entry, kernel, module, node, folder, device, early=record["early"])
        elif entry.get("plans"):
            site_modules[index] = load_site_module(entry["plans"], node, folder / FOLDER, device)
        elif node.target is CONV2D and device.kind == "cuda":
            site_modules[index] = conv_by_torch(entry, module, node, device)
    bind_kernels(module, site_modules)


def _gemm_module(
    entry: SiteEntry, kernel: KernelEntry, module: GraphModule, node: Node, folder: Path, device: Device, *, early: bool
) -> nn.Module:
    problem = GemmProblem.from_dict(entry["problem"])
    loaded = KERNELS.load(
        device, problem, KnownKernel.from_dict(kernel).configuration, folder / FOLDER,
        programmatic_launch=bool(early) and lies_as_read(problem, constant(module, node.args[1])),
    )  # fmt: skip
    place_of = torch.device(device.torch_name)
    bias = site_bias(_bias(module, node), wanted=problem.bias, length=problem.n, device=place_of)
    return GemmSite(loaded, bias) if node.target is GEMM else ConvSite(loaded, bias, problem)


def conv_by_torch(entry: SiteEntry, module: GraphModule, node: Node, device: Device) -> nn.Module:
    """Return cuDNN's call, or torch's product, several times as fast, if the images are only divided into parts."""
    problem = GemmProblem.from_dict(entry["problem"]) if entry.get("problem") else None
    weight = constant(module, node.args[1])
    if problem is None or problem.window is not None or weight is None or tuple(weight.shape[2:]) == (1, 1):
        return FusedConvSite()
    kernel = TORCH.load(device, problem, TORCH.ready(device, problem)[0], Path())
    place_of = torch.device(device.torch_name)
    bias = site_bias(_bias(module, node), wanted=problem.bias, length=problem.n, device=place_of)
    return ConvSite(kernel, bias, problem)


def chosen(site: Site, configuration: Configuration, known: KnownKernels | None) -> KnownKernel | None:
    """Return the kernel for a site, if the configuration wants tuned kernels and one is known.

    This is the fastest one measured alone. If kernels shall overlap, it is one of ours that is nearly as fast: the
    fastest that leaves room for another block on its SM, so that blocks of the next launch can start there and fetch
    weights before it ends.
    """
    wanted = configuration.get("kernels", "torch")
    if site.problem is None or known is None or wanted == "torch":
        return None
    near = known.near.get(site.problem.digest, ()) if wanted == "overlapped" else ()
    sharing = (kernel for kernel in near if int(kernel.configuration.get("residents", 1)) > 1)
    return next(sharing, None) or next(iter(near), None) or known.best.get(site.problem.digest)


def _bias(module: GraphModule, node: Node) -> Tensor | None:
    return constant(module, node.args[2])
