"""``__all__`` of the modules that users and plug-ins import: each name is there, and nothing public is missing."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autotune

ROOT = Path(__file__).parents[1]
FOR_PLUGINS = ("autotune.backend", "autotune.testing")


def modules_with_all():
    for top in ("autotune", "backends", "search_spaces"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] in (("autotune", "backends"), ("autotune", "search_spaces")):
                continue  # the links of an editable checkout
            if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
                name = ".".join(parts if top == "autotune" else ("autotune", *parts))
                yield name.removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_all()))
def test_each_name_is_there_once(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_the_package_offers_what_type_checkers_see_and_nothing_else():
    tree = ast.parse((ROOT / "autotune" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*typed, "__version__"} == set(autotune.__all__)
    assert dir(autotune) == sorted(autotune.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        autotune.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", FOR_PLUGINS)
def test_nothing_that_a_plugin_may_need_is_missing(name):
    module = importlib.import_module(name)
    if not hasattr(module, "__all__"):
        pytest.skip(f"{name} has no __all__")
    public = {
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and getattr(value, "__module__", "").startswith("autotune.")
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert public <= set(module.__all__)


def test_every_name_imports_in_a_fresh_process():
    script = "".join(f"from autotune import {name}\n" for name in autotune.__all__)
    ran = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:autotune", "-c", script], cwd=ROOT)
    assert ran.returncode == 0


def test_documents_name_only_what_the_package_offers():
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    called = {
        (document.name, name)
        for document in documents
        for name in re.findall(r"\bautotune\.([a-z_]\w*)\(", document.read_text())
    }
    assert called, "no document calls autotune"
    assert {(document, name) for document, name in called if name not in autotune.__all__} == set()
