"""Graph simplification: a captured graph in functional form, and passes that run on it until none of them matches.

Modules that rewrite graphs are imported only while a backend builds, so they may import torch at the top.
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
"""The most rounds of all passes. A pass visits nodes in order and reads its own results, so a few rounds are enough."""

aten = torch.ops.aten
_STACK = "nn_module_stack"
"""The key of torch.export for the modules that a node was captured in, outermost first: a path and a type each."""

_UNANNOTATED = {aten._unsafe_view.default, aten.type_as.default, aten.einsum.default, aten.broadcast_tensors.default}
_UNANNOTATED |= {aten.meshgrid.default, aten.meshgrid.indexing, aten.cartesian_prod.default, aten.combinations.default}
"""Operators that may return an argument's memory although their schema does not say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One rewrite of a functional graph; ``apply`` changes it in place and returns how many matches it rewrote.

    A pass keeps every value and its strides (kernels choose their order of summation by them). No output may share
    memory with an input, a constant or another output unless it did so before.
    """

    name: str
    apply: Callable[[GraphModule], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """A pass that keeps values within rounding; ``fuse`` changes a graph in place and returns the matches' places."""

    name: str
    fuse: Callable[[GraphModule], list[str]]

    def apply(self, module: GraphModule) -> int:
        """Run as a pass: returns the number of matches."""
        return len(self.fuse(module))


@dataclass(frozen=True, slots=True, kw_only=True)
class Simplified:
    """A simplified graph: flat tensors in, a tuple of flat tensors out, and the number of matches of each pass."""

    module: GraphModule
    matches: Mapping[str, int]
    nodes_before: int
    nodes_after: int


def simplify(program: ExportedProgram, passes: Sequence[Pass]) -> Simplified:
    """Run ``passes`` in turn until none matches; ``program`` and its tensors stay as they are.

    Raises WorkError if the graph writes into its inputs or buffers, if sizes are not fixed, or if passes undo
    one another.
    """
    module = functional(program)
    before = len(module.graph.nodes)
    matches = {graph_pass.name: 0 for graph_pass in passes}
    for _ in range(ROUNDS):
        matched = 0
        for graph_pass in passes:
            with torch.no_grad():
                count = graph_pass.apply(module)
            matches[graph_pass.name] += count
            matched += count
        if not matched:
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
    """Rewrite a captured graph without in-place operators, as a new module that shares the weights.

    Raises WorkError if the graph writes into its inputs or buffers, or has sizes that are not fixed.
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
    """Return a node's value as a tensor without data (shape, dtype, device, strides); ``None`` if it is no tensor."""
    tensor = node.meta.get("val") if isinstance(node, Node) else None
    return tensor if isinstance(tensor, Tensor) else None


def place(node: Node) -> str:
    """Return the path of a node's module, such as ``encoder.layer.0``; empty for the model's own code.

    An erased node still has it.
    """
    stack = list(node.meta.get(_STACK, {}).values())
    if not stack:
        return ""
    path = str(stack[-1][0])
    if str(stack[0][1]).startswith(f"{capture.__name__}."):  # capture wraps the model in a module of its own
        path = path.partition(".")[2]
    return path


def put_in_place(node: Node, *sources: Node) -> None:
    """Set a new node's module to the innermost one that all ``sources`` were captured in, if there is one."""
    stacks = [list(source.meta.get(_STACK, {}).items()) for source in sources]
    agreeing = takewhile(lambda entries: all(one == entries[0] for one in entries), zip(*stacks, strict=False))
    if shared := dict(entries[0] for entries in agreeing):
        node.meta[_STACK] = shared


def same_layout(left: Tensor | None, right: Tensor | None) -> bool:
    """Return true if two tensors differ in their values only; false for complex and sparse tensors."""
    if left is None or right is None or left.is_complex() or left.layout is not torch.strided:
        return False
    if right.layout is not torch.strided or (left.dtype, left.device) != (right.dtype, right.device):
        return False
    return (left.shape, left.stride(), left.storage_offset()) == (right.shape, right.stride(), right.storage_offset())


def is_pure(node: Node) -> bool:
    """Return true if a node's value depends on its arguments only, and computing it has no other effect.

    False for all but torch's own operators; a library's operator may have effects that its schema does not show.
    """
    operator = node.target
    if node.op != "call_function" or not isinstance(operator, torch._ops.OpOverload) or operator.namespace != "aten":
        return False
    if "empty" in operator._schema.name:  # the values are whatever the memory contains
        return False
    return not _writes(node) and not node.is_impure()  # torch reports random operators as impure too


def constant(module: GraphModule, node: object) -> Tensor | None:
    """Return the weight or constant that a node reads, ``None`` for any other node."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    return tensor.detach() if isinstance(tensor, Tensor) else None


def add_constant(module: GraphModule, name: str, tensor: Tensor, meta: Tensor, *, before: Node) -> Node:
    """Add a constant to the module and a node that reads it to the graph; ``meta`` is the tensor without data."""
    number = sum(1 for buffer, _ in module.named_buffers() if buffer.startswith(f"{name}_"))
    while hasattr(module, f"{name}_{number}"):
        number += 1
    module.register_buffer(f"{name}_{number}", tensor.detach())
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(f"{name}_{number}")
    node.meta["val"] = meta
    return node


def is_view(node: Node) -> bool:
    """Return true if a node may return memory of its first argument."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # an element of several results, or control flow
    return node.target in _UNANNOTATED or any(answer.alias_info is not None for answer in node.target._schema.returns)


def may_replace(node: Node, source: Node) -> bool:
    """Return true if ``source``, with equal values, can replace ``node`` and no more outputs share memory."""
    origin = _origin(source)
    if _origin(node) is origin or not reaches_output(node):
        return True
    return origin.op == "call_function" and not is_view(origin) and not reaches_output(origin)


def replace(node: Node, source: Node) -> None:
    """Replace ``node`` by ``source`` everywhere, and remove it from the graph."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _origin(node: Node) -> Node:
    while is_view(node) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def reaches_output(node: Node) -> bool:
    """Return true if an output may share memory with a node's value."""
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
