"""Attention as ONNX Runtime's own fused operators.

torch.onnx writes ``scaled_dot_product_attention`` as two matrix products, a softmax and a guard against NaN, a pattern
that no fusion of ONNX Runtime recognises. So the captured graph is rewritten before the export, while the operator is
still one node. If query, key and value are projections of the same input, it becomes ``com.microsoft.Attention`` with
the three weights packed into one matrix; otherwise ``com.microsoft.MultiHeadAttention``.

Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from autotune.model.precision import flat_module

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    SymbolicAttention = Callable[..., "torch.Tensor"]

# ONNX Runtime itself adds this to the scores of masked keys. If every key of a row is masked, the row attends to all of
# them equally, and torch answers 0; no tokenizer makes such a row.
MASKED = -10000.0


_Attributes = dict[str, int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projection:
    """One of query, key, value as heads [batch, heads, length, size] of ``linear(source, weight, bias)``."""

    source: "Node"
    weight: "torch.Tensor"
    bias: "torch.Tensor"


def fuse_attention(program: "ExportedProgram", inputs: "tuple[torch.Tensor, ...]") -> "ExportedProgram":
    """Return the graph with fused attention, for an ONNX export only; the same program if it has no attention."""
    import torch

    module = flat_module(program)
    nodes = [node for node in module.graph.nodes if _calls(node, torch.ops.aten.scaled_dot_product_attention.default)]
    fused = sum([_fuse(module, node, index) for index, node in enumerate(nodes)])
    if not fused:
        return program
    module.graph.eliminate_dead_code()
    module.recompile()
    with torch.no_grad():
        return torch.export.export(module, inputs)


def _fuse(module: "GraphModule", node: "Node", index: int) -> bool:
    query, key, value = (argument.meta["val"] for argument in node.args[:3])  # type: ignore[union-attr]
    mask, dropout, causal = (_argument(node, *at) for at in ((3, "attn_mask"), (4, "dropout_p"), (5, "is_causal")))
    same_heads = query.dim() == 4 and query.shape[1] == key.shape[1] == value.shape[1]
    if not same_heads or dropout or (causal and query.shape[2] != key.shape[2]):
        return False
    scale = _argument(node, 6, "scale")
    attributes: _Attributes = {"num_heads": query.shape[1]}
    attributes["scale"] = float(scale) if scale is not None else query.shape[3] ** -0.5
    if causal:
        attributes["unidirectional"] = 1
    bias = _bias(module, node, mask, query.dtype)
    packed = _pack(module, node, index) if key.shape == value.shape == query.shape else None
    with module.graph.inserting_before(node):
        if packed is not None:
            function = _attention(attributes, tuple(query.shape), query.dtype)
            new = module.graph.call_function(function, (*packed, bias))
        else:
            function = _multi_head_attention(attributes, query.dtype)
            new = module.graph.call_function(function, (*node.args[:3], bias))
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return True


def _attention(attributes: _Attributes, shape: tuple[int, ...], dtype: "torch.dtype") -> "SymbolicAttention":
    batch, heads, length, size = shape

    def attention(
        source: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor", attention_bias: "torch.Tensor | None"
    ) -> "torch.Tensor":
        import torch

        inputs = [source, weight, bias] + ([None, None, attention_bias] if attention_bias is not None else [])
        answer = torch.onnx.ops.symbolic(
            "com.microsoft::Attention",
            inputs,
            {**attributes},
            dtype=dtype,
            shape=(batch, length, heads * size),
            version=1,
        )
        return answer.view(batch, length, heads, size).transpose(1, 2)

    return attention


def _multi_head_attention(attributes: _Attributes, dtype: "torch.dtype") -> "SymbolicAttention":
    def multi_head_attention(
        query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", attention_bias: "torch.Tensor | None"
    ) -> "torch.Tensor":
        import torch

        batch, heads, length, _ = query.shape
        flat = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
        inputs = flat + ([None, None, attention_bias] if attention_bias is not None else [])
        answer = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            inputs,
            {**attributes},
            dtype=dtype,
            shape=(batch, length, heads * value.shape[3]),
            version=1,
        )
        return answer.view(batch, length, heads, value.shape[3]).transpose(1, 2)

    return multi_head_attention


def _bias(module: "GraphModule", node: "Node", mask: "Node | None", dtype: "torch.dtype") -> "Node | None":
    """Add the node of the attention bias [1 or batch, 1 or heads, queries, keys]; None if the mask hides nothing."""
    import torch

    if mask is None:
        return None
    queries, keys = (argument.meta["val"].shape[2] for argument in node.args[:2])  # type: ignore[union-attr]
    constant = _constant(module, mask)
    boolean = mask.meta["val"].dtype == torch.bool
    if constant is not None and bool(constant.all() if boolean else not constant.any()):
        return None

    def additive(values: "torch.Tensor") -> "torch.Tensor":
        values = torch.where(values, 0.0, MASKED).to(dtype) if boolean else values.to(dtype)
        values = values[(None,) * (4 - values.dim())]
        return values.expand(values.shape[0], values.shape[1], queries, keys)

    with module.graph.inserting_before(node):
        return module.graph.call_function(additive, (mask,))


def _pack(module: "GraphModule", node: "Node", index: int) -> "tuple[Node, Node, Node] | None":
    """Return source, packed weight and packed bias, if query, key and value are projections of the same input."""
    import torch

    projections = [_projection(module, argument) for argument in node.args[:3]]
    parts = [part for part in projections if part is not None]
    if len(parts) < 3 or any(part.source is not parts[0].source for part in parts):
        return None
    tensors = {
        f"packed_weight_{index}": torch.cat([part.weight for part in parts]).t().contiguous(),
        f"packed_bias_{index}": torch.cat([part.bias for part in parts]),
    }
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor.detach())
    with module.graph.inserting_before(node):
        weight, bias = (module.graph.get_attr(name) for name in tensors)
    return parts[0].source, weight, bias


def _projection(module: "GraphModule", node: object) -> _Projection | None:
    """Read ``linear(source).view(batch, length, heads, size).transpose(1, 2)`` backwards."""
    import torch
    from torch.fx import Node

    aten = torch.ops.aten
    if not _calls(node, aten.transpose.int) or set(node.args[1:]) not in ({1, 2}, {-2, -3}):
        return None
    view = node.args[0]
    if not _calls(view, aten.view.default, aten.reshape.default):
        return None
    linear = view.args[0]
    if not _calls(linear, aten.linear.default):
        return None
    source, weight_node, bias_node = (*linear.args, None)[:3]
    if not isinstance(source, Node) or source.meta["val"].dim() != 3:
        return None
    if view.meta["val"].shape[:2] != linear.meta["val"].shape[:2]:
        return None
    weight = _constant(module, weight_node) if isinstance(weight_node, Node) else None
    bias = _constant(module, bias_node) if isinstance(bias_node, Node) else None
    if weight is None:
        return None
    return _Projection(source=source, weight=weight, bias=weight.new_zeros(weight.shape[0]) if bias is None else bias)


def _constant(module: "GraphModule", node: "Node") -> "torch.Tensor | None":
    """Compute a node that depends on no input; None if it depends on one."""
    from torch.fx import Node, map_arg

    needed: set[Node] = set()
    pending = [node]
    while pending:
        operand = pending.pop()
        if operand.op not in ("get_attr", "call_function"):
            return None
        if operand not in needed:
            needed.add(operand)
            pending += operand.all_input_nodes
    values: dict[Node, Any] = {}
    for operand in module.graph.nodes:
        if operand in needed and operand.op == "get_attr":
            owner, _, name = str(operand.target).rpartition(".")
            values[operand] = getattr(module.get_submodule(owner), name)
        elif operand in needed:
            arguments, options = map_arg((operand.args, operand.kwargs), values.__getitem__)
            values[operand] = operand.target(*arguments, **options)
    return cast("torch.Tensor", values[node])


def _argument(node: "Node", position: int, name: str) -> Any:
    """Read an argument of the operator, by its position or by its name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _calls(node: object, *operators: object) -> TypeGuard["Node"]:
    """Return true if a value is a node that calls one of the operators."""
    return getattr(node, "op", "") == "call_function" and getattr(node, "target", None) in operators
