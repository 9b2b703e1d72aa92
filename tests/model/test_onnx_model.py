"""ONNX files that come in: what they declare, what is refused, and a copy with fixed sizes."""

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from autotune.errors import ModelError
from autotune.model import onnx_model
from autotune.model.file_kind import DeclaredInput
from autotune.model.model_file import format_of, module_of, read, source_of
from tests import onnx_files
from tests.onnx_files import INT64, value


def refusal(path):
    with pytest.raises(ModelError) as refused:
        read(path)
    assert str(path) in refused.value.asked
    return refused.value


def test_a_file_declares_its_inputs_with_the_sizes_that_vary(tmp_path):
    path = onnx_files.written(tmp_path, onnx_files.encoder())
    file = read(path)
    assert (file.kind.name, file.kind.model_format, format_of(source_of(path))) == ("ONNX", "onnx", "onnx")
    assert file.inputs == (
        DeclaredInput(name="ids", shape=("b", "s"), dtype="int64"),
        DeclaredInput(name="mask", shape=("b", "s"), dtype="float32"),
    )
    assert not file.inputs[0].is_fixed


def test_weights_that_are_listed_as_inputs_are_none(tmp_path):
    content = onnx_files.convolutional()
    content.graph.input.append(value("w1", [8, 3, 3, 3]))
    assert [own.name for own in read(onnx_files.written(tmp_path, content)).inputs] == ["input.1"]


def test_sizes_without_a_name_and_a_shape_that_is_not_given(tmp_path):
    content = onnx_files.model(
        [helper.make_node("Add", ["x", "y"], ["z"])],
        [value("x", [None, 3]), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [value("z", [None, 3])],
    )  # fmt: skip
    assert [own.shape for own in read(onnx_files.written(tmp_path, content)).inputs] == [("", 3), None]


@pytest.mark.parametrize("beside", [False, True])
def test_a_copy_has_fixed_sizes_and_answers_as_the_file_does(beside, tmp_path):
    path = onnx_files.written(tmp_path, onnx_files.encoder(), beside=beside)
    example = {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.rand(2, 6)}
    (tmp_path / "copy").mkdir()
    target = tmp_path / "copy" / "own.onnx"
    onnx_model.write_fixed(path, example, target)
    assert sorted(file.name for file in target.parent.iterdir()) == ["own.onnx", "own.onnx.data"]
    copy = onnx.load(str(target))
    shapes = [[size.dim_value for size in tensor.type.tensor_type.shape.dim] for tensor in copy.graph.input]
    assert shapes == [[2, 6], [2, 6]]
    assert [size.dim_value for size in copy.graph.output[0].type.tensor_type.shape.dim] == [2, 6, 16]
    feeds = {name: tensor.numpy() for name, tensor in example.items()}
    own, fixed = (onnxruntime.InferenceSession(str(file)).run(None, feeds) for file in (path, target))
    assert all(numpy.allclose(here, there, atol=1e-6) for here, there in zip(own, fixed, strict=True))


@pytest.mark.parametrize(
    ("example", "found", "expected"),
    [
        ({"ids": torch.ones(2, 6, dtype=torch.int64)}, "inputs ids", "ids, mask"),
        ({"ids": torch.ones(2, 6), "mask": torch.ones(2, 6)}, "ids of float32", "int64"),
        ({"ids": torch.ones(2, 6, dtype=torch.int64), "mask": torch.ones(2, 7)}, "mask of shape [2, 7]", "s = 6"),
        ({"ids": torch.ones(2, dtype=torch.int64), "mask": torch.ones(2)}, "ids of shape [2]", "['b', 's']"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(example, found, expected, tmp_path):
    path = onnx_files.written(tmp_path, onnx_files.encoder())
    with pytest.raises(ModelError) as refused:
        onnx_model.write_fixed(path, example, tmp_path / "copy.onnx")
    assert found in refused.value.found and expected in refused.value.expected


def test_a_size_that_the_file_fixes_is_no_other(tmp_path):
    path = onnx_files.written(tmp_path, onnx_files.convolutional())
    with pytest.raises(ModelError, match=r"\[2, 3, 12, 13\][\s\S]*\['n', 3, 12, 12\]"):
        onnx_model.write_fixed(path, {"input.1": torch.ones(2, 3, 12, 13)}, tmp_path / "copy.onnx")


def test_a_text_input_and_one_that_is_no_tensor_are_refused(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    for kind, words in ((value("x", [1], TensorProto.STRING), "tensor of STRING"), (sequence, "x, a sequence")):
        content = onnx_files.model([helper.make_node("Identity", ["x"], ["y"])], [kind], [value("y", [1])])
        assert words in refusal(onnx_files.written(tmp_path, content)).found


def test_a_file_without_inputs_or_of_one_name_twice_is_refused(tmp_path):
    constant = helper.make_node("Constant", [], ["y"], value=onnx_files.held("v", 1))
    assert (
        refusal(onnx_files.written(tmp_path, onnx_files.model([constant], [], [value("y", [1])]))).found == "no input"
    )
    double = [value("x", [1], INT64), value("x", [1], INT64)]
    content = onnx_files.model([helper.make_node("Identity", ["x"], ["y"])], double, [value("y", [1], INT64)])
    assert "one name" in refusal(onnx_files.written(tmp_path, content)).found


def test_damaged_files_and_weights_elsewhere_are_refused(tmp_path):
    whole = onnx_files.encoder().SerializeToString()
    assert "an empty file" in refusal(onnx_files.written(tmp_path, b"")).found
    assert refusal(onnx_files.written(tmp_path, whole[: len(whole) // 2])).found
    assert refusal(onnx_files.written(tmp_path, b"not a protobuf at all, but text")).found
    path = onnx_files.written(tmp_path / "beside", onnx_files.encoder(), beside=True)
    (path.parent / "weights.bin").unlink()
    assert "weights.bin" in refusal(path).found
    content = onnx.load(str(path), load_external_data=False)
    for entry in (part for tensor in content.graph.initializer for part in tensor.external_data):
        entry.value = "../weights.bin" if entry.key == "location" else entry.value
    assert "no name below the model's folder" in refusal(onnx_files.written(tmp_path / "out", content)).found


def test_an_operator_of_another_library_is_refused_by_its_domain(tmp_path):
    content = onnx_files.model(
        [helper.make_node("Fancy", ["x"], ["y"], domain="com.example")], [value("x", [1])], [value("y", [1])],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)],
    )  # fmt: skip
    assert "com.example" in refusal(onnx_files.written(tmp_path, content)).found


def test_without_onnx_the_package_is_named(tmp_path, monkeypatch):
    path = onnx_files.written(tmp_path, onnx_files.encoder())
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None)
    assert "pip install onnx" in refusal(path).run


def test_there_is_no_torch_module_in_it(tmp_path):
    with pytest.raises(ModelError, match=r"no torch module[\s\S]*autotune\.load by the name"):
        module_of(onnx_files.written(tmp_path, onnx_files.encoder()))
