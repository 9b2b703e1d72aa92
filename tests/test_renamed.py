"""Old names of modules offer the objects of the new ones, warn, and run as programs."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.renamed import NEW_NAMES

ROOT = Path(__file__).parents[1]
PROGRAMS = {old: new for old, new in NEW_NAMES.items() if new.startswith("autotune.programs.")}


@pytest.mark.parametrize("old_name", sorted(set(NEW_NAMES) - set(PROGRAMS)))
def test_an_old_name_offers_the_same_objects(old_name):
    sys.modules.pop(old_name, None)
    with pytest.warns(DeprecationWarning, match=NEW_NAMES[old_name]) as caught:
        old = importlib.import_module(old_name)
    new = importlib.import_module(NEW_NAMES[old_name])
    public = {name for name in vars(new) if not name.startswith("_")}
    assert public and all(getattr(old, name) is getattr(new, name) for name in public)
    assert all(warning.category is DeprecationWarning for warning in caught)


def test_the_warning_names_the_line_that_imports(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import os\nfrom autotune.configuration import Configuration\n")
    sys.modules.pop("autotune.configuration", None)
    with pytest.warns(DeprecationWarning) as caught:
        runpy.run_path(str(plugin))
    assert [(warning.filename, warning.lineno) for warning in caught] == [(str(plugin), 2)]


@pytest.mark.parametrize("old_name", sorted(PROGRAMS))
def test_an_old_command_runs_the_program(old_name):
    ran, new = (
        subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True, cwd=ROOT)
        for name in (old_name, NEW_NAMES[old_name])
    )
    assert (ran.returncode, ran.stdout) == (new.returncode, new.stdout)
    assert "usage:" in ran.stdout + ran.stderr
    assert f"{old_name} is now {NEW_NAMES[old_name]}" in ran.stderr, "whoever runs the old command sees it"


def test_every_new_name_is_there_and_no_old_one():
    for old_name, new_name in NEW_NAMES.items():
        assert importlib.util.find_spec(new_name) is not None
        parts = old_name.split(".")
        assert not ROOT.joinpath(*parts).with_suffix(".py").exists() and not ROOT.joinpath(*parts).is_dir()
