"""An ONNX model as a study sees it: its answers, its workload, and models that no plan can stand for."""

import numpy
import onnxruntime
import pytest
import torch
from onnx import helper

from autotune.errors import ModelError
from autotune.model import onnx_capture, onnx_model, source
from autotune.model.form import Form
from autotune.model.onnx_capture import OnnxSession, capture_onnx
from autotune.records.workload import TensorSpec
from autotune.runtime.discovery import cpu
from tests import onnx_files
from tests.onnx_files import value

INPUTS = {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.rand(2, 6)}
OTHER = {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.rand(2, 6)}


def captured(tmp_path, content, inputs, other=None):
    path = onnx_files.written(tmp_path, content)
    fixed = tmp_path / source.OWN_ONNX
    onnx_model.write_fixed(path, inputs, fixed)
    return capture_onnx("net", 2, fixed, inputs, other or inputs)


def test_a_model_answers_by_the_names_of_its_outputs(tmp_path):
    found = captured(tmp_path, onnx_files.encoder(), INPUTS, OTHER)
    feeds = {name: tensor.numpy() for name, tensor in INPUTS.items()}
    expected = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, feeds)
    answer = Form(node=found.output_schema).unflatten(found.answers[0])
    assert list(answer) == ["hidden", "pooled"]
    assert all(numpy.allclose(answer[name], there) for name, there in zip(answer, expected, strict=True))
    assert found.workload.inputs[0] == TensorSpec(name="ids", shape=(2, 6), dtype="int64")
    assert found.workload.outputs[1] == TensorSpec(name="pooled", shape=(2, 16), dtype="float32")
    assert found.workload.features == ("attention", "gemm") and found.workload.flops
    assert found.inputs.flatten((INPUTS["ids"],), {"mask": INPUTS["mask"]}) == tuple(INPUTS.values())


def test_the_folder_of_a_study_has_the_file_and_no_graph(tmp_path):
    found = captured(tmp_path, onnx_files.encoder(), INPUTS, OTHER)
    source.write(tmp_path, found, INPUTS, factory="file:net.onnx", seed=0)
    model = source.CapturedModel(tmp_path)
    assert model.model_format == "onnx" and model.file == tmp_path / source.OWN_ONNX
    answers = model.reference(cpu())(*INPUTS.values())
    assert all(torch.allclose(here, there, atol=1e-5) for here, there in zip(answers, found.answers[0], strict=True))
    with pytest.raises(ValueError, match="no captured graph of a model in onnx"):
        model.program("fp32", cpu())


def test_random_numbers_are_refused(tmp_path):
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    content = onnx_files.model(nodes, [value("x", [2, 3])], [value("y", [2, 3])])
    with pytest.raises(ModelError, match=r"answers|differ|random"):
        captured(tmp_path, content, {"x": torch.rand(2, 3)})


def test_sizes_that_depend_on_values_are_refused(tmp_path):
    content = onnx_files.model(
        [helper.make_node("NonZero", ["x"], ["y"])], [value("x", [4])], [value("y", [1, None], onnx_files.INT64)]
    )
    with pytest.raises(ModelError, match="depends on the values"):
        captured(tmp_path, content, {"x": torch.tensor([1.0, 0, 0, 1])}, {"x": torch.ones(4)})


def test_an_operator_that_onnxruntime_has_not_is_named(tmp_path):
    content = onnx_files.model([helper.make_node("Reul", ["x"], ["y"])], [value("x", [2])], [value("y", [2])])
    with pytest.raises(ModelError, match=r"ONNX Runtime refuses the model[\s\S]*Reul"):
        captured(tmp_path, content, {"x": torch.rand(2)})


def test_a_call_that_fails_is_told_with_its_cause(tmp_path):
    path = onnx_files.written(tmp_path, onnx_files.encoder())
    with pytest.raises(ModelError, match=r"fails on its inputs[\s\S]*[Gg]ather"):
        OnnxSession(path, optimised=True)({**INPUTS, "ids": torch.full((2, 6), 99)})


def test_without_onnxruntime_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_capture, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install onnxruntime"):
        OnnxSession(tmp_path / "net.onnx", optimised=True)
