"""Files that are their original, and answer the calls that a plan was made for by another graph."""

import io
import json
import zipfile

import pytest
import torch

from autotune.backends.torchscript_packing import pack
from autotune.deploy.drop_in import Original, compose, origin_of, quiet
from autotune.errors import ModelError, RequestError

MARK = {"plan": "p", "original_sha256": "0" * 64}
OFF = 0.5
"""What the graphs of these tests add to the right answer, so that it is seen who has answered."""


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.head = torch.nn.Linear(4, 2)

    def forward(self, image):
        return self.head(self.layers(image).mean((2, 3)))

    @torch.jit.export
    def features(self, image):
        return self.layers(image).mean((2, 3))


class Nested(torch.nn.Module):
    def forward(self, first, second: torch.Tensor | None = None) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        right = first if second is None else first + second
        return {"a": right, "b c": first}, [right, first * 2]


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor, self.shift, self.mode = 2.0, torch.ones(3), "up"
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x) * self.factor + self.shift if self.mode == "up" else x


class Switched(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.on = Scale(), True

    def forward(self, x):
        return self.scale(x) if self.on else x

    @torch.jit.export
    def switch(self, on: bool):
        self.on = on


def flat_graph(module, inputs):
    """A frozen file's graph of a module: flat tensors out, each a little off."""

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module
            self.training = False

        def forward(self, *tensors):
            def leaves(answer):
                if isinstance(answer, torch.Tensor):
                    return [answer]
                return [
                    leaf for one in (answer.values() if isinstance(answer, dict) else answer) for leaf in leaves(one)
                ]

            return tuple(tensor + OFF for tensor in leaves(self.inner(*tensors)))

    with quiet(), torch.no_grad():
        traced = torch.jit.trace(Flat(), inputs, check_trace=False, strict=False)
        for part in traced.modules():
            part.training = False
        return torch.jit.freeze(traced.eval())


@pytest.fixture
def made(tmp_path):
    """Write a module as a file, and compose the new one for a call; returns both, loaded."""

    def make(module, example, *, flat=None, train=False, packed=False):
        with quiet():
            torch.jit.save(torch.jit.script(module.train(train)), tmp_path / "original.pt")
            graph = flat_graph(flat or module.eval(), tuple(example.values()))
            if packed:
                with torch.no_grad():
                    pack(graph, tuple(example.values()))
            torch.jit.save(graph, tmp_path / "tuned.ts")
            original = Original.read(tmp_path / "original.pt")
            content = compose(original, tmp_path / "tuned.ts", example, MARK, "cpu")
            return original.module, torch.jit.load(io.BytesIO(content)), content

    return make


@pytest.fixture(params=[False, True], ids=["frozen", "packed"])
def block(made, request):
    torch.manual_seed(0)
    return made(Block().eval(), {"image": torch.randn(2, 3, 8, 8)}, packed=request.param)


def test_the_calls_of_the_plan_are_answered_by_its_graph_and_all_others_by_the_originals_code(block):
    original, new, content = block
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(new(image), original(image) + OFF)
        torch.testing.assert_close(new(image=image), original(image) + OFF)
        for other in (image[:1], torch.randn(5, 3, 8, 8), torch.randn(2, 3, 9, 7)):
            assert torch.equal(new(other), original(other))
    assert origin_of(content) == MARK and origin_of(b"no archive") is None


def test_gradients_are_those_of_the_original(block):
    original, new, _ = block
    image = torch.randn(2, 3, 8, 8)
    for module in (original, new):
        module(image).sum().backward()
    gradients = [[parameter.grad for parameter in module.parameters()] for module in (original, new)]
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_it_has_the_state_and_the_methods_of_the_original_and_takes_new_weights(block):
    original, new, _ = block
    image, state = torch.randn(2, 3, 8, 8), original.state_dict()
    assert list(new.state_dict()) == list(state)
    assert all(torch.equal(new.state_dict()[name], state[name]) for name in state)
    assert torch.equal(new.features(image), original.features(image))
    other = {name: value * 1.5 if value.is_floating_point() else value for name, value in state.items()}
    for module in (original, new):
        module.load_state_dict(other)
    with torch.no_grad():
        assert torch.equal(new(image), original(image)), "the plan's graph has the old weights"


def test_a_single_weight_that_is_changed_in_place_counts(block):
    original, new, _ = block
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for module in (original, new):
            module.head.bias[0] += 1
        assert torch.equal(new(image), original(image))


def test_another_dtype_or_mode_is_the_originals(block):
    original, new, _ = block
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for module in (original, new):
            module.train()
        assert torch.equal(new(image[:1]), original(image[:1]))
        for module in (original, new):
            module.eval().double()
        assert torch.equal(new(image.double()), original(image.double()))


def test_inference_mode_is_answered_by_the_plan(block):
    original, new, _ = block
    image = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(new(image), original(image) + OFF)


def test_a_saved_copy_is_the_same(block):
    _, new, _ = block
    written, image = io.BytesIO(), torch.randn(2, 3, 8, 8)
    with quiet(), torch.no_grad():
        new(image)
        torch.jit.save(new, written)
        again = torch.jit.load(io.BytesIO(written.getvalue()))
        assert torch.equal(again(image), new(image))


@pytest.mark.parametrize("given", [("first",), ("first", "second")])
def test_answers_keep_their_form_and_arguments_that_were_left_out_their_meaning(made, given):
    tensors = {"first": torch.randn(3), "second": torch.randn(3)}
    example = {name: tensors[name] for name in given}
    original, new, _ = made(Nested().eval(), example)
    with torch.no_grad():
        (right, rows), (wrong, wrong_rows) = original(**example), new(**example)
        assert list(wrong) == ["a", "b c"] and type(wrong_rows) is list
        for first, second in (
            (right["a"], wrong["a"]),
            (right["b c"], wrong["b c"]),
            *zip(rows, wrong_rows, strict=True),
        ):
            torch.testing.assert_close(second, first + OFF)
        other = {name: tensors[name] for name in tensors if name not in given or given == ("first",)}
        if "first" in other:
            assert torch.equal(new(**other)[1][1], original(**other)[1][1])


def test_a_module_with_another_type_of_argument_is_refused(made):
    class Times(torch.nn.Module):
        def forward(self, x, n: int):
            return x * n

    with pytest.raises(ModelError, match="no file can take the place") as refused:
        made(Times().eval(), {"x": torch.ones(2)}, flat=torch.nn.Identity())
    assert refused.value.found == "argument n is int"


def test_a_file_that_was_composed_already_or_is_none_is_refused(block, tmp_path):
    _, _, content = block
    (tmp_path / "new.pt").write_bytes(content)
    with pytest.raises(RequestError, match="optimised already") as refused:
        Original.read(tmp_path / "new.pt")
    assert refused.value.run.startswith(f"autotune restore {tmp_path / 'new.pt'}")
    (tmp_path / "text.pt").write_text(json.dumps({}))
    with pytest.raises(ModelError, match=r"text\.pt cannot be taken"):
        Original.read(tmp_path / "text.pt")
    torch.export.save(torch.export.export(Block().eval(), (torch.randn(2, 3, 8, 8),)), tmp_path / "block.pt2")
    with pytest.raises(ModelError, match="no file can take the place") as other:
        Original.read(tmp_path / "block.pt2")
    assert other.value.found == "a file of kind exported program"
    with pytest.raises(RequestError, match="no model file"):
        Original.read(tmp_path / "missing.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.switch(False),
        lambda module: setattr(module.scale, "factor", 3.0),
        lambda module: setattr(module.scale, "mode", "down"),
        lambda module: module.scale.shift.mul_(4.0),
    ],
)
def test_values_that_its_user_sets_count(made, change):
    x = torch.randn(3)
    original, new, _ = made(Switched().eval(), {"x": x})
    with torch.no_grad():
        torch.testing.assert_close(new(x), original(x) + OFF)
        for module in (original, new):
            change(module)
        assert torch.equal(new(x), original(x))


