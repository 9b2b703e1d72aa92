"""The two fingerprints of a workload: structure decides speed, weights decide whether an artifact can be reused."""

import hashlib
import json
from typing import TYPE_CHECKING

from autotune.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

# Nodes that compute nothing; torch versions differ in whether they record them.
_SILENT = ("aten._assert_tensor_metadata", "aten._assert_async", "aten.sym_constrain_range", "aten._assert_scalar")
_SAME = ("aten.detach_", "aten.detach", "aten.alias", "aten.lift_fresh_copy", "aten.lift_fresh")

_FEATURES = {
    "convolution": ("conv1d", "conv2d", "conv3d", "convolution"),
    "attention": ("scaled_dot_product_attention",),
    "gemm": ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm"),
    "norm": ("layer_norm", "batch_norm", "group_norm", "rms_norm"),
}


def structure(program: "ExportedProgram") -> str:
    """SHA-256 of the graph with all node arguments except devices, and of every shape and dtype.

    Graphs within the graph (blocks under autocast or no_grad, branches, loops) and its constants are included. Names,
    devices and values of parameters are not, so that it is the same on every device. Raises ModelError if the graph
    holds something that cannot be described.
    """
    described = _Described(program.graph_module)
    entries = described.entries()
    return _digest(["fingerprint 2", entries] if described.is_nested else entries)


def former(program: "ExportedProgram") -> str:
    """Return the structure by fingerprint 1, which left out graphs within the graph; empty if it is the same."""
    described = _Described(program.graph_module)
    entries = described.entries()
    if not described.is_nested:
        return ""
    for entry, node in zip(entries, described.listed, strict=True):
        if node.op == "get_attr":
            entry[:] = [str(node.target), [], {}, _meta(node)]
    return _digest(entries)


def graphs(module: "GraphModule") -> "Iterator[GraphModule]":
    """Yield a graph and every graph within it, outermost first."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            yield part


def weights(program: "ExportedProgram") -> str:
    """SHA-256 of the values of all parameters, buffers and constants in the order in which the graph takes them.

    Raises ModelError if one of them is no tensor, so that its value is not known.
    """
    import torch

    digest = hashlib.sha256()
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        tensor = program.state_dict.get(spec.target)
        if tensor is None:
            tensor = program.constants.get(spec.target)
        if not isinstance(tensor, torch.Tensor):
            raise _undescribed(f"{spec.target}, a {type(tensor).__name__}")
        _add_values(digest, tensor)
    return digest.hexdigest()


def features(program: "ExportedProgram") -> tuple[str, ...]:
    """Return which of convolution, attention, gemm and norm the graph contains, graphs within it included."""
    nodes = [node for module in graphs(program.graph_module) for node in module.graph.nodes]
    names = {packet.removeprefix("aten.") for packet in map(_overload_packet, nodes)}
    return tuple(feature for feature, operators in _FEATURES.items() if names & set(operators))


def random_operators(program: "ExportedProgram") -> list[str]:
    """Return the operators that draw random numbers and that an output depends on, graphs within the graph included."""
    import torch

    operators = []
    for module in graphs(program.graph_module):
        nodes = list(module.graph.nodes)
        alive = _alive(nodes)
        for node in nodes:
            tags = getattr(node.target, "tags", ())
            if node in alive and torch.Tag.nondeterministic_seeded in tags and not _draws_nothing(node):
                operators.append(_overload_packet(node))
    return list(dict.fromkeys(operators))


def _draws_nothing(node: "Node") -> bool:
    """Return whether an operator that can draw does not: dropout in evaluation or of probability 0."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given |= dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    flags = [given[name] for name in ("train", "training") if name in given]
    rates = [given[name] for name in ("p", "dropout_p", "dropout") if name in given]
    return any(flag is False for flag in flags) or (bool(rates) and all(rate == 0 for rate in rates))


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _add_values(digest: "hashlib._Hash", tensor: "torch.Tensor") -> None:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _undescribed(what: str) -> ModelError:
    return ModelError(
        "the captured graph holds something that cannot be described, so its plan could not be identified",
        found=what,
        expected="operators on tensors and plain numbers",
        run="the model with torch's own operators in its place",
    )


