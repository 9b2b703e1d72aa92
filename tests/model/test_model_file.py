"""What a model file is, by its content, and what it declares."""

import pickle
import warnings
import zipfile

import pytest
import torch

from autotune.errors import ModelError
from autotune.model.capture import capture
from autotune.model.file_kind import DeclaredInput
from autotune.model.model_file import module_of, path_of, read, source_of
from autotune.model.precision import flat_module
from autotune.study.model_study import is_model_file
from tests import model_files


def declared(path):
    return read(path).inputs


def test_inputs_that_files_declare(tmp_path):
    scripted, _ = model_files.write("encoder", "scripted", tmp_path)
    assert read(scripted).kind.name == "TorchScript"
    assert declared(scripted) == (
        DeclaredInput(name="ids"),
        DeclaredInput(name="mask", required=False),
        DeclaredInput(name="scale", required=False),
    )
    traced, _ = model_files.write("encoder", "traced", tmp_path)
    assert [own.name for own in declared(traced)] == ["ids", "mask"]
    exported, _ = model_files.write("encoder", "exported", tmp_path)
    assert read(exported).kind.name == "exported program"
    assert declared(exported) == (
        DeclaredInput(name="ids", shape=(2, 6), dtype="int64"),
        DeclaredInput(name="mask", shape=(2, 6), dtype="float32"),
    )


def test_a_size_that_may_vary_is_that_of_the_example(tmp_path):
    model, inputs = model_files.convolutional()
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "program.pt2")
    assert declared(tmp_path / "program.pt2") == (DeclaredInput(name="image", shape=(2, 3, 12, 12), dtype="float32"),)


@pytest.mark.parametrize("kind", model_files.KINDS)
@pytest.mark.parametrize("name", model_files.MODELS)
def test_the_module_is_that_of_the_user(tmp_path, name, kind):
    path, inputs = model_files.write(name, kind, tmp_path)
    assert path_of(source_of(path)) == path
    module = module_of(path)
    with torch.no_grad():
        answer = module(*inputs.values()) if kind == "traced" else module(**inputs)
    flat = list(answer.values()) if isinstance(answer, dict) else [answer]
    for here, there in zip(flat, model_files.answers(name, inputs), strict=True):
        assert torch.allclose(here, there, atol=1e-5)


class Marked:
    """Unpickling it leaves a mark."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.unpickled = True",))


def test_what_is_no_model_file_is_said_and_nothing_is_unpickled(tmp_path):
    model, _ = model_files.convolutional()

    def refused(path, *words):
        with pytest.raises(ModelError) as caught:
            read(path)
        message = str(caught.value)
        assert all(word in message for word in (str(path), "torch.export.save", *words)), message

    path = tmp_path / "model.pt"
    refused(path, "no file")
    refused(tmp_path, "a folder")
    path.write_bytes(b"")
    refused(path, "an empty file")
    path.write_bytes(b"no model")
    refused(path, "no archive")
    path.write_bytes(pickle.dumps(Marked()))
    refused(path, "a pickle, which autotune does not run", "factory")
    torch.save(model.state_dict(), path)
    refused(path, "tensors without a computation, such as a state_dict", "factory: path.py:callable")
    torch.save({"state": model.state_dict(), "epoch": 3, "name": "x"}, path)
    refused(path, "tensors without a computation")
    torch.save(Marked(), path)
    refused(path, "a pickled object", ".exec")
    torch.save(model, path)
    refused(path, "a pickled object", "Convolutional")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, "a pickled object", "torch.nn.modules.linear.Linear")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/x.wrapper.so", b"")
        archive.writestr("model/archive_format", b"pt2")
    refused(path, "AOTInductor", "compiled from")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")
    refused(path, "torch before 2.8", "torch.export.save again")
    whole, _ = model_files.write("convolutional", "scripted", tmp_path)
    path.write_bytes(whole.read_bytes()[:2000])
    refused(path, "no archive")
    import builtins

    assert not hasattr(builtins, "unpickled")


def test_a_module_without_a_forward(tmp_path):
    class Halves(torch.nn.Module):
        @torch.jit.export
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    torch.jit.script(Halves()).save(str(tmp_path / "halves.pt"))
    with pytest.raises(ModelError, match=r"(?s)no forward.*found: encode"):
        read(tmp_path / "halves.pt")


def test_an_argument_that_is_no_tensor(tmp_path):
    class Scaled(torch.nn.Module):
        def forward(self, x, scale):
            return x * scale

    torch.export.save(torch.export.export(Scaled(), (torch.ones(2), 2.0)), tmp_path / "scaled.pt2")
    with pytest.raises(ModelError, match=r"(?s)no tensor.*as_float"):
        read(tmp_path / "scaled.pt2")


class Keyed(torch.nn.Module):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * mask


def test_a_program_of_several_sizes_is_specialised_and_keeps_its_keywords(tmp_path, caplog):
    size = torch.export.Dim("size", min=2, max=8)
    given, named = (torch.rand(4, 3),), {"mask": torch.ones(4, 3)}
    program = torch.export.export(Keyed(), given, named, dynamic_shapes={"x": {0: size}, "mask": {0: size}})
    torch.export.save(program, tmp_path / "keyed.pt2")
    (tmp_path / "keyed.bin").write_bytes((tmp_path / "keyed.pt2").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module_of(tmp_path / "keyed.bin")(*given, **named).shape == (4, 3)
    assert "Unable to load" not in caplog.text
    x, mask = torch.rand(6, 3), torch.rand(6, 3)
    captured = capture("keyed", 6, module_of(tmp_path / "keyed.pt2"), {"x": x, "mask": mask})
    assert captured.notes == (
        "the program takes inputs of several sizes; it is specialised to those of the inputs given",
    )
    assert captured.inputs.positions == ("x",) and captured.inputs.names == ("x", "mask")
    assert torch.allclose(flat_module(captured.program)(x, mask)[0], torch.tanh(x) * mask)
    with pytest.raises(ModelError, match=r"(?s)refuses its inputs.*size\(\)\[0\] <= 8"):
        capture("keyed", 9, module_of(tmp_path / "keyed.pt2"), {"x": torch.rand(9, 3), "mask": torch.rand(9, 3)})


@pytest.mark.parametrize("name", ["model.pdmodel", "model.tflite"])
def test_a_model_of_a_kind_that_is_not_taken_yet_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x08\x08")
    with pytest.raises(ModelError) as refused:
        read(tmp_path / name)
    assert "does not take yet" in refused.value.found


def test_a_saved_model_is_named(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ModelError, match="a SavedModel, which autotune does not take yet"):
        read(tmp_path)
    assert is_model_file(tmp_path) and not is_model_file(tmp_path.parent)
