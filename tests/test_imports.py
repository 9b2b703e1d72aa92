"""Imports run one way, and what must be quick loads nothing heavy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import autotune

ROOT = Path(__file__).parents[1]
RECORDS = [
    *("canonical", "workload", "kernel_problem", "kernel_trial", "device", "configuration"),
    *("objective", "identity", "trial", "plan"),
]

# What each layer may import of autotune, itself included. The members of a brace do not import one another.
MIDDLE = ["model", "runtime", "measure", "accuracy", "search", "database"]
BASE = ["errors", "environment", "scratch", "standard_streams", *RECORDS, "space", "backend", "kernel", "registry"]
STUDY = [
    *(
        "study",
        "study_context",
        "study_search",
        "study_finals",
        "study_request",
        "study_space",
        "study_identity",
        "study_memory",
        "study_sweep",
        "study_lease",
        "study_reproduce",
    ),
    *("kernel_tuning", "kernel_report"),
    *("kernel_recording", "kernel_recording_builds", "kernel_recording_compile", "kernel_recording_times"),
    *("kernel_comparison_shapes", "kernel_comparison_finals", "kernel_comparison_steps"),
    *("kernel_supply", "study_rebuild", "study_evidence"),
    *("study_kernels", "study_bench", "study_file", "study_values", "yaml_document"),
]
ABOVE = {
    **{name: ["errors", *RECORDS] for name in ("errors", *RECORDS, "environment", "scratch")},
    "standard_streams": [],
    "space": ["errors", "environment", *RECORDS, "space"],
    "kernel": ["errors", "environment", *RECORDS, "space", "kernel"],
    "backend": ["errors", "environment", *RECORDS, "space", "kernel", "backend"],
    "registry": BASE,
    **{name: [*BASE, name] for name in MIDDLE},
    "execute": [*BASE, *MIDDLE, "execute"],
    **{name: [*BASE, *MIDDLE, "execute", *STUDY] for name in STUDY},
    "deploy": [*BASE, *MIDDLE, "execute", *STUDY, "deploy"],
    "report": [*BASE, *MIDDLE, "execute", *STUDY, "report"],
    "kernel_comparison": [*BASE, *MIDDLE, "execute", *STUDY, "report", "kernel_comparison"],
    "reliability": [*BASE, *MIDDLE, "execute", *STUDY, "deploy", "report", "testing", "reliability"],
    "programs": [*BASE, *MIDDLE, "execute", *STUDY, "deploy", "report", "programs"],
    "cli": [*BASE, *MIDDLE, "execute", *STUDY, "deploy", "report", "cli"],
    "backends": [*BASE, "model", "runtime", "backends", "search_spaces"],
    "search_spaces": [*BASE, "model", "runtime", "search_spaces"],
}
# The package itself offers the public interface, and what ships for tests may use everything.
FREE = {"__init__", "testing"}


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
    for part, path in modules():
        seen.add(part)
        if part in FREE:
            continue
        assert part in ABOVE, f"{path}: say in this test which layer {part} belongs to"
        for name in imported(path):
            parts = [part for part in name.split(".") if part != "__version__"]
            if parts[0] == "autotune" and len(parts) > 1 and parts[1] not in ABOVE[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)
    assert {"cli", "database", "backends", "execute"} <= seen


def test_the_core_and_top_level_names_know_no_backend():
    for part, path in modules():
        for name in imported(path):
            assert name.split(".")[0] not in ("backends", "search_spaces", "studies", "tests"), f"{path} imports {name}"
            if part not in ("backends", "search_spaces", "__init__"):
                assert not name.startswith(("autotune.backends", "autotune.search_spaces")), f"{path} imports {name}"


def test_only_reports_and_commands_print():
    for part, path in modules():
        if part in ("cli", "report", "testing"):
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
        store.promote(records.plan())
    code = (
        "from autotune.cli.main import app\n"
        "try: app(['plan', *sys.argv[1:]])\n"
        "except SystemExit as end: assert end.code == 0, end.code"
    )
    loaded = loaded_by(code, *arguments, "--db", database)
    assert "autotune.database.reading" in loaded
    assert not loaded & {"sqlalchemy", "torch", "optuna", "alembic", "scipy", "numpy", "onnxruntime", "openvino"}
