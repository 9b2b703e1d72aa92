"""The description of an ONNX graph: its two fingerprints, its features, and its work.

Names of nodes and tensors do not count, so two exports of one model that differ in names alone are one workload.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.model.work import FP32_BYTES, Work

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

log = logging.getLogger(__name__)

_STRUCTURAL = ("INT64", "BOOL")
"""Types of constants that are shapes, axes and flags: they belong to the structure. All others are weights."""

_FEATURES = {
    "convolution": ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv"),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention"),
    "gemm": ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "FusedGemm"),
    "norm": (
        "LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization",
    ),
}  # fmt: skip
_PASSING = ("Cast", "Dropout", "Identity", "Where", "Mul")
"""Operators that may stand between the softmax of an attention and its second product."""


def structure(model: "ModelProto") -> str:
    """SHA-256 of the operators with their attributes and operands, and of the shapes and dtypes of all tensors."""
    described = _OnnxDescription()
    body = described.graph(model.graph, {})
    versions = sorted((entry.domain, entry.version) for entry in model.opset_import)
    functions = sorted(described.function(function) for function in model.functions)
    return _digest(["onnx 1", versions, functions, body])


def weights(model: "ModelProto") -> str:
    """SHA-256 of the values of all weights in the order of the graph: of every constant that is no shape or flag."""
    digest = hashlib.sha256()
    for tensor in constants(model):
        if not _is_structural(tensor):
            _add(digest, tensor)
    return digest.hexdigest()


def features(model: "ModelProto") -> tuple[str, ...]:
    """Return which of convolution, attention, gemm and norm the graph contains; a softmax in a product is attention."""
    nodes = list(_nodes(model))
    operators = {node.op_type for node in nodes}
    found = {feature for feature, names in _FEATURES.items() if operators & set(names)}
    if _has_attention(nodes):
        found.add("attention")
    return tuple(feature for feature in _FEATURES if feature in found)


def work(model: "ModelProto") -> Work:
    """Count the work of a graph whose inputs have fixed sizes; a number is ``None`` if a shape is not known.

    The products are those of ``Conv``, ``ConvTranspose``, ``Gemm`` and ``MatMul``.
    """
    from onnx import shape_inference

    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = _shapes(graph)
        counted = [_flops(node, shapes) for node in graph.node]
        flops = None if None in counted else sum(count or 0 for count in counted)
        return Work(flops=flops, traffic_bytes=sum(_traffic(graph, shapes)))
    except Exception as error:  # the count serves reports alone, so no model may be refused because of it
        log.info("the work of the ONNX model is not counted: %s: %s", type(error).__name__, error)
        return Work()


class _OnnxDescription:
    """Graphs as plain data, operands by position."""

    def graph(self, graph: "GraphProto", outer: Mapping[str, object]) -> list[object]:
        places: dict[str, object] = dict(outer)
        held = {tensor.name for tensor in graph.initializer}
        depth = len({str(place).partition(".")[0] for place in outer.values()})
        taken = [value for value in graph.input if value.name not in held]
        for at, value in enumerate(taken):
            places[value.name] = f"{depth}.input.{at}"
        sparse = [tensor.values for tensor in graph.sparse_initializer]
        for at, tensor in enumerate([*graph.initializer, *sparse]):
            places[tensor.name] = f"{depth}.held.{at}"
        entries: list[object] = [["input", _type(value)] for value in taken]
        entries += [self._tensor(tensor) for tensor in graph.initializer]
        entries += [self._sparse(tensor) for tensor in graph.sparse_initializer]
        for at, node in enumerate(graph.node):
            entries.append(self._node(node, places))
            places.update({name: f"{depth}.node.{at}.{index}" for index, name in enumerate(node.output) if name})
        return [*entries, [places.get(value.name) for value in graph.output], [_type(value) for value in graph.output]]

    def function(self, function: Any) -> list[object]:
        places: dict[str, object] = {name: f"0.input.{at}" for at, name in enumerate(function.input)}
        entries: list[object] = []
        for at, node in enumerate(function.node):
            entries.append(self._node(node, places))
            places.update({name: f"0.node.{at}.{index}" for index, name in enumerate(node.output) if name})
        outputs = [places.get(name) for name in function.output]
        return [function.domain, function.name, [*function.attribute], json.dumps(entries), outputs]

    def _node(self, node: "NodeProto", places: Mapping[str, object]) -> list[object]:
        attributes = sorted((attribute.name, self._attribute(attribute, places)) for attribute in node.attribute)
        operands = [places.get(name) if name else None for name in node.input]
        return [node.domain, node.op_type, operands, [bool(name) for name in node.output], attributes]

    def _attribute(self, attribute: Any, places: Mapping[str, object]) -> str:
        from onnx import AttributeProto, helper

        kind = attribute.type
        if attribute.ref_attr_name:
            value: object = {"ref": attribute.ref_attr_name}
        elif kind == AttributeProto.TENSOR:
            value = self._tensor(attribute.t)
        elif kind == AttributeProto.TENSORS:
            value = [self._tensor(tensor) for tensor in attribute.tensors]
        elif kind == AttributeProto.GRAPH:
            value = self.graph(attribute.g, places)
        elif kind == AttributeProto.GRAPHS:
            value = [self.graph(graph, places) for graph in attribute.graphs]
        elif kind == AttributeProto.SPARSE_TENSOR:
            value = self._sparse(attribute.sparse_tensor)
        elif kind == AttributeProto.SPARSE_TENSORS:
            value = [self._sparse(tensor) for tensor in attribute.sparse_tensors]
        else:
            value = helper.get_attribute_value(attribute)
        return json.dumps([kind, value], default=_plain)

    def _sparse(self, tensor: Any) -> list[object]:
        return ["sparse", list(tensor.dims), self._tensor(tensor.values), self._tensor(tensor.indices)]

    def _tensor(self, tensor: "TensorProto") -> list[object]:
        kind = [_dtype(tensor), list(tensor.dims)]
        if not _is_structural(tensor):
            return ["weight", *kind]
        digest = hashlib.sha256()
        _add(digest, tensor)
        return ["constant", *kind, digest.hexdigest()]


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _add(digest: "hashlib._Hash", tensor: "TensorProto") -> None:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    digest.update(f"{_dtype(tensor)}{tuple(tensor.dims)}".encode())
    digest.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())


def _dtype(tensor: "TensorProto") -> str:
    from onnx import TensorProto

    name: str = TensorProto.DataType.Name(tensor.data_type)
    return name


def _is_structural(tensor: "TensorProto") -> bool:
    return _dtype(tensor) in _STRUCTURAL


def _type(value: Any) -> list[object]:
    described = value.type.tensor_type
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in described.shape.dim]
    return [value.type.WhichOneof("value"), described.elem_type, sizes]


def _graphs(nodes: "Iterable[NodeProto]") -> "Iterator[GraphProto]":
    """Yield every graph within the nodes, outermost first."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield inner
                yield from _graphs(inner.node)


