import hashlib
import itertools
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from autotune.errors import ModelError
from autotune.model.inputs import DISTRIBUTIONS, InputSpec, generate, perturbed, photographs

ROLES = ("example", "timing", "heldout")


def spec(name="x", shape=("batch", 4), **given):
    return InputSpec(name=name, shape=shape, **given)


def table(path, rows, width=4, key="x", dtype=numpy.int64):
    numpy.savez(path, **{key: numpy.arange(rows * width, dtype=dtype).reshape(rows, width)})
    return str(path)


def rows_of(sets, width=4):
    return [int(row[0]) // width for one in sets for row in one["x"]]


@pytest.mark.parametrize("role", ROLES)
def test_same_seed_and_role_give_the_same_values_whatever_else_was_drawn(role):
    specs = [spec(), spec("ids", dtype="int64", high=100)]
    first = generate(specs, 3, 7, 5, role)
    torch.manual_seed(99)
    again = generate(specs[::-1], 3, 7, 8, role)
    for one, other in zip(first, again[:5], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_seeds_roles_inputs_and_indices_have_streams_of_their_own():
    specs = [spec("a"), spec("b")]
    drawn = [
        one[name].numpy().tobytes()
        for seed, role in itertools.product((0, 1), ROLES)
        for one in generate(specs, 2, seed, 8, role)
        for name in one
    ]
    assert len(set(drawn)) == len(drawn) == 2 * 3 * 8 * 2


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(["int64", "int32", "int16", "int8", "uint8"]),
    low=st.integers(0, 100),
    width=st.integers(1, 27),
    seed=st.integers(0, 2**31 - 1),
)
def test_integers_stay_in_their_range(dtype, low, width, seed):
    one = generate([spec(dtype=dtype, shape=("batch", 300), low=low, high=low + width)], 2, seed, 1, "timing")[0]["x"]
    assert one.dtype == getattr(torch, dtype)
    assert low <= int(one.min()) and int(one.max()) < low + width
    if width <= 10:
        assert len(one.unique()) == width


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_floating_distributions(dtype):
    normal, uniform = (
        generate([spec(dtype=dtype, shape=("batch", 64, 64), **given)], 2, 0, 1, "example")[0]["x"].double()
        for given in ({}, {"distribution": "uniform", "low": -2, "high": 6})
    )
    assert abs(float(normal.mean())) < 0.1 and 0.9 < float(normal.std()) < 1.1
    assert -2 <= float(uniform.min()) < -1.9 and 5.9 < float(uniform.max()) <= 6
    assert 1.9 < float(uniform.mean()) < 2.1


def test_mask_has_ones_then_zeros_of_varied_lengths():
    masks = generate([spec(shape=("batch", 64), dtype="int64", distribution="mask")], 50, 0, 1, "heldout")[0]["x"]
    assert bool((masks.diff(dim=1) <= 0).all())
    lengths = masks.sum(dim=1)
    assert int(lengths.min()) >= 16 and int(lengths.max()) <= 64 and len(lengths.unique()) > 15
    given_range = spec(shape=("batch", 64), dtype="bool", distribution="mask", low=3, high=3)
    assert generate([given_range], 4, 0, 1, "timing")[0]["x"].sum(dim=1).tolist() == [3, 3, 3, 3]


def test_constants_and_defaults():
    specs = [spec("a", distribution="ones"), spec("b", distribution="zeros", dtype="int32"), spec("c", dtype="bool")]
    one = generate(specs, 2, 0, 1, "timing")[0]
    assert bool((one["a"] == 1).all()) and not one["b"].any() and bool(one["c"].all())
    assert [s.drawn_from for s in (spec(), spec(dtype="int8", high=3), spec(dtype="bool"))] == [
        "normal", "integers", "ones",
    ]  # fmt: skip


def test_batch_may_stand_anywhere_or_nowhere():
    one = generate(
        [spec(shape=(2, "batch", 5)), spec("fixed", shape=(7,)), spec("scalar", shape=())], 3, 0, 1, "timing"
    )[0]
    assert [tuple(tensor.shape) for tensor in one.values()] == [(2, 3, 5), (7,), ()]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_photographs_are_smooth_and_differ_in_brightness_contrast_and_colour(channels):
    images = photographs(24, channels, 64, 48, torch.Generator().manual_seed(0)).double()
    assert float(images.min()) > -2.21 and float(images.max()) < 2.71
    steps = images.diff(dim=3).square().mean(dim=(1, 2, 3)) / images.var(dim=(1, 2, 3))
    assert float(steps.max()) < 0.25  # independent pixels would give 2
    assert float(images.mean(dim=(1, 2, 3)).std()) > 0.3
    contrast = images.std(dim=(1, 2, 3))
    assert float(contrast.max() / contrast.min()) > 1.5
    if channels > 1:
        assert float(images.mean(dim=(2, 3)).std(dim=1).mean()) > 0.1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_file_rows_are_distinct_and_held_out_rows_are_used_for_nothing_else(tmp_path, suffix):
    path = table(tmp_path / "rows.npz", 128)
    if suffix == ".safetensors":
        path = str(tmp_path / "rows.safetensors")
        save_file({"x": torch.arange(512).reshape(128, 4)}, path)
    source = spec(dtype="int64", file=path)
    drawn = {role: rows_of(generate([source], 8, 1, 8, role)) for role in ROLES}
    assert len(set(drawn["heldout"])) == 64
    assert not set(drawn["heldout"]) & (set(drawn["timing"]) | set(drawn["example"]))
    assert len(set(drawn["timing"][:8])) == 8
    assert drawn["heldout"] != rows_of(generate([source], 8, 2, 8, "heldout"))
    assert drawn["timing"] == rows_of(generate([source], 8, 1, 8, "timing"))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 90), batch=st.integers(1, 20), count=st.integers(1, 12), seed=st.integers(0, 100))
