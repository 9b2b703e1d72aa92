"""An entry that is larger than it says, or grew too far, is not read."""

import zipfile

import numpy
import pytest

from autotune.model import npz_file
from autotune.model.npz_file import Declared, declared


def entry(path, shape, content, *, dtype="<f4", name="x.npy", compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "a", compression) as archive, archive.open(name, "w") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        numpy.lib.format.write_array_header_1_0(file, header)
        file.write(content)
    return path


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
@pytest.mark.parametrize("array", [numpy.arange(12.0).reshape(4, 3), numpy.zeros((0, 3), bool), numpy.int8(3)])
def test_what_numpy_writes_is_told_and_read(tmp_path, save, array):
    save(tmp_path / "a.npz", x=array, y=numpy.ones(2))
    told = Declared(shape=numpy.shape(array), dtype=numpy.asarray(array).dtype.name)
    assert declared(tmp_path / "a.npz", "x") == (["x", "y"], told)
    assert declared(tmp_path / "a.npz", "z") == (["x", "y"], None)
    assert numpy.array_equal(npz_file.read(tmp_path / "a.npz", "x"), array)


@pytest.mark.parametrize(
    ("shape", "size"), [((4, 3), 47), ((4, 3), 49), ((4, 3), 2**20), ((2**40, 2**20), 48), ((-4, 3), 48), ((), 8)]
)
def test_an_entry_is_as_large_as_its_shape_needs(tmp_path, shape, size):
    with pytest.raises(ValueError, match=r"x\.npy holds \d+ bytes, and its shape .* needs"):
        declared(entry(tmp_path / "a.npz", shape, bytes(size)), "x")


def test_what_grows_too_far_is_not_read_and_what_is_stored_is(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_file, "LEAST_BYTES", 2**16)
    rows = 2**14
    bomb = entry(tmp_path / "bomb.npz", (rows, 4), bytes(rows * 16))
    with pytest.raises(ValueError, match=r"x\.npy grows from \d+ to 262\d+ bytes"):
        declared(bomb, "x")
    stored = entry(tmp_path / "stored.npz", (rows, 4), bytes(rows * 16), compression=zipfile.ZIP_STORED)
    assert declared(stored, "x")[1] == Declared(shape=(rows, 4), dtype="float32")
    noise = entry(tmp_path / "noise.npz", (rows, 4), numpy.random.default_rng(0).bytes(rows * 16))
    assert declared(noise, "x")[1] is not None


def test_a_header_without_end_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(10**6))
    with pytest.raises(ValueError, match="EOF"):
        declared(tmp_path / "a.npz", "x")


def test_what_is_looked_at_is_what_is_read(tmp_path):
    path = entry(tmp_path / "a.npz", (2,), bytes(8))
    entry(path, (100,), bytes(8), name="x")
    assert declared(path, "x")[1] == Declared(shape=(2,), dtype="float32") and npz_file.read(path, "x").shape == (2,)