def _nodes(model: "ModelProto") -> "Iterator[NodeProto]":
    """Yield every node of a model: of its graph, of its functions, and of the graphs within them."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        yield from nodes
        for graph in _graphs(nodes):
            yield from graph.node


def constants(model: "ModelProto") -> "Iterator[TensorProto]":
    """Yield every tensor that a model holds, those of its functions and of graphs within graphs included."""
    bodies = (model.graph.node, *(function.node for function in model.functions))
    for graph in (model.graph, *(inner for nodes in bodies for inner in _graphs(nodes))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []:
                yield from (sparse.values, sparse.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)


def _has_attention(nodes: "Sequence[NodeProto]") -> bool:
    """Return whether a softmax goes into a matrix product, with nothing but casts, masks and scales between."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    reached = [name for node in nodes if node.op_type == "Softmax" for name in node.output]
    for _ in range(4):
        following = [node for name in reached for node in readers.get(name, ())]
        if any(node.op_type == "MatMul" for node in following):
            return True
        reached = [name for node in following if node.op_type in _PASSING for name in node.output]
    return False


_Shapes = Mapping[str, tuple[int, ...]]


def _shapes(graph: "GraphProto") -> dict[str, tuple[int, ...]]:
    """Return the shapes that are known, by the names of tensors."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
        if len(sizes) == len(value.type.tensor_type.shape.dim):
            shapes.setdefault(value.name, tuple(sizes))
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    shapes.setdefault(node.output[0], tuple(attribute.t.dims))
    return shapes


def _flops(node: "NodeProto", shapes: _Shapes) -> int | None:
    """Return the operations of a product, 0 for any other operator, ``None`` if a shape is not known."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if first is None or second is None or out is None:
        return None
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(out) * (first[-2] if transposed else first[-1])


def _traffic(graph: "GraphProto", shapes: _Shapes) -> Iterator[int]:
    """Yield the bytes of each tensor that crosses the border of the graph, floating-point numbers as four bytes.

    Of a table that is only looked up, the rows that are read count.
    """
    from onnx import TensorProto, helper

    def size(number: int, shape: Sequence[int]) -> int:
        dtype = helper.tensor_dtype_to_np_dtype(number)
        return math.prod(shape) * (FP32_BYTES if dtype.kind not in "iub" else dtype.itemsize)

    reads = Counter(name for node in graph.node for name in node.input)
    rows = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Gather"}
    held = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        whole = size(tensor.data_type, tensor.dims)
        looked_up = shapes.get(rows.get(tensor.name, "")) if reads[tensor.name] == 1 else None
        if reads[tensor.name]:
            yield whole if looked_up is None else min(whole, size(tensor.data_type, looked_up))
    for value in (*(value for value in graph.input if value.name not in held), *graph.output):
        if value.name in shapes and value.type.tensor_type.elem_type != TensorProto.UNDEFINED:
            yield size(value.type.tensor_type.elem_type, shapes[value.name])