class _Described:
    """One graph as plain data: an entry a node that computes something, operands by position."""

    def __init__(self, module: "GraphModule") -> None:
        self.module = module
        self.is_nested = False
        self.listed: list[Node] = []

    def entries(self) -> list[list[object]]:
        nodes = list(self.module.graph.nodes)
        position: dict[Node, int] = {}
        alive = _alive(nodes)
        entries: list[list[object]] = []
        for node in nodes:
            if node not in alive:
                continue
            if _overload_packet(node) in _SAME and node.args[0] in position:
                position[node] = position[node.args[0]]
                continue
            entries.append(self._entry(node, position))
            self.listed.append(node)
            position[node] = len(entries) - 1
        return entries

    def _entry(self, node: "Node", position: dict["Node", int]) -> list[object]:
        if node.op == "placeholder":
            return ["input", _meta(node)]
        if node.op == "output":
            return ["output", _canonical(node.args, position)]
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        target = str(node.target)
        if node.op != "call_function" or "triton_kernel_wrapper" in target or " at 0x" in target:
            raise _undescribed(f"{node.op} {target}")
        operands = [_canonical(node.args, position), _canonical(_without_device(node.kwargs), position)]
        return [target, *operands, _meta(node)]

    def _attribute(self, path: str) -> list[object]:
        """Describe a value that a node takes from the graph's own module: a graph by content, a tensor by values."""
        import torch

        self.is_nested = True
        value: object = self.module
        for part in path.split("."):
            value = getattr(value, part)
        if isinstance(value, torch.fx.GraphModule):
            return ["graph", _Described(value).entries()]
        if isinstance(value, torch.Tensor):
            digest = hashlib.sha256()
            _add_values(digest, value)
            return ["constant", digest.hexdigest()]
        raise _undescribed(f"{path}, a {type(value).__name__}")


def _overload_packet(node: "Node") -> str:
    return str(node.target).rpartition(".")[0] if node.op == "call_function" else ""


def _alive(nodes: list["Node"]) -> set["Node"]:
    """Return the nodes that an output depends on, plus every input of the user."""
    alive: set[Node] = set()
    for node in reversed(nodes):
        silent = _overload_packet(node) in _SILENT
        used = not silent and any(user in alive for user in node.users)
        if node.op in ("output", "placeholder") or used or _mutates(node):
            alive.add(node)
    return alive


def _mutates(node: "Node") -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _without_device(kwargs: "Mapping[str, object]") -> dict[str, object]:
    return {
        key: kwargs[key] for key in sorted(kwargs) if key not in ("device", "pin_memory") and kwargs[key] is not None
    }


def _canonical(value: object, position: "dict[Node, int]") -> object:
    import torch
    from torch.fx import Node
    from torch.utils._pytree import TreeSpec as _TREE

    if isinstance(value, Node):
        return {"node": position[value]}
    if isinstance(value, tuple | list):
        return [_canonical(item, position) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item, position) for key, item in value.items()}
    if isinstance(value, torch.device):
        return None
    if isinstance(value, float):
        return repr(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format | complex | slice):
        return str(value)
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | torch._ops.OpOverload | _TREE):
        return str(value)
    if isinstance(value, torch.Tensor):
        digest = hashlib.sha256()
        _add_values(digest, value)
        return {"constant": digest.hexdigest()}
    raise _undescribed(f"an argument of {type(value).__name__}: {str(value)[:80]}")


def _meta(node: "Node") -> object:
    import torch

    def described(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return [str(value.dtype), [str(size) for size in value.shape]]
        if isinstance(value, tuple | list):
            return [described(item) for item in value]
        return None

    return described(node.meta.get("val"))
