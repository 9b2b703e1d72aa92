"""The frame of graph simplification: a captured graph in functional form, and passes run on it until nothing matches.

Modules that rewrite graphs are imported only while a backend builds, so that they import torch at the top.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from types import MappingProxyType

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from autotune.errors import WorkError
from autotune.model import capture
from autotune.model.precision import flat_module

log = logging.getLogger(__name__)

ROUNDS = 32
"""A pass goes through a graph in its order and meets what it wrote before, so that few rounds settle any graph."""

aten = torch.ops.aten
_STACK = "nn_module_stack"
"""Where torch.export keeps what modules a node is from, the outermost first: a path and a type each."""

_UNANNOTATED = {aten._unsafe_view.default, aten.type_as.default, aten.einsum.default, aten.broadcast_tensors.default}
_UNANNOTATED |= {aten.meshgrid.default, aten.meshgrid.indexing, aten.cartesian_prod.default, aten.combinations.default}
"""Operators that may answer with an argument's memory although their schema does not say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One rewrite of a functional graph; ``apply`` changes it in place and returns how many matches it rewrote.

    A pass keeps every value and its strides (kernels choose their order of summation by them), and lets no output share
    memory with an input, a constant or another output that it did not share before.
    """

    name: str
    apply: Callable[[GraphModule], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """A pass that keeps values within rounding; ``fuse`` changes a graph in place and gives each match's place."""

    name: str
    fuse: Callable[[GraphModule], list[str]]

    def apply(self, module: GraphModule) -> int:
        """Do the same as a pass does, which counts."""
        return len(self.fuse(module))


@dataclass(frozen=True, slots=True, kw_only=True)
class Simplified:
    """A simplified graph: flat tensors in, a tuple of flat tensors out, and how often each pass found something."""

    module: GraphModule
    matches: Mapping[str, int]
    nodes_before: int
    nodes_after: int


def simplify(program: ExportedProgram, passes: Sequence[Pass]) -> Simplified:
    """Run ``passes`` in turn until none finds anything; ``program`` and its tensors stay as they are.

    Raises WorkError where the graph writes into its inputs or buffers, where sizes are not fixed, or where passes undo
    one another.
    """
    module = functional(program)
    before = len(module.graph.nodes)
    matches = {one.name: 0 for one in passes}
    for _ in range(ROUNDS):
        found = 0
        for one in passes:
            with torch.no_grad():
                count = one.apply(module)
            matches[one.name] += count
            found += count
        if not found:
            break
    else:
        raise WorkError(
            "the graph cannot be simplified",
            found=f"passes that still match after {ROUNDS} rounds: {matches}",
            expected="passes of which none undoes what another did",
        )
    module.graph.lint()
    module.recompile()
    after = len(module.graph.nodes)
    log.info("simplified the graph from %d to %d nodes: %s", before, after, matches)
    return Simplified(module=module, matches=MappingProxyType(matches), nodes_before=before, nodes_after=after)


def functional(program: ExportedProgram) -> GraphModule:
    """Rewrite a captured graph without in-place operators, as a module of its own that shares the weights.

    Raises WorkError where the graph writes into its inputs or buffers, or has sizes that are not fixed.
    """
    decomposed = program.run_decompositions({})
    signature = decomposed.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    written += [node.name for node in decomposed.graph.nodes if _writes(node)]
    if written:
        raise WorkError(
            "the graph cannot be simplified",
            found=f"it writes into {', '.join(written)}",
            expected="a model in evaluation mode that leaves its inputs and buffers as they are",
        )
    module = flat_module(decomposed)
    assert isinstance(module, GraphModule)
    for node in module.graph.nodes:
        tensor = value(node)
        if tensor is not None and not all(isinstance(size, int) for size in tensor.shape):
            raise WorkError(
                "the graph cannot be simplified",
                found=f"{node.name} of shape {list(tensor.shape)}",
                expected="sizes that do not depend on the inputs",
            )
    return module


