"""The two fingerprints of a workload: structure decides speed, weights decide whether an artifact can be reused."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

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

    Names, devices and values of parameters do not enter, so that it is the same on every device.
    """
    return hashlib.sha256(json.dumps(describe(program), separators=(",", ":")).encode()).hexdigest()


def describe(program: "ExportedProgram") -> list[Any]:
    """What :func:`structure` hashes: one entry a node that computes something, operands by position."""
    nodes = list(program.graph.nodes)
    position: dict[Any, int] = {}
    alive = _alive(nodes)
    entries: list[Any] = []
    for node in nodes:
        if node not in alive:
            continue
        if _overload_packet(node) in _SAME and node.args[0] in position:
            position[node] = position[node.args[0]]
            continue
        if node.op == "placeholder":
            entries.append(["input", _meta(node)])
        elif node.op == "output":
            entries.append(["output", _canonical(node.args, position)])
        else:
            operands = [_canonical(node.args, position), _canonical(_without_device(node.kwargs), position)]
            entries.append([str(node.target), *operands, _meta(node)])
        position[node] = len(entries) - 1
    return entries


def weights(program: "ExportedProgram") -> str:
    """SHA-256 of the values of all parameters, buffers and constants in the order in which the graph takes them."""
    import torch

    digest = hashlib.sha256()
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        tensor = program.state_dict.get(spec.target)
        if tensor is None:
            tensor = program.constants.get(spec.target)
        if not isinstance(tensor, torch.Tensor):
            continue
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def features(program: "ExportedProgram") -> tuple[str, ...]:
    """Which of convolution, attention, gemm and norm the graph contains."""
    names = {packet.removeprefix("aten.") for packet in map(_overload_packet, program.graph.nodes)}
    return tuple(feature for feature, operators in _FEATURES.items() if names & set(operators))


def _overload_packet(node: "Node") -> str:
    return str(node.target).rpartition(".")[0] if node.op == "call_function" else ""


def _alive(nodes: list["Node"]) -> set["Node"]:
    """Nodes that an output depends on, plus every input of the user."""
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


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        key: kwargs[key] for key in sorted(kwargs) if key not in ("device", "pin_memory") and kwargs[key] is not None
    }


def _canonical(value: Any, position: dict[Any, int]) -> Any:
    import torch
    from torch.fx import Node

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
    return str(value)


def _meta(node: "Node") -> Any:
    import torch

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return [str(value.dtype), [str(size) for size in value.shape]]
        if isinstance(value, tuple | list):
            return [one(item) for item in value]
        return None

    return one(node.meta.get("val"))
