"""Answers taken apart and put together: the very same form, whatever it is made of."""

import collections
import dataclasses
import json
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import modeling_outputs
from transformers.tokenization_utils_base import BatchEncoding

from autotune.errors import ModelError
from autotune.model.form import Form, Output, flatten
from tests.thoroughness import examples

ONE = torch.ones(2)
TWO = torch.zeros(3)


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None
    hidden: tuple[torch.Tensor, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Derived:
    values: torch.Tensor
    total: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.values.sum())


class Box(NamedTuple):
    corner: torch.Tensor
    size: torch.Tensor | None = None


class Attributes(dict[str, Any]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Picky(dict[str, Any]):
    def __init__(self, one: int, two: int, /) -> None:
        super().__init__(total=one + two)


def through_json(form: Form) -> Form:
    """As an artifact keeps it: plain data, sorted, and the classes at hand."""
    return Form(node=json.loads(json.dumps(form.node, sort_keys=True)), classes=form.classes)


ANSWERS = {
    "tensor": ONE,
    "none among parts": (ONE, None, [TWO, (None,)]),
    "order of keys": {"start": ONE, "end": TWO, "a": ONE},
    "types of keys": {1: ONE, "1": TWO, None: 3},
    "constants": {"n": 3, "yes": True, "name": "x", "f": 0.5, "inf": float("inf"), "dtype": torch.float16},
    "size": (ONE, torch.Size([1, 2])),
    "ordered": collections.OrderedDict(b=ONE, a=TWO),
    "named tuple": Box(ONE),
    "named return type": torch.max(torch.rand(2, 3), dim=1),
    "required None": Answer(ONE, None, (TWO,)),
    "field without init": Derived(ONE),
    "attribute dict": Attributes(b=ONE, a=TWO),
    "model output": modeling_outputs.SequenceClassifierOutput(logits=ONE, hidden_states=(TWO, ONE)),
    "batch encoding": BatchEncoding({"ids": ONE}),
    "nested": {"boxes": [Box(ONE, TWO), Box(TWO)], "answer": Answer(ONE, TWO)},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_comes_back_just_as_it_was(name):
    answer = ANSWERS[name]
    tensors, form = flatten(answer)
    again = through_json(form).unflatten(tensors)
    assert type(again) is type(answer)
    others, other_form = flatten(again)
    assert other_form.node == form.node and other_form.digest == form.digest
    assert all(one is other for one, other in zip(tensors, others, strict=True))
    if isinstance(answer, dict):
        assert list(again) == list(answer) and [type(key) for key in again] == [type(key) for key in answer]
    if isinstance(answer, Answer | modeling_outputs.SequenceClassifierOutput):
        assert again.logits is ONE and again.loss is None
    if isinstance(answer, Derived):
        assert again.values is ONE and again.total is answer.total


def test_nan_is_a_constant_like_any_other():
    tensors, form = flatten((ONE, float("nan")))
    again = through_json(form).unflatten(tensors)
    assert again[1] != again[1] and form.digest == flatten((TWO, float("nan")))[1].digest


@pytest.mark.parametrize(
    "answer", [{"a": object()}, (ONE, {1.5: ONE}), Picky(1, 2), {(1, 2): ONE}, [ONE, lambda: None]]
)
def test_what_cannot_be_put_together_again_is_refused_by_its_place(answer):
    with pytest.raises(ModelError, match=r"the model's answer") as refused:
        flatten(answer)
    assert "found" in str(refused.value)


def test_an_answer_that_contains_itself_is_refused():
    answer: list[Any] = [ONE]
    answer.append(answer)
    with pytest.raises(ModelError, match="contains itself"):
        flatten(answer)


def test_an_answer_whose_class_is_not_loaded_keeps_its_interface():
    tensors, form = flatten(Answer(ONE, None))
    stranger = Form(node={**form.node, "class": "no.such.module:Answer"})
    rebuilt = stranger.unflatten(tensors)
    assert isinstance(rebuilt, Output) and rebuilt.logits is rebuilt["logits"] is rebuilt[0] is ONE
    assert rebuilt.to_tuple() == (ONE, None, ())
    with pytest.raises(AttributeError, match="logits"):
        _ = rebuilt.missing


@pytest.mark.parametrize("path", ["os:system", "subprocess:Popen", "builtins:exec"])
def test_a_stored_class_name_never_causes_an_import_or_a_call(path):
    tensors, form = flatten(Answer(ONE, None))
    assert isinstance(Form(node={**form.node, "class": path}).unflatten(tensors), Output)


def test_names_are_paths_and_each_its_own():
    form = flatten({"a": ONE, "b": [TWO, (ONE, None)], "a.b": ONE, "c": {"x": TWO}, "c.x": ONE})[1]
    assert form.names == ("a", "b.0", "b.1.0", "a.b", "c.x", "c.x_")
    assert flatten(ONE)[1].names == ("output",)


def test_a_digest_tells_forms_apart_and_not_modules():
    digests = [flatten(answer)[1].digest for answer in ANSWERS.values()]
    assert len(set(digests)) == len(digests)
    assert flatten({"a": ONE, "b": TWO})[1].digest != flatten({"b": ONE, "a": TWO})[1].digest
    assert flatten({1: ONE})[1].digest != flatten({"1": ONE})[1].digest != flatten({True: ONE})[1].digest
    assert flatten((ONE, 1))[1].digest != flatten((ONE, True))[1].digest != flatten((ONE, 1.0))[1].digest
    form = flatten(Answer(ONE, None))[1]
    moved = {**form.node, "class": "autotune_factory_model:Answer"}
    assert Form(node=moved).digest == form.digest != Form(node={**form.node, "class": "here:Other"}).digest


PARTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text("ab", max_size=2), st.just("tensor")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text("abc", max_size=2), st.integers(0, 2)), inner, max_size=3),
        st.builds(lambda logits, loss: Answer(logits, loss), inner, inner),
        st.builds(lambda corner, size: Box(corner, size), inner, inner),
    ),
    max_leaves=8,
)  # fmt: skip


def with_tensors(value: Any) -> Any:
    if value == "tensor" and isinstance(value, str):
        return torch.ones(1)
    if isinstance(value, Box):
        return Box(*map(with_tensors, value))
    if isinstance(value, Answer):
        return Answer(with_tensors(value.logits), with_tensors(value.loss))
    if isinstance(value, list | tuple):
        return type(value)(map(with_tensors, value))
    if isinstance(value, dict):
        return {key: with_tensors(item) for key, item in value.items()}
    return value


@given(PARTS.map(with_tensors))
@settings(max_examples=examples(120), deadline=None)
def test_any_nesting_survives_the_trip(answer):
    tensors, form = flatten(answer)
    again = through_json(form).unflatten(tensors)
    others, other = flatten(again)
    assert other.node == form.node and all(one is two for one, two in zip(tensors, others, strict=True))
    assert len(set(form.names)) == len(tensors)
