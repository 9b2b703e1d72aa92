"""ONNX models as other frameworks write them: built node by node, with open sizes, and weights beside the file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Size = int | str | None
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, sizes: Sequence[Size], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(sizes))


def held(name: str, *sizes: int, seed: int = 0) -> TensorProto:
    drawn = numpy.random.default_rng([seed, *name.encode()]).normal(size=sizes).astype(numpy.float32)
    return numpy_helper.from_array(drawn / max(1.0, sizes[-1] ** 0.5), name)


def model(
    nodes: Sequence[NodeProto], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[TensorProto] = (),
    **options: Any,
) -> ModelProto:  # fmt: skip
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    options.setdefault("opset_imports", [helper.make_opsetid("", 18)])
    return helper.make_model(graph, ir_version=8, **options)


def convolutional(*, seed: int = 0, names: Callable[[str], str] = str) -> ModelProto:
    """An image [n, 3, 12, 12] to logits [n, 4], as an exporter of PyTorch names its tensors."""
    weights = [held(names("w1"), 8, 3, 3, 3, seed=seed), held(names("w2"), 8, 4, seed=seed)]
    shape = numpy_helper.from_array(numpy.array([0, -1], dtype=numpy.int64), names("shape"))
    nodes = [
        helper.make_node("Conv", [names("input.1"), names("w1")], [names("c")], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", [names("c")], [names("r")]),
        helper.make_node("GlobalAveragePool", [names("r")], [names("p")]),
        helper.make_node("Reshape", [names("p"), names("shape")], [names("f")]),
        helper.make_node("MatMul", [names("f"), names("w2")], [names("logits")]),
    ]
    return model(
        nodes, [value(names("input.1"), ["n", 3, 12, 12])], [value(names("logits"), ["n", 4])], [*weights, shape]
    )


def encoder(*, seed: int = 0) -> ModelProto:
    """Ids [b, s] and a mask [b, s] to a hidden state [b, s, 16] and a pooled one [b, 16], by one head of attention."""
    weights = [held("table", 50, 16, seed=seed), *(held(name, 16, 16, seed=seed) for name in ("wq", "wk", "wv", "wo"))]
    axes = numpy_helper.from_array(numpy.array([1], dtype=numpy.int64), "axes")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        *(helper.make_node("MatMul", ["x", f"w{part}"], [part]) for part in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Unsqueeze", ["mask", "axes"], ["wide"]),
        helper.make_node("Mul", ["scores", "wide"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "wo"], ["out"]),
        helper.make_node("Add", ["x", "out"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden", "axes"], ["pooled"], keepdims=0),
    ]
    inputs = [value("ids", ["b", "s"], INT64), value("mask", ["b", "s"])]
    return model(nodes, inputs, [value("hidden", ["b", "s", 16]), value("pooled", ["b", 16])], [*weights, axes])


def written(folder: Path, content: ModelProto | bytes, name: str = "net.onnx", *, beside: bool = False) -> Path:
    """Write a model into a folder, its weights in a file ``weights.bin`` beside it if that is asked for."""
    folder.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        onnx.save(
            content, str(folder / name), save_as_external_data=beside, location="weights.bin", size_threshold=64,
        )  # fmt: skip
    return folder / name
