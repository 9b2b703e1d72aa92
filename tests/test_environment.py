"""Environment variables are read by name in one place, and what it says of them is so."""

import ast
from pathlib import Path

import pytest

from autotune import environment

ROOT = Path(__file__).parents[1]

WATCHERS = {"autotune/environment.py", "autotune/model/reading.py"}
"""Who may: the one place, and who watches a model's own code."""


def readings(path: Path) -> list[int]:
    """The lines on which a module reads an environment variable by its name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv", "environ.get"):
            found.append(node.lineno)
        of = node.value if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) else None
        if of is not None and ast.unparse(of) in ("os.environ", "environ"):
            found.append(node.lineno)
    return found


def test_variables_are_read_by_name_in_one_place():
    for top in ("autotune", "backends", "search_spaces"):
        for path in (ROOT / top).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if name not in WATCHERS and not name.startswith(("autotune/backends", "autotune/search_spaces")):
                assert not readings(path), f"{name} reads variables on lines {readings(path)}"
    assert readings(ROOT / "autotune" / "environment.py")


@pytest.mark.parametrize(("name", "read"), [("NVCC", environment.nvcc), ("CXX", environment.compiler)])
def test_a_compiler_that_a_variable_names_comes_before_that_on_the_path(monkeypatch, tmp_path, name, read):
    there = tmp_path / {"NVCC": "nvcc", "CXX": "g++"}[name]
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(name, " ")
    assert read() == str(there)
    other = tmp_path / "another"
    there.rename(other)
    assert read() is None
    monkeypatch.setenv(name, str(other))
    assert read() == str(other)