def test_rows_are_enough_and_apart_or_it_says_so(tmp_path_factory, rows, batch, count, seed):
    source = spec(dtype="int64", file=table(tmp_path_factory.mktemp("rows") / "rows.npz", rows))
    apart = rows // 2 >= max(batch, 8)
    try:
        held_out = generate([source], batch, seed, count, "heldout")
        timing = generate([source], batch, seed, count, "timing")
    except ModelError as error:
        assert f"{rows} rows" in str(error)
        assert rows < max(batch, count) or (apart and rows // 2 < max(batch, count))
        return
    for one in (*held_out, *timing):
        assert len(set(rows_of([one]))) == batch
    assert len({one["x"].numpy().tobytes() for one in held_out}) == count or batch > 1
    if apart:
        assert not set(rows_of(held_out)) & set(rows_of(timing))


def test_inputs_of_one_file_take_the_same_rows_and_fixed_shapes_take_one(tmp_path):
    path = tmp_path / "pair.npz"
    numpy.savez(path, ids=numpy.arange(40).reshape(40, 1), twice=2 * numpy.arange(40).reshape(40, 1))
    pair = [spec("ids", shape=("batch", 1), dtype="int64", file=str(path)),
            spec("double", shape=("batch", 1), dtype="int64", file=str(path), key="twice"),
            spec("one", shape=(1,), dtype="int64", file=str(path), key="ids")]  # fmt: skip
    for one in generate(pair, 5, 0, 3, "timing"):
        assert torch.equal(one["double"], 2 * one["ids"])
        assert torch.equal(one["one"], one["ids"][0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": "absent.npz"}, "no such file"),
        ({"file": "rows.npz", "key": "y"}, "found: entries x"),
        ({"file": "rows.npz", "dtype": "float32"}, "found: 'x' in .*int64 of shape"),
        ({"file": "rows.npz", "shape": ("batch", 5)}, r"expected: int64 of shape \['rows', 5\]"),
        ({"file": "broken.npz"}, "is read from"),
        ({"file": "broken.safetensors"}, "is read from"),
        ({"file": "text.npz"}, "is read from"),
        ({"file": "objects.npz"}, "holds Python objects"),
        ({"file": "cut.npz"}, "is read from"),
        ({"file": "flipped.npz"}, "expected: a whole file"),
        ({"file": "swapped.npz"}, "byte order"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, given, message):
    table(tmp_path / "rows.npz", 64)
    for name in ("broken.npz", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not an archive")
    (tmp_path / "text.npz").write_text("text")
    numpy.savez(tmp_path / "objects.npz", x=numpy.array([{"a": 1}], dtype=object))
    numpy.savez(tmp_path / "swapped.npz", x=numpy.zeros((64, 4), dtype=">i8"))
    whole = Path(table(tmp_path / "whole.npz", 4096)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "flipped.npz").write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    source = spec(**{"dtype": "int64", **given, "file": str(tmp_path / given["file"])})
    with pytest.raises(ModelError, match=message):
        generate([source], 2, 0, 1, "timing")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"dtype": "float8"}, "dtype 'float8' is not one of"),
        ({"shape": ("batch", 0)}, "positive integer or 'batch', found 0"),
        ({"shape": ("batch", True)}, "found True"),
        ({"shape": ("rows", 3)}, "found 'rows'"),
        ({"distribution": "gauss"}, "is not one of normal"),
        ({"dtype": "int64"}, "integers need 'high'"),
        ({"dtype": "int8", "high": 129}, "does not fit int8"),
        ({"dtype": "uint8", "low": -1, "high": 5}, "does not fit uint8"),
        ({"dtype": "int64", "low": 5, "high": 5}, "must be below"),
        ({"dtype": "int64", "high": 2.5}, "whole numbers"),
        ({"dtype": "int64", "distribution": "normal"}, "needs a floating dtype"),
        ({"low": 1.0}, "do not apply to distribution normal"),
        ({"distribution": "uniform", "high": float("inf")}, "finite"),
        ({"distribution": "photograph", "shape": ("batch", 5, 8, 8)}, "1 to 4 channels"),
        ({"distribution": "mask", "low": 0}, "1 to 4 ones"),
        ({"distribution": "mask", "shape": (3, "batch")}, "last dimension of fixed size"),
        ({"key": "y"}, "there is no file"),
        ({"file": "rows.csv"}, "must be .npz or .safetensors"),
        ({"file": "rows.npz", "low": 1}, "do not apply to a file"),
        ({"file": "rows.npz", "shape": (3, "batch")}, "must come first"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        InputSpec(**{"name": "x", "shape": ("batch", 4), **given})


def test_the_smallest_photograph_is_finite():
    images = photographs(2, 1, 1, 1, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(images).all()) and float(images[0]) != float(images[1])


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="batch and count"):
        generate([spec()], 0, 0, 1, "timing")
    with pytest.raises(ValueError, match="role 'test'"):
        generate([spec()], 1, 0, 1, "test")
    with pytest.raises(ModelError, match="a name of its own"):
        generate([spec(), spec()], 1, 0, 1, "timing")


def test_every_distribution_can_be_drawn():
    fitting = {"photograph": {"shape": ("batch", 3, 8, 8)}, "integers": {"dtype": "int64", "high": 4}}
    for kind in DISTRIBUTIONS:
        one = generate([spec(distribution=kind, **fitting.get(kind, {}))], 2, 0, 1, "example")[0]["x"]
        assert one.shape[0] == 2 and bool(torch.isfinite(one.double()).all())


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 12), seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_perturbed_floats_vary_within_the_given_range(batch, seed, dtype):
    given = torch.randn(batch, 3, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    variants = perturbed({"x": given}, 8, seed)
    assert len({variant["x"].numpy().tobytes() for variant in variants}) == 8
    for variant in variants:
        x = variant["x"]
        assert (x.shape, x.dtype) == (given.shape, given.dtype)
        assert float(given.min()) <= float(x.min()) and float(x.max()) <= float(given.max())
        assert not torch.equal(x, given)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 12), seed=st.integers(0, 1000), dtype=st.sampled_from([torch.int64, torch.uint8]))
