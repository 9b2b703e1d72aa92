"""Imports run one way, and what must be quick loads nothing heavy."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import autotune

ROOT = Path(__file__).parents[1]

# What each room may import of autotune beside itself: the rooms of the floors below it. The rooms of one floor do not
# import one another.
FLOORS = [
    ["errors", "environment", "progress", "renamed", "scratch", "standard_streams"],
    ["records"],
    ["kernel"],
    ["backend"],
    ["registry"],
    ["model", "runtime", "measure", "accuracy", "search", "database"],
    ["execute"],
    ["testing"],
    ["kernels"],
    ["study"],
    ["comparison"],
    ["deploy", "report"],
    ["programs", "cli"],
]
BASE = [room for floor in FLOORS[:5] for room in floor]
BESIDE = {
    "search_spaces": [*BASE, "model", "runtime"],
    "backends": [*BASE, "model", "runtime", "search_spaces"],
}
"""The two folders that the core reaches only by name."""
ABOVE = {
    **{room: [below for lower in FLOORS[:at] for below in lower] for at, floor in enumerate(FLOORS) for room in floor},
    **BESIDE,
}
# The package itself offers the public interface.
FREE = {"__init__", "__main__"}
MOST_FLAT = 16


def modules():
    for top in ("autotune", "backends", "search_spaces"):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT)
            if inside.parts[:2] in (("autotune", "backends"), ("autotune", "search_spaces")):
                continue  # the links of an editable checkout
            yield top if top != "autotune" else inside.with_suffix("").parts[1], path


def imported(path):
    """Every module that a file names in an import, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ([f"{node.module}.{alias.name}" for alias in node.names] if node.module else [])


def test_imports_run_one_way():
    wrong, seen = [], set()
    for room, path in modules():
        seen.add(room)
        if room in FREE:
            continue
        assert room in ABOVE, f"{path}: say in this test on which floor {room} is"
        for name in imported(path):
            parts = [part for part in name.split(".") if part != "__version__"]
            if parts[0] == "autotune" and len(parts) > 1 and parts[1] not in (room, *ABOVE[room]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)
    assert seen - FREE == set(ABOVE), "this test names rooms that are not there"


def test_no_module_imports_itself_through_others():
    """Not even for type checkers alone, and not inside of functions."""
    named = {}
    for room, path in modules():
        inside = path.relative_to(ROOT).with_suffix("").parts
        parts = inside if inside[0] == "autotune" else ("autotune", *inside)
        named[".".join(parts).removesuffix(".__init__")] = (room, path)
    graph = {name: _modules_named(path, named) - {name} for name, (_, path) in named.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def _modules_named(path, named):
    """The modules that a file imports; packages that only hold others are left out."""
    found = set()
    for name in imported(path):
        while name and name not in named:
            name = name.rpartition(".")[0]
        if name and (named[name][1].name != "__init__.py" or named[name][1].stat().st_size):
            found.add(name)
    return found - {"autotune"}


def test_few_modules_lie_flat():
    flat = sorted(path.name for path in (ROOT / "autotune").glob("*.py"))
    assert len(flat) <= MOST_FLAT, f"a module belongs into a folder: {flat}"


def test_the_core_and_top_level_names_know_no_backend():
    for part, path in modules():
        for name in imported(path):
            assert name.split(".")[0] not in ("backends", "search_spaces", "studies", "tests"), f"{path} imports {name}"
            if part not in ("backends", "search_spaces", "__init__"):
                assert not name.startswith(("autotune.backends", "autotune.search_spaces")), f"{path} imports {name}"


def test_only_reports_and_commands_print():
    for part, path in modules():
        if part in ("cli", "report", "programs", "testing"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not prints, f"{path} prints on lines {prints}"


def test_every_package_is_in_the_distribution():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings = project["tool"]["setuptools"]
    assert project["project"]["version"] == autotune.__version__
    there = set()
    for top in ("autotune", "backends", "search_spaces"):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.relative_to(ROOT).parent.parts
            if parts[:2] not in (("autotune", "backends"), ("autotune", "search_spaces")):
                there.add(".".join(parts if top == "autotune" else ("autotune", *parts)))
    assert set(settings["packages"]) == there
    assert settings["package-dir"]["autotune.backends"] == "backends"
    assert settings["package-dir"]["autotune.search_spaces"] == "search_spaces"


def loaded_by(code, *arguments):
    """The modules in sys.modules after some code ran in a fresh interpreter."""
    script = f"import sys, json\n{code}\nprint('MODULES' + json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.rpartition("MODULES")[2]))


def test_import_autotune_loads_nothing_heavy():
    loaded = loaded_by("import autotune")
    assert "autotune" in loaded
    heavy = [
        "torch",
        "optuna",
        "sqlalchemy",
        "alembic",
        "pydantic",
        "onnxruntime",
        "openvino",
        "scipy",
        "rich",
        "typer",
        "numpy",
    ]
    assert not loaded & set(heavy)


def test_the_command_line_loads_nothing_heavy():
    loaded = loaded_by("import autotune.cli.main")
    assert not loaded & {"torch", "optuna", "sqlalchemy", "alembic", "pydantic", "onnxruntime", "scipy", "numpy"}


@pytest.mark.parametrize("arguments", [["show", "resnet50"], ["show", "resnet50", "--json"], ["list"]])
def test_plan_look_up_loads_neither_torch_nor_alembic(tmp_path, arguments):
    from autotune.database.store import Store
    from tests.database import records

    database = str(tmp_path / "plans.db")
    with Store.open(database) as store:
        store.plans.promote(records.plan())
    code = (
        "from autotune.cli.main import app\n"
        "try: app(['plan', *sys.argv[1:]])\n"
        "except SystemExit as end: assert end.code == 0, end.code"
    )
    loaded = loaded_by(code, *arguments, "--db", database)
    assert "autotune.database.reading" in loaded
    assert not loaded & {"sqlalchemy", "torch", "optuna", "alembic", "scipy", "numpy", "onnxruntime", "openvino"}
