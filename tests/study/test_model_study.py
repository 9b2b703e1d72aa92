"""The study of a model file without a study file: the text of its inputs, its name, and what is asked for."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import ModelError, RequestError
from autotune.model.inputs import DISTRIBUTIONS, DTYPES, InputSpec
from autotune.study.model_study import is_model_file, parse_input, read_model_study
from autotune.study.values import NAME
from tests import model_files

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=5)


@given(
    st.from_regex(r"[A-Za-z_]\w{0,8}", fullmatch=True) | st.none(),
    SIZES,
    st.sampled_from(DTYPES) | st.none(),
    st.sampled_from(DISTRIBUTIONS) | st.none(),
)
def test_what_is_written_is_what_is_read(name, sizes, dtype, distribution):
    shape = "x".join(map(str, sizes))
    parts = [shape, dtype or "float32", distribution] if distribution else [shape, dtype] if dtype else [shape]
    entry = parse_input(f"{name}={':'.join(parts)}" if name else ":".join(parts))
    assert (entry.name, entry.shape, entry.distribution) == (name, tuple(sizes), distribution)
    assert entry.dtype == (dtype or ("float32" if distribution else None))


@given(st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_a_range_is_read_as_bounds(low, high):
    entry = parse_input(f"ids=2x3:int64:{low}..{high}")
    assert (entry.low, entry.high, entry.dtype) == (low, high, "int64")


@given(st.text(max_size=30) | st.text(alphabet="x=:.0123456789-int64floatmask", max_size=40))
def test_any_text_is_read_or_refused_in_one_error(text):
    try:
        entry = parse_input(text)
    except RequestError as error:
        assert str(error).startswith(f"cannot read --inputs {text!r}")
    else:
        assert entry.shape and all(size > 0 for size in entry.shape)
        assert re.search("x".join(f"0*{size}" for size in entry.shape), text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"the shape ''"),
        ("1x3x", "the shape '1x3x'"),
        ("1x0", "the shape '1x0'"),
        ("1,3,224", "the shape"),
        ("x y=1x3", "the name 'x y'"),
        ("1x3:float23", r"the dtype 'float23'.*expected: one of float32"),
        ("1x3:int64:0-5", r"the values '0-5'.*LOW\.\.HIGH, or one of normal"),
        ("1x3:int64:0..5:6", "4 parts"),
    ],
)
def test_a_wrong_form(text, words):
    with pytest.raises(RequestError, match=f"(?s){words}"):
        parse_input(text)


def written(tmp_path, name, kind, as_name=None):
    path, _ = model_files.write(name, kind, tmp_path)
    return path.rename(tmp_path / as_name) if as_name else path


def test_a_whole_study(tmp_path):
    study = read_model_study(written(tmp_path, "encoder", "scripted"), ["2x6:int64:0..50", "mask=2x6"])
    assert (study.name, study.batch) == ("encoder-scripted", (2,))
    assert study.factory == f"file:{tmp_path.resolve()}/encoder-scripted.pt"
    assert study.input_specs() == (
        InputSpec(name="ids", shape=("batch", 6), dtype="int64", low=0, high=50),
        InputSpec(name="mask", shape=("batch", 6), dtype="float32"),
    )


def test_a_program_says_its_inputs_and_integers_need_a_range(tmp_path):
    study = read_model_study(written(tmp_path, "convolutional", "exported"))
    assert study.batch == (2,)
    assert study.input_specs() == (InputSpec(name="image", shape=("batch", 3, 12, 12)),)
    path = written(tmp_path, "encoder", "exported")
    with pytest.raises(RequestError, match=r"(?s)no range of ids.*run next: .*--inputs ids=2x6:int64:LOW"):
        read_model_study(path)
    ids, mask = read_model_study(path, ["ids=2x6:int64:0..50"]).input_specs()
    assert (ids.high, mask.shape, mask.drawn_from) == (50, ("batch", 6), "normal")


def test_an_integer_input_that_is_named_a_mask_is_one(tmp_path):
    path = written(tmp_path, "encoder", "traced")
    _, mask = read_model_study(path, ["2x6:int64:0..50", "mask=2x6:int64"]).input_specs()
    assert mask.drawn_from == "mask"
    _, mask = read_model_study(path, ["2x6:int64:0..50", "mask=2x6:int64:ones"]).input_specs()
    assert mask.drawn_from == "ones"


def test_what_is_missing_or_unfitting_is_named(tmp_path):
    path = written(tmp_path, "encoder", "traced")
    with pytest.raises(RequestError, match=r"(?s)no shape of ids, no shape of mask.*ids=SHAPE --inputs mask=SHAPE"):
        read_model_study(path)
    with pytest.raises(RequestError, match=r"(?s)found: no shape of mask"):
        read_model_study(path, ["2x6:int64:0..50"])
    with pytest.raises(RequestError, match=r"(?s)found: idds.*expected: the inputs of its forward: ids, mask"):
        read_model_study(path, ["idds=2x6"])
    with pytest.raises(RequestError, match="found: ids twice"):
        read_model_study(path, ["2x6", "ids=2x6"])
    with pytest.raises(RequestError, match="3 inputs"):
        read_model_study(path, ["2x6", "2x6", "2x6"])


@pytest.mark.parametrize(
    ("file", "name"),
    [("resnet50.pt", "resnet50"), ("My Model v2.1.pt", "my-model-v2.1"), ("a__b--c.pt", "a-b-c"), ("É_x.pt", "x")],
)
def test_the_name_of_the_study_is_that_of_the_file(tmp_path, file, name):
    study = read_model_study(written(tmp_path, "convolutional", "traced", file), ["1x3x12x12"])
    assert study.name == name and NAME.fullmatch(name)


def test_a_file_whose_name_has_no_letter(tmp_path):
    with pytest.raises(ModelError, match="no name"):
        read_model_study(written(tmp_path, "convolutional", "traced", "___.pt"), ["1x3x12x12"])


def test_what_counts_as_a_model_file(tmp_path):
    assert is_model_file(tmp_path / "model.PT2") and not is_model_file(tmp_path / "study.yaml")
    with pytest.raises(ModelError, match="no file"):
        read_model_study(tmp_path / "absent.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="state_dict"):
        read_model_study(tmp_path / "weights.pth")