def test_perturbed_integers_stay_in_range_and_in_that_of_their_column_where_it_is_known(batch, seed, dtype):
    most = torch.tensor([3, 200, 17])
    share = torch.rand(batch, 3, generator=torch.Generator().manual_seed(seed))
    given = (share * (most + 1)).floor().to(dtype)
    if bool((given <= 1).all()) or int(given.min()) == int(given.max()):
        return
    for variant in perturbed({"x": given}, 3, seed):
        x = variant["x"]
        assert (x.shape, x.dtype) == (given.shape, given.dtype)
        assert int(given.min()) <= int(x.min()) and int(x.max()) <= int(given.max())
        if batch >= 8:
            assert bool((x <= given.amax(0)).all()) and bool((x >= given.amin(0)).all())


def test_perturbation_keeps_masks_flags_and_what_is_not_finite():
    kept = {
        "mask": torch.tensor([[1, 1, 0]]), "float_mask": torch.tensor([[1.0, 0.0]]),
        "flag": torch.tensor([True, False]),
        "types": torch.zeros(2, 3, dtype=torch.int64), "additive": torch.tensor([[0.0, float("-inf"), 3.0]]),
        "complex": torch.tensor([1 + 2j, 3j]), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    for variant in perturbed(kept, 2, 0):
        for name, tensor in kept.items():
            assert torch.equal(variant[name], tensor)
            assert variant[name].data_ptr() != tensor.data_ptr() or not tensor.numel()


def test_known_values_do_not_move_between_versions():
    """The signal error of a stored trial can be checked again only while its seed gives the same inputs."""
    one = generate([spec(dtype="int64", shape=("batch", 8), high=1000)], 2, 0, 1, "heldout")[0]["x"]
    assert (
        hashlib.sha256(one.numpy().tobytes()).hexdigest()
        == "ff1bf8eab800bc9b6f15e9c1fdd73f8cb5791f3e705b5c5f8f2d5129f9bf6880"
    )
