"""Putting a kernel where somebody may have loaded the one that lies there."""

from pathlib import Path

from autotune.backends.native.kernel_kind import copy_atomically


def test_who_has_opened_the_old_file_keeps_it(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "placed"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with target.open("rb") as opened:
        copy_atomically(source, target)
        assert opened.read() == b"old" and target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "placed"]