def value(node: object) -> Tensor | None:
    """Shape, dtype, device and strides of what a node gives, as a tensor without data; ``None`` for anything else."""
    found = node.meta.get("val") if isinstance(node, Node) else None
    return found if isinstance(found, Tensor) else None


def place(node: Node) -> str:
    """The path of the module that a node was captured in, such as ``encoder.layer.0``; empty for the model's own code.

    A node that was erased still has it.
    """
    stack = list(node.meta.get(_STACK, {}).values())
    if not stack:
        return ""
    path = str(stack[-1][0])
    if str(stack[0][1]).startswith(f"{capture.__name__}."):  # capture wraps the model in a module of its own
        path = path.partition(".")[2]
    return path


def put_in_place(node: Node, *sources: Node) -> None:
    """Let a new node be in the innermost module that all of these were captured in, where that is known."""
    stacks = [list(source.meta.get(_STACK, {}).items()) for source in sources]
    alike = takewhile(lambda entries: all(one == entries[0] for one in entries), zip(*stacks, strict=False))
    if shared := dict(entries[0] for entries in alike):
        node.meta[_STACK] = shared


def same_layout(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors agree in everything but their values; complex and sparse ones never do."""
    if one is None or other is None or one.is_complex() or one.layout is not torch.strided:
        return False
    if other.layout is not torch.strided or (one.dtype, one.device) != (other.dtype, other.device):
        return False
    return (one.shape, one.stride(), one.storage_offset()) == (other.shape, other.stride(), other.storage_offset())


def is_pure(node: Node) -> bool:
    """Whether a node's answer follows from its arguments, and computing it does nothing else.

    Only torch's own operators are known; a library's operator may have effects that its schema does not show.
    """
    operator = node.target
    if node.op != "call_function" or not isinstance(operator, torch._ops.OpOverload) or operator.namespace != "aten":
        return False
    if "empty" in operator._schema.name:  # whatever lies in the memory
        return False
    return not _writes(node) and not node.is_impure()  # random operators are not pure to torch either


def constant(module: GraphModule, node: object) -> Tensor | None:
    """The weight or constant that a node reads, or ``None`` where it is no such node."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(module.get_submodule(owner), name)
    return found.detach() if isinstance(found, Tensor) else None


def add_constant(module: GraphModule, name: str, tensor: Tensor, like: Tensor, *, before: Node) -> Node:
    """Give the module a new constant and the graph a node that reads it; ``like`` is the tensor without data."""
    taken = sum(1 for known, _ in module.named_buffers() if known.startswith(f"{name}_"))
    while hasattr(module, f"{name}_{taken}"):
        taken += 1
    module.register_buffer(f"{name}_{taken}", tensor.detach())
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(f"{name}_{taken}")
    node.meta["val"] = like
    return node


def is_view(node: Node) -> bool:
    """Whether a node may answer with memory of its first argument."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # an element of several answers, or control flow
    return node.target in _UNANNOTATED or any(answer.alias_info is not None for answer in node.target._schema.returns)


def may_replace(node: Node, source: Node) -> bool:
    """Whether ``source``, which has the same values, may stand for ``node`` without outputs that newly share memory."""
    origin = _origin(source)
    if _origin(node) is origin or not reaches_output(node):
        return True
    return origin.op == "call_function" and not is_view(origin) and not reaches_output(origin)


def replace(node: Node, source: Node) -> None:
    """Let ``source`` stand for ``node`` everywhere, and take ``node`` out of the graph."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _origin(node: Node) -> Node:
    while is_view(node) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def reaches_output(node: Node) -> bool:
    """Whether an output may share memory with what a node gives."""
    seen, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop().users:
            if user.op == "output":
                return True
            if user not in seen and (is_view(user) or user.op != "call_function"):
                seen.add(user)
                waiting.append(user)
    return False


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)
