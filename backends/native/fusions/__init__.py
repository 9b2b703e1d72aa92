"""Fusions: consecutive operators become one, in a graph that is simplified before and after each fusion."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from autotune.backends.native.fusions.attention import ATTENTION
from autotune.backends.native.fusions.attention_kernel import ATTENTION_KERNEL
from autotune.backends.native.fusions.back_to_back_gemm import BACK_TO_BACK_GEMM
from autotune.backends.native.fusions.conv_act import CONV_ACT
from autotune.backends.native.fusions.conv_bn import CONV_BN
from autotune.backends.native.fusions.depthwise import DEPTHWISE
from autotune.backends.native.fusions.gemm_epilogue import GEMM_EPILOGUE
from autotune.backends.native.fusions.norm import NORM
from autotune.backends.native.fusions.pointwise import POINTWISE
from autotune.backends.native.fusions.pooling import POOLING
from autotune.backends.native.fusions.qkv import QKV
from autotune.backends.native.fusions.space_to_depth import SPACE_TO_DEPTH
from autotune.backends.native.graph import Fusion, simplify
from autotune.backends.native.passes import EXACT
from autotune.errors import WorkError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """A simplified and fused graph: flat tensors in, a tuple of flat tensors out, and the places of the matches.

    ``places`` has exactly the requested fusions: for each match the path of its module, such as
    ``encoder.layer.0.attention``, empty for the model's own code.
    """

    module: GraphModule
    places: Mapping[str, tuple[str, ...]]
    nodes_before: int
    nodes_after: int

    @property
    def matches(self) -> Mapping[str, int]:
        """The number of matches of each fusion."""
        return MappingProxyType({name: len(places) for name, places in self.places.items()})


FUSIONS: Mapping[str, Fusion] = MappingProxyType(
    {fusion.name: fusion for fusion in (
        CONV_BN, SPACE_TO_DEPTH, QKV, ATTENTION, ATTENTION_KERNEL, NORM, GEMM_EPILOGUE, DEPTHWISE, CONV_ACT,
        BACK_TO_BACK_GEMM, POOLING, POINTWISE,
    )}
)  # fmt: skip
"""Every fusion by its name, in the order of execution."""


def fuse(program: ExportedProgram, names: Iterable[str]) -> Fused:
    """Simplify a captured graph and run the fusions of these names; ``program`` and its tensors stay as they are.

    Values are kept within rounding. Raises WorkError for an unknown name, and if the graph cannot be simplified.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(FUSIONS))
    if unknown:
        raise WorkError(
            "the graph cannot be fused",
            found=f"no fusion named {', '.join(unknown)}",
            expected=f"names out of {', '.join(FUSIONS)}",
        )
    simplified = simplify(program, EXACT)
    module, places = simplified.module, {}
    with torch.no_grad():
        for name, fusion in FUSIONS.items():
            if name in wanted:
                places[name] = tuple(fusion.fuse(module))
                for graph_pass in EXACT:
                    graph_pass.apply(module)
    module.graph.lint()
    module.recompile()
    fused = Fused(
        module=module, places=MappingProxyType(places), nodes_before=simplified.nodes_before,
        nodes_after=len(module.graph.nodes),
    )  # fmt: skip
    log.info("fused the graph to %d nodes: %s", fused.nodes_after, dict(fused.matches))
    return fused


def matches(program: ExportedProgram) -> Mapping[str, int]:
    """Return the number of matches of each fusion in a captured graph, with all of them on."""
    return fuse(program, FUSIONS).matches
