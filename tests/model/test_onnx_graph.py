"""The fingerprints, features and work of ONNX graphs."""

import math

import numpy
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autotune.model import onnx_graph
from tests import onnx_files
from tests.onnx_files import held, value


def fixed(content, **sizes):
    for tensor in (*content.graph.input, *content.graph.output):
        for size in tensor.type.tensor_type.shape.dim:
            if size.dim_param in sizes:
                size.dim_value = sizes[size.dim_param]
    return content


@given(st.text(alphabet="abcxyz./:_", max_size=8))
def test_names_do_not_count(prefix):
    plain, renamed = onnx_files.convolutional(), onnx_files.convolutional(names=lambda name: prefix + name[::-1])
    for node in renamed.graph.node:
        node.name, node.doc_string = prefix, "somewhere"
    assert onnx_graph.structure(plain) == onnx_graph.structure(renamed)


def test_values_of_weights_are_no_structure_and_shapes_are():
    first, second = onnx_files.convolutional(), onnx_files.convolutional(seed=1)
    assert onnx_graph.structure(first) == onnx_graph.structure(second)
    assert onnx_graph.weights(first) != onnx_graph.weights(second)
    other = onnx_files.convolutional()
    other.graph.initializer[2].CopyFrom(numpy_helper.from_array(numpy.array([-1, 8], dtype=numpy.int64), "shape"))
    assert onnx_graph.structure(first) != onnx_graph.structure(other)
    assert onnx_graph.weights(first) == onnx_graph.weights(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.node[0].attribute[1].ints.__setitem__(0, 1),  # a stride
        lambda m: setattr(m.graph.node[1], "op_type", "Tanh"),
        lambda m: m.graph.node[4].input.reverse(),
        lambda m: setattr(m.opset_import[0], "version", 17),
        lambda m: fixed(m, n=2),
        lambda m: m.graph.output.append(value("r", ["n", 8, 6, 6])),
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE),
        lambda m: m.graph.initializer[0].CopyFrom(held("w1", 8, 3, 5, 5)),
    ],
)
def test_anything_else_is_structure(change):
    plain, changed = onnx_files.convolutional(), onnx_files.convolutional()
    change(changed)
    assert onnx_graph.structure(plain) != onnx_graph.structure(changed)


def branching(inner_operator, *, weight=0, outer="x"):
    """An If whose branches compute from a value of the graph around them and from a weight of their own."""

    def branch(operator):
        node = helper.make_node(operator, [outer, "w"], ["inner"])
        return helper.make_graph([node], "b", [], [value("inner", [4])], [held("w", 4, seed=weight)])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch(inner_operator), else_branch=branch("Sub"))
    square = helper.make_node("Mul", ["x", "x"], ["squared"])
    inputs = [value("x", [4]), value("flag", [], TensorProto.BOOL)]
    return onnx_files.model([square, node], inputs, [value("y", [4])])


def test_graphs_within_the_graph_count():
    structure, weights = onnx_graph.structure, onnx_graph.weights
    assert structure(branching("Add")) == structure(branching("Add", weight=1)) != structure(branching("Mul"))
    assert structure(branching("Add")) != structure(branching("Add", outer="squared"))
    assert weights(branching("Add")) != weights(branching("Add", weight=1))


def test_functions_of_the_file_count():
    def calling(operator):
        body = helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node(operator, ["a", "a"], ["b"])],
            [helper.make_opsetid("", 18)],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        call = helper.make_node("Twice", ["x"], ["y"], domain="own")
        return onnx_files.model([call], [value("x", [4])], [value("y", [4])], opset_imports=imports, functions=[body])

    assert onnx_graph.structure(calling("Add")) == onnx_graph.structure(calling("Add"))
    assert onnx_graph.structure(calling("Add")) != onnx_graph.structure(calling("Mul"))


def test_constants_within_functions_and_sparse_ones_are_weights():
    def calling(seed):
        constant = helper.make_node("Constant", [], ["c"], value=held("c", 4, seed=seed))
        body = helper.make_function(
            "own", "Shifted", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])],
            [helper.make_opsetid("", 18)],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        call = helper.make_node("Shifted", ["x"], ["y"], domain="own")
        return onnx_files.model([call], [value("x", [4])], [value("y", [4])], opset_imports=imports, functions=[body])

    def sparse(seed, place=1):
        content = onnx_files.model(
            [helper.make_node("Add", ["x", "s"], ["y"])], [value("x", [4])], [value("y", [4])]
        )  # fmt: skip
        indices = numpy_helper.from_array(numpy.array([place], dtype=numpy.int64), "at")
        content.graph.sparse_initializer.append(helper.make_sparse_tensor(held("s", 1, seed=seed), indices, [4]))
        return content

    for make in (calling, sparse):
        assert onnx_graph.structure(make(0)) == onnx_graph.structure(make(1))
        assert onnx_graph.weights(make(0)) != onnx_graph.weights(make(1))
    assert onnx_graph.structure(sparse(0)) != onnx_graph.structure(sparse(0, place=2))


def test_features():
    assert onnx_graph.features(onnx_files.convolutional()) == ("convolution", "gemm")
    assert onnx_graph.features(onnx_files.encoder()) == ("attention", "gemm")
    alone = onnx_files.model([helper.make_node("Softmax", ["x"], ["y"])], [value("x", [4])], [value("y", [4])])
    assert onnx_graph.features(alone) == ()


def test_work_of_a_convolution_and_a_product():
    counted = onnx_graph.work(fixed(onnx_files.convolutional(), n=2))
    assert counted.flops == 2 * (2 * 8 * 6 * 6) * (3 * 3 * 3) + 2 * 2 * 8 * 4
    weights = 4 * (8 * 3 * 3 * 3 + 8 * 4) + 2 * 8
    assert counted.traffic_bytes == weights + 4 * (2 * 3 * 12 * 12 + 2 * 4)


def test_work_of_an_encoder_counts_the_rows_of_a_table_that_are_read():
    counted = onnx_graph.work(fixed(onnx_files.encoder(), b=2, s=6))
    assert counted.flops == 2 * 2 * 6 * (4 * 16 * 16 + 2 * 6 * 16)
    weights = 4 * (2 * 6 * 16 + 4 * 16 * 16) + 8
    assert counted.traffic_bytes == weights + 8 * 2 * 6 + 4 * (2 * 6 + 2 * 6 * 16 + 2 * 16)


def test_work_is_that_of_the_same_model_in_torch(tmp_path):
    from autotune.model.work import work

    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, groups=2), torch.nn.ConvTranspose2d(8, 4, 3, stride=2), torch.nn.Flatten(),
        torch.nn.Linear(4 * 13 * 13, 5),
    ).eval()  # fmt: skip
    example = (torch.randn(2, 4, 8, 8),)
    with torch.no_grad():
        torch.onnx.export(model, example, str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
        expected = work(torch.export.export(model, example))
    counted = onnx_graph.work(onnx.load(str(tmp_path / "net.onnx")))
    assert counted.flops == expected.flops
    assert math.isclose(counted.traffic_bytes, expected.traffic_bytes, rel_tol=0.01)  # shapes are constants here


def test_work_that_cannot_be_counted_is_unknown():
    content = onnx_files.model(
        [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Cast", ["at"], ["f"], to=TensorProto.FLOAT),
         helper.make_node("MatMul", ["w", "f"], ["y"])],
        [value("x", [4])], [value("y", [2, None])], [held("w", 2, 1)],
    )  # fmt: skip
    assert onnx_graph.work(content).flops is None
