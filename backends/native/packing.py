"""What a native artifact says of itself, the kernels that it brings along, and how they come into their places."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autotune.backends.native.binding import ConvSite, FusedConvSite, GemmSite, bind, lies_as_read, site_bias
from autotune.backends.native.graph import constant
from autotune.backends.native.kernels import KERNELS
from autotune.backends.native.library import TORCH
from autotune.backends.native.sites import CONV2D, GEMM, Site, fused_nodes, sites
from autotune.backends.native.written import write_kernels
from autotune.backends.native.written_sites import stand_in
from autotune.errors import ArtifactError, WorkError
from autotune.kernel import KnownKernel, KnownKernels
from autotune.model.precision import flat_module
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from autotune.backends.native.fusions import Fused

RECORD, FOLDER = "native.json", "kernels"
SCHEMA = 2


def pack(
    folder: Path, program: "ExportedProgram", fused: "Fused", configuration: Configuration, device: Device,
    known: KnownKernels | None,
) -> None:  # fmt: skip
    """Choose a kernel for each site, copy those that are compiled, and write down all of it."""
    channels_last = bool(configuration.get("channels_last", False))
    early = bool(configuration.get("programmatic_launch", False))
    module: Any = flat_module(program)
    target = folder / FOLDER
    target.mkdir()
    sources: dict[str, str] = {}
    places = []
    written = write_kernels(module, device, target, channels_last=channels_last, early=early)
    for site in sites(module, channels_last=channels_last):
        entry: dict[str, Any] = {"index": site.index, "name": site.name, "operator": site.operator, "place": site.place}
        kernel = chosen(site, configuration, known)
        if site.problem is not None:
            entry["problem"] = site.problem.as_dict()
            library = known.library.get(site.problem.digest) if known else None
            entry["library"] = library.as_dict() if library else None
        if kernel is not None and known is not None and site.problem is not None:
            try:
                sources |= KERNELS.pack(device, site.problem, kernel.configuration, known.folder, target)
            except WorkError as error:  # its compiler is not here, and nobody left it in the cache
                entry["why"] = str(error)
                kernel = known.library.get(site.problem.digest)
            entry["kernel"] = kernel.as_dict() if kernel else None
        if site.index in written:
            of_triton = dict(written[site.index])
            sources |= of_triton.pop("sources", {})
            entry |= of_triton
        places.append(entry)
    record = {
        "schema": SCHEMA, "early": early, "nodes_before": fused.nodes_before, "nodes_after": fused.nodes_after,
        "fusions": dict(fused.matches), "places": dict(fused.places), "sites": places, "sources": sources,
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, sort_keys=True))


def read(folder: Path) -> Mapping[str, Any]:
    """Read what :func:`pack` wrote; raises ArtifactError where it is not there or not understood."""
    try:
        record: Mapping[str, Any] = json.loads((folder / RECORD).read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the artifact in {folder.name} does not say what it is made of",
            found=f"{type(error).__name__}: {error}", expected=f"{RECORD} of schema {SCHEMA}", run="autotune db check",
        ) from error  # fmt: skip
    return record


def places(folder: Path, module: GraphModule, device: Device) -> None:
    """Load the kernels of an artifact and put them in their places; elsewhere torch's own calls stay."""
    nodes = list(fused_nodes(module))
    found: dict[int, nn.Module] = {}
    record = read(folder)
    for entry in record["sites"]:
        node = nodes[entry["index"]] if entry["index"] < len(nodes) else None
        if node is None:
            raise ArtifactError(
                f"the artifact in {folder.name} has a kernel without a place",
                found=f"site {entry['index']} ({entry['name']}), in a graph with {len(nodes)} fused operators",
                expected="the graph that it was built with", run="autotune db check",
            )  # fmt: skip
        if entry.get("kernel"):
            problem = GemmProblem.from_dict(entry["problem"])
            taken = KnownKernel.from_dict(entry["kernel"]).configuration
            early = bool(record["early"]) and lies_as_read(problem, constant(module, node.args[1]))
            kernel = KERNELS.load(device, problem, taken, folder / FOLDER, early=early)
            bias = site_bias(
                _bias(module, node), wanted=problem.bias, length=problem.n, device=torch.device(device.torch_name)
            )
            at_gemm = node.target is GEMM
            found[entry["index"]] = GemmSite(kernel, bias) if at_gemm else ConvSite(kernel, bias, problem)
        elif entry.get("plans"):
            found[entry["index"]] = stand_in(entry, node, folder / FOLDER, device)
        elif node.target is CONV2D and device.kind == "cuda":
            found[entry["index"]] = conv_by_torch(entry, module, node, device)
    bind(module, found)


def conv_by_torch(entry: Mapping[str, Any], module: GraphModule, node: Node, device: Device) -> nn.Module:
    """CuDNN's call, or torch's product where the images are only taken apart: it is several times as fast."""
    problem = GemmProblem.from_dict(entry["problem"]) if entry.get("problem") else None
    weight = constant(module, node.args[1])
    if problem is None or problem.window is not None or weight is None or tuple(weight.shape[2:]) == (1, 1):
        return FusedConvSite()
    kernel = TORCH.load(device, problem, TORCH.ready(device, problem)[0], Path())
    place_of = torch.device(device.torch_name)
    bias = site_bias(_bias(module, node), wanted=problem.bias, length=problem.n, device=place_of)
    return ConvSite(kernel, bias, problem)


def chosen(site: Site, configuration: Configuration, known: KnownKernels | None) -> KnownKernel | None:
    """The kernel of a site, where the configuration asks for one and any is known.

    It is the fastest alone; or, where kernels shall overlap, one of ours that is nearly as fast: the fastest of those
    that leave room beside them, so that blocks of the next launch can be there and fetch weights before it ends.
    """
    wanted = configuration.get("kernels", "torch")
    if site.problem is None or known is None or wanted == "torch":
        return None
    near = known.near.get(site.problem.digest, ()) if wanted == "overlapped" else ()
    roomy = (each for each in near if int(each.configuration.get("residents", 1)) > 1)
    return next(roomy, None) or next(iter(near), None) or known.best.get(site.problem.digest)


def _bias(module: GraphModule, node: Node) -> Tensor | None:
    return constant(module, node.args[2])