def test_a_part_in_train_mode_counts(made):
    x = torch.randn(3)
    _, new, _ = made(Switched().eval(), {"x": x})
    with torch.no_grad():
        new.scale.drop.train()
        answers = [new(x) for _ in range(20)]
    assert any(not torch.equal(answer, answers[0]) for answer in answers), "it drops at random"


def test_a_file_that_was_saved_in_train_mode_is_answered_by_the_plan_in_eval_mode_alone(made):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 8)
    original, new, _ = made(Block().eval(), {"image": image}, train=True)
    with torch.no_grad():
        assert new.training and not torch.equal(new(image), original(image)), "batch norms use the batch"
        torch.testing.assert_close(new.eval()(image), original(image) + OFF)


def test_a_file_that_was_exported_is_no_file_that_took_anothers_place(block, tmp_path):
    with zipfile.ZipFile(tmp_path / "original.pt", "a") as archive:
        archive.writestr("original/extra/autotune.json", json.dumps({"plan": "p", "name": "n"}))
    assert origin_of((tmp_path / "original.pt").read_bytes()) is None
    assert Original.read(tmp_path / "original.pt").module is not None


class Unlike(torch.nn.Module):
    """Answers in a form, or has a value, that no file can dispatch on."""

    def __init__(self):
        super().__init__()
        self.limit = float("nan")

    def forward(self, x):
        return x * self.limit


class Counted(torch.nn.Module):
    def forward(self, x) -> tuple[torch.Tensor, int]:
        return x, 1


@pytest.mark.parametrize(
    ("module", "found"), [(Unlike(), "an attribute limit of type float"), (Counted(), "an answer of type Tuple")]
)
def test_what_no_file_can_dispatch_on_is_refused_as_the_file_is_read(module, found, tmp_path):
    with quiet():
        torch.jit.save(torch.jit.script(module.eval()), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="no file can take the place") as refused:
        Original.read(tmp_path / "model.pt")
    assert refused.value.found.startswith(found)
