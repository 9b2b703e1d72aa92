"""TorchScript modules: their copies, signatures, and refusals; and their capture as graphs."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from autotune.errors import ModelError
from autotune.model import torchscript, torchscript_graph
from autotune.model.capture import capture
from autotune.model.precision import flat_module
from tests import model_files


def scripted(name="encoder"):
    return model_files.compiled(*model_files.MODELS[name](), "scripted")


def test_the_signature_is_that_of_the_compiled_forward():
    signature = torchscript.signature(scripted().forward)
    assert signature is not None
    assert list(signature.parameters) == ["ids", "mask", "scale"]
    defaults = [parameter.default for parameter in signature.parameters.values()]
    assert defaults == [inspect.Parameter.empty, None, 1.0]
    assert torchscript.signature(nn.Linear(2, 2).forward) is None


def test_a_copy_shares_nothing():
    module = scripted()
    copy = torchscript.copied(module)
    with torch.no_grad():
        next(copy.parameters()).zero_()
    assert next(module.parameters()).abs().sum() > 0
    assert copy.forward.graph is not module.forward.graph


def test_a_frozen_module_has_no_mode_and_is_captured():
    module = torch.jit.freeze(scripted("convolutional"))
    assert not hasattr(module, "training")
    captured = capture("frozen", 2, module, model_files.convolutional()[1])
    assert "convolution" in captured.workload.features


def test_what_cannot_be_read(tmp_path):
    path, _ = model_files.write("convolutional", "traced", tmp_path)
    with pytest.raises(ModelError, match=r"(?s)model.*cannot be read"):
        torchscript.load(path.read_bytes()[:3000])


def test_an_operator_that_is_not_registered_here(tmp_path):
    with torch.library._scoped_library("autotune_absent", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

        class Custom(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.autotune_absent.twice(x)

        torch.jit.trace(Custom(), torch.ones(2)).save(str(tmp_path / "custom.pt"))
    with pytest.raises(ModelError, match=r"(?s)not registered here.*autotune_absent::twice.*factory"):
        torchscript.load(tmp_path / "custom.pt")


@pytest.mark.parametrize("kind", ["traced", "scripted"])
@pytest.mark.parametrize("name", model_files.MODELS)
def test_the_graph_answers_like_the_eager_model(name, kind):
    model, inputs = model_files.MODELS[name]()
    module = model_files.compiled(model, inputs, kind)
    captured = capture(name, 2, module, inputs)
    for here, there in zip(
        flat_module(captured.program)(*inputs.values()), model_files.answers(name, inputs), strict=True
    ):
        assert torch.allclose(here, there, atol=1e-5)
    assert captured.form.names == (("output",) if name == "convolutional" else ("logits", "pooled"))
    features = {"convolutional": ("convolution", "gemm", "norm"), "encoder": ("attention", "gemm", "norm")}
    assert captured.workload.features == features[name]
    targets = {str(node.target) for node in captured.program.graph.nodes}
    assert not any("_local_scalar_dense" in target or "aten.convolution" in target for target in targets)


def test_an_optional_input_may_be_left_out_and_a_plan_keeps_the_default_of_a_number():
    captured = capture("encoder", 2, scripted(), {"ids": model_files.encoder()[1]["ids"]})
    assert (captured.inputs.names, captured.inputs.positions) == (("ids",), ("ids", "mask", "scale"))
    assert captured.inputs.defaults == {"scale": 1.0}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.tanh()
        return -x


def test_a_branch_by_values_is_kept_or_refused_and_never_answered_wrongly():
    x = torch.rand(3, 4)
    module = torch.jit.script(Branching())
    try:
        captured = capture("branching", 3, module, {"x": x}, {"x": -x})
    except ModelError as error:
        assert "torch's converter" in str(error) and "recording a call" in str(error) and "factory" in str(error)
    else:
        assert torch.allclose(flat_module(captured.program)(-x)[0], x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - 1


@pytest.mark.parametrize(("kind", "words"), [(Counting, "attribute calls"), (Averaging, "buffer mean")])
def test_state_that_changes_is_refused_and_the_callers_module_keeps_its_own(kind, words):
    module = torch.jit.script(kind())
    before = module.calls if kind is Counting else module.mean.clone()
    with pytest.raises(ModelError, match=f"(?s)state between calls.*{words}|{words}"):
        capture("stateful", 3, module, {"x": torch.rand(3, 4)}, {"x": torch.rand(3, 4)})
    assert module.calls == before if kind is Counting else torch.equal(module.mean, before)


def test_a_module_in_train_mode_is_captured_in_eval_mode_and_stays_as_it_was():
    module = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    assert module.training
    captured = capture("trained", 3, module, torch.rand(3, 4))
    assert any("train mode" in note for note in captured.notes)
    assert module.training
    with pytest.raises(ModelError, match="draws random numbers"):
        traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.rand(3, 4), check_trace=False)
        capture("trained", 3, traced, torch.rand(3, 4))


def test_methods_besides_forward_are_named():
    class More(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

        @torch.jit.export
        def encode(self, x: Tensor) -> Tensor:
            return x

    captured = capture("more", 2, torch.jit.script(More().eval()), torch.rand(2, 2))
    assert captured.notes == ("a plan answers forward alone; the model also has encode",)


class Forms(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        return x + 1, None, [x, x * 2]


def test_the_answer_has_the_form_of_the_scripted_modules_own():
    x = torch.rand(2, 2)
    captured = capture("forms", 2, torch.jit.script(Forms()), x)
    first, nothing, rest = captured.form.unflatten(flat_module(captured.program)(x))
    assert torch.equal(first, x + 1) and nothing is None
    assert isinstance(rest, list) and torch.equal(rest[1], 2 * x)


def test_each_way_alone_gives_the_same_answers():
    model, inputs = model_files.convolutional()
    module = model_files.compiled(model, inputs, "traced")
    expected = model_files.answers("convolutional", inputs)[0]
    for find in torchscript_graph.WAYS.values():
        with torch.no_grad():
            answer = find(module, inputs)(*inputs.values())
        assert torch.allclose(answer[0] if isinstance(answer, tuple | list) else answer, expected, atol=1e-5)
