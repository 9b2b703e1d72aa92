from dataclasses import dataclass

import pytest
import torch

from autotune.errors import ModelError
from autotune.model import capture, fingerprint, source
from autotune.model.precision import flat_module, in_precision
from autotune.model.schema import InputSchema, bind


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
    answer = captured.form.unflatten(flat)
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


class Optional(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: object = None, flip: bool = False, *, z: object = None) -> torch.Tensor:
        x = x * y if y is not None else x
        return x + z if z is not None else x


def test_a_call_means_what_it_means_to_the_model():
    schema = InputSchema.of(Optional().forward, ("x", "z"))
    assert schema.flatten((1,), {"z": 2}) == schema.flatten((1, None), {"z": 2, "flip": False}) == (1, 2)
    assert schema.flatten((1, None, False), {"z": 2}) == (1, 2)
    for args, kwargs, word in (
        ((1, 2), {}, "y, which the plan was made without"),
        ((1, None, True), {"z": 2}, "flip, which the plan was made without"),
        ((1, None, False, 2), {}, "4 positional"),
    ):
        with pytest.raises(ModelError, match=word):
            schema.flatten(args, kwargs)


class Twice(torch.nn.Module):
    """Positional-only parameters, the second of them not needed."""

    def forward(self, left: torch.Tensor, right: torch.Tensor, /, *, scale: torch.Tensor) -> torch.Tensor:
        return (2 * left - right) * scale


def test_inputs_stand_in_the_order_of_the_forward_however_they_are_given():
    sets = {name: torch.rand(3) for name in ("scale", "right", "left")}
    one = capture.capture("twice", 3, Twice(), sets)
    other = capture.capture("twice", 3, Twice(), {name: sets[name] for name in ("left", "right", "scale")})
    assert [spec.name for spec in one.workload.inputs] == ["left", "right", "scale"]
    assert one.workload == other.workload
    (answer,) = flat_module(one.program)(sets["left"], sets["right"], sets["scale"])
    torch.testing.assert_close(answer, Twice()(sets["left"], sets["right"], scale=sets["scale"]))


class Kept(torch.nn.Module):
    """Looks at a value while it is captured, and keeps the branch that it took."""

    def __init__(self) -> None:
        super().__init__()
        self.table = [1.0, 2.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            bright = bool(torch.compiler.is_exporting()) or float(x.detach().numpy().mean()) > 0
        return x * self.table[bright]


def test_a_graph_that_does_not_answer_like_the_model_is_refused():
    dark, bright = {"x": -torch.rand(4) - 1}, {"x": torch.rand(4) + 1}
    assert capture.capture("kept", 4, Kept(), bright, bright).workload.name == "kept"
    with pytest.raises(ModelError, match=r"does not answer like the model\n  found: output output differs"):
        capture.capture("kept", 4, Kept(), bright, dark)


class Pieces(torch.nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.what == "mask":
            return {"kept": x[x > 0]}
        if self.what == "unique":
            return {"kept": torch.unique(x.round())}
        return {"kept": x.nonzero()}


@pytest.mark.parametrize("what", ["mask", "unique", "nonzero"])
@pytest.mark.parametrize("same_size", [True, False])
def test_an_output_whose_shape_depends_on_values_is_refused_by_its_name(what, same_size):
    example = {"x": torch.linspace(-1, 2, 12)}
    other = example if same_size else {"x": torch.tensor([0.0] * 5 + [-1.0] * 2 + [3.0] * 5)}
    with pytest.raises(ModelError, match=r"shape of output kept .*depends on the values|depends on the values"):
        capture.capture("pieces", 12, Pieces(what), example, other)


@pytest.mark.parametrize(
    ("strange", "word"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.rand(3, 3), 0.1, 0, torch.qint8), "quantised"),
        (torch.rand(3, 3, dtype=torch.complex64).conj(), "conjugated"),
        (torch.rand(3, 3, device="meta"), "meta"),
        (torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]), "nested"),
    ],
)
def test_tensors_that_not_every_backend_takes_are_refused_wherever_they_stand(strange, word):
    class Give(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"given": strange, "x": x}

    class Hold(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", strange)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    for module, inputs, name in (
        (torch.nn.Identity(), {"input": strange}, "input 'input'"),
        (Give(), {"x": torch.rand(3)}, "output given"),
        (Hold(), {"x": torch.rand(3)}, "buffer held"),
    ):
        with pytest.raises(ModelError, match=f"{name}.*\n.*{word}"):
            capture.capture("strange", 3, module, inputs)


def test_lazy_layers_are_initialised_by_a_first_call_and_stay_so():
    module = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.ReLU(), torch.nn.LazyLinear(2))
    x = {"input": torch.rand(3, 5)}
    captured = capture.capture("lazy", 3, module, x)
    assert any("lazy" in note for note in captured.notes) and module.training
    torch.testing.assert_close(flat_module(captured.program)(x["input"])[0], module(x["input"]))


class Rotary(torch.nn.Module):
    """Fills a table at its first call, as many do for positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(8), persistent=False)
        self.filled = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.filled:
            self.table.copy_(torch.arange(8.0))
            self.filled = True
        return x + self.table


def test_a_cache_that_the_first_call_fills_is_no_state():
    module = Rotary()
    captured = capture.capture("rotary", 2, module, {"x": torch.rand(2, 8)}, {"x": torch.rand(2, 8)})
    assert not module.filled and module.table.abs().sum() == 0
    x = torch.rand(2, 8)
    torch.testing.assert_close(flat_module(captured.program)(x)[0], Rotary()(x))


class FirstCall(torch.nn.Module):
    """Takes its scale from whatever it sees first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(()))
        self.ready = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            self.scale.copy_(x.std())
            self.ready = True
        return x * self.scale


def test_a_first_call_that_learns_from_its_inputs_has_to_come_before():
    module, x = FirstCall(), {"x": torch.rand(2, 8)}
    with pytest.raises(ModelError, match=r"first call of first sets buffer scale"):
        capture.capture("first", 2, module, x, {"x": torch.rand(2, 8) * 5})
    assert not module.ready
    module(**x)
    assert capture.capture("first", 2, module, x, {"x": torch.rand(2, 8) * 5}).workload.name == "first"


class Minus(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - y


class MinusTurned(torch.nn.Module):
    """The same graph, in which a caller's ``y`` takes the place that ``x`` has in the other."""

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y - x


class MinusWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.weight - y


def test_the_names_of_inputs_are_part_of_the_form_because_the_graph_does_not_name_them():
    given = {"x": torch.rand(3), "y": torch.rand(3)}
    first, turned = (capture.capture("minus", 3, module, given) for module in (Minus(), MinusTurned()))
    weight = capture.capture("minus", 3, MinusWeight(), {"y": given["y"]})
    assert first.workload.structure == turned.workload.structure == weight.workload.structure
    assert (first.form.inputs, turned.form.inputs, weight.form.inputs) == (("x", "y"), ("y", "x"), ("y",))
    assert len({one.form.digest for one in (first, turned, weight)}) == 3
    again = capture.capture("minus", 3, Minus(), dict(reversed(given.items())))
    assert again.form.digest == first.form.digest
