from dataclasses import dataclass

import pytest
import torch

from autotune.errors import ModelError
from autotune.model import capture, fingerprint, source
from autotune.model.precision import flat_module, in_precision
from autotune.model.schema import InputSchema, Output, bind, flatten_output, output_names, unflatten_output


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    loss: torch.Tensor | None = None


class Net(torch.nn.Module):
    """Keyword-only and integer inputs, a buffer, a dataclass as an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 4)
        self.register_buffer("shift", torch.arange(8, dtype=torch.float32))

    def forward(self, ids: torch.Tensor, *, scale: torch.Tensor | None = None) -> Answer:
        hidden = self.norm(self.embed(ids)) + self.shift
        mask = torch.where(ids[..., None] > 25, 0.0, torch.finfo(torch.float32).min)
        weights = torch.softmax(mask.expand(-1, -1, 8).float(), dim=1)
        hidden = hidden * weights
        return Answer(logits=self.head(hidden) * (1.0 if scale is None else scale), hidden=(hidden,))


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"ids": torch.randint(0, 50, (batch, 6)), "scale": torch.rand(1) + 1}


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def captured(net):
    return capture.capture("net", 2, net, inputs())


def test_a_captured_graph_answers_like_the_module(net, captured):
    flat = flat_module(captured.program)(*inputs().values())
    answer = unflatten_output(captured.output_schema, flat)
    expected = net(**inputs())
    assert isinstance(answer, Answer) and answer.loss is None
    torch.testing.assert_close(answer.logits, expected.logits)
    torch.testing.assert_close(answer.hidden[0], expected.hidden[0])
    assert [spec.name for spec in captured.workload.outputs] == ["logits", "hidden.0"]
    assert [spec.dtype for spec in captured.workload.inputs] == ["int64", "float32"]


def test_structure_depends_on_graph_and_shapes_and_weights_on_values(net, captured):
    torch.manual_seed(5)
    other = capture.capture("other name", 2, Net().eval(), inputs()).workload
    assert other.structure == captured.workload.structure
    assert other.weights != captured.workload.weights
    assert capture.capture("net", 3, net, inputs(3)).workload.structure != captured.workload.structure
    assert capture.capture("net", 2, net, inputs()).workload == captured.workload


def test_both_fingerprints_survive_a_trip_through_a_file(captured, tmp_path):
    source.write(tmp_path, captured, inputs(), factory=None, seed=0)
    program = torch.export.load(str(tmp_path / source.PROGRAM))
    assert fingerprint.structure(program) == captured.workload.structure
    assert fingerprint.weights(program) == captured.workload.weights
    assert fingerprint.features(program) == captured.workload.features == ("gemm", "norm")


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 3e-2), ("fp16", 3e-3)])
def test_a_narrower_graph_keeps_its_border_and_stays_finite(captured, precision, limit):
    narrow = in_precision(captured.program, tuple(inputs().values()), precision)
    answers, expected = flat_module(narrow)(*inputs().values()), flat_module(captured.program)(*inputs().values())
    for mine, theirs in zip(answers, expected, strict=True):
        assert mine.dtype == theirs.dtype
        error = (mine - theirs).norm() / theirs.norm()
        assert 0 < error < limit
    dtypes = {str(tensor.dtype) for tensor in narrow.state_dict.values()}
    assert dtypes == {"torch.bfloat16" if precision == "bf16" else "torch.float16"}


def test_a_model_that_refuses_its_inputs_is_explained(net):
    with pytest.raises(ModelError, match=r"ids float32\[2, 6\]"):
        capture.capture("net", 2, net, {"ids": torch.rand(2, 6)})


def test_a_model_that_branches_on_values_is_explained():
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch\.export"):
        capture.capture("branches", 1, Branches(), {"x": torch.ones(1)})


def test_inputs_are_named_by_the_forward(net):
    given = inputs()
    assert set(bind(net.forward, given)) == {"ids", "scale"}
    assert set(bind(net.forward, (given["ids"],))) == {"ids"}
    assert set(bind(net.forward, given["ids"])) == {"ids"}
    for wrong in ({"tokens": given["ids"]}, (given["ids"], given["scale"]), {"ids": 3}):
        with pytest.raises(ModelError):
            bind(net.forward, wrong)


def test_calls_are_flattened_by_position_and_by_name():
    schema = InputSchema(names=("a", "b"))
    assert schema.flatten((1,), {"b": 2}) == schema.flatten((), {"b": 2, "a": 1}) == (1, 2)
    assert schema.flatten((1, 2), {"c": None}) == (1, 2)
    for args, kwargs in (((1,), {}), ((1, 2, 3), {}), ((1, 2), {"b": 3}), ((1, 2), {"c": 3})):
        with pytest.raises(ModelError, match="a, b"):
            schema.flatten(args, kwargs)


def test_an_answer_whose_class_is_not_loaded_keeps_its_interface():
    one = torch.ones(1)
    tensors, schema = flatten_output({"a": one, "b": [one, (one, None)], "c": 3})
    assert output_names(schema) == ("a", "b.0", "b.1.0")
    assert unflatten_output(schema, tensors) == {"a": one, "b": [one, (one, None)], "c": 3}
    tensors, schema = flatten_output(Answer(logits=one))
    rebuilt = unflatten_output({**schema, "class": "no.such.module:Answer"}, tensors)
    assert isinstance(rebuilt, Output) and rebuilt.logits is rebuilt["logits"] is rebuilt[0] is one
    with pytest.raises(AttributeError, match="logits"):
        _ = rebuilt.missing


def test_a_stored_class_name_never_causes_an_import_or_a_call():
    tensors, schema = flatten_output(Answer(logits=torch.ones(1)))
    assert isinstance(unflatten_output({**schema, "class": "os:system"}, tensors), Output)
