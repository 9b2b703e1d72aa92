"""An ONNX file may refer to nothing outside its folder."""

import os
from pathlib import Path

import numpy
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from autotune.errors import ArtifactError
from autotune.model.onnx_file import check_onnx


def external(location: str, **keys: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(weights: TensorProto | None = None, domain: str = "", nested: bool = False) -> onnx.ModelProto:
    weights = weights or helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    value = helper.make_tensor_value_info
    attributes = {}
    if nested:  # a branch of an If, with weights of its own
        inner = helper.make_graph([], "branch", [], [value("w", TensorProto.FLOAT, [4])], [weights])
        attributes = {"then_branch": inner}
        weights = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0] * 4)
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain, **attributes)
    ends = [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])]
    return helper.make_model(helper.make_graph([node], "g", *ends, [weights]))


def written(folder: Path, content: onnx.ModelProto | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    numpy.arange(8, dtype=numpy.float32).tofile(folder / "weights.bin")
    path = folder / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "weights", [None, external("weights.bin"), external("weights.bin", offset="16", length="16", checksum="x")]
)
def test_a_sound_file_passes(tmp_path: Path, weights: TensorProto | None, nested: bool) -> None:
    check_onnx(written(tmp_path / "model", model(weights, nested=nested)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (external("../secret"), "no name below"),
        (external("a/../../secret"), "no name below"),
        (external("/etc/hostname"), "no name below"),
        (external(""), "no name below"),
        (external("."), "no name below"),
        (external("..\\secret"), "no name below"),
        (external("*/_ORT_MEM_ADDR_/*", offset="0", length="16"), "No such file"),
        (external("absent"), "No such file"),
        (external("link"), "a link or no file"),
        (external("folder"), "a link or no file"),
        (external("linked/hostname"), "a link or no file"),
        (external("pipe"), "a link or no file"),
        (external("weights.bin", offset="33"), "up to byte 33"),
        (external("weights.bin", offset="30", length="16"), "up to byte 46"),
        (external("weights.bin", offset="-4"), "not negative"),
        (external("weights.bin", length="-4"), "not negative"),
        (external("weights.bin", length="9" * 30), "not negative"),
        (external("weights.bin", offset="0x10"), "not negative"),
        (external("weights.bin", offset=""), "not negative"),
    ],
)
def test_weights_elsewhere_are_refused(tmp_path: Path, weights: TensorProto, says: str, nested: bool) -> None:
    path = written(tmp_path / "model", model(weights, nested=nested))
    (tmp_path / "secret").write_bytes(b"x" * 64)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "linked").symlink_to("/etc")
    (path.parent / "folder").mkdir()
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ArtifactError, match=says):
        check_onnx(path)


@pytest.mark.parametrize("domain", ["evil.ops", "com.microsoft.evil", "ai.onnx.contrib"])
def test_operators_of_somebody_else_are_refused(tmp_path: Path, domain: str) -> None:
    with pytest.raises(ArtifactError, match=f"the domain '{domain}'"):
        check_onnx(written(tmp_path, model(domain=domain)))
    own = model(domain=domain)
    own.functions.append(
        helper.make_function(domain, "Add", ["a", "b"], ["c"], [helper.make_node("Sum", ["a", "b"], ["c"])], [])
    )
    check_onnx(written(tmp_path, own))


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = model(external("weights.bin", length="16"), nested=True).SerializeToString()
    path = written(tmp_path, whole)
    graph = whole.index(b"\x3a")  # the graph, the longest field: nothing that lies in it may be cut off
    for size in range(graph + 1, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match="ends too soon"):
            check_onnx(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        check_onnx(path)
    except ArtifactError as error:
        assert str(error).startswith("any.onnx is refused")


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def inside(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 0x7F:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = b""
    for _ in range(100):
        graph = inside(1, inside(5, inside(6, graph)))
    (tmp_path / "deep.onnx").write_bytes(inside(7, graph))
    with pytest.raises(ArtifactError, match="nested deeper"):
        check_onnx(tmp_path / "deep.onnx")
