"""The version, with the commit of a git checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import __version__
from autotune.cli.version import version_text

ROOT = Path(__file__).parents[2]
GIT = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit and a tag."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"], ["tag", "-a", "v9", "-m", "a tag"]):
        subprocess.run([*GIT, *command], cwd=tmp_path, check=True)
    return tmp_path


def commit_of(folder):
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_checkout_names_its_commit_and_not_its_tag(checkout):
    assert version_text(checkout) == f"{__version__} ({commit_of(checkout)})"


def test_a_changed_file_is_dirty_and_an_untracked_one_is_not(checkout):
    (checkout / "other").write_text("untracked")
    assert version_text(checkout) == f"{__version__} ({commit_of(checkout)})"
    (checkout / "file").write_text("two")
    assert version_text(checkout) == f"{__version__} ({commit_of(checkout)}+dirty)"


def test_a_folder_inside_a_checkout_of_something_else_names_no_commit(checkout):
    site = checkout / "site-packages"
    site.mkdir()
    assert version_text(site) == __version__


def test_a_checkout_without_git_or_without_a_commit_has_its_version(checkout, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    subprocess.run(["git", "init", "-q", str(empty)], check=True)
    assert version_text(empty) == __version__
    monkeypatch.setenv("PATH", str(empty))
    assert version_text(checkout) == __version__


def test_the_command_prints_the_commit_of_this_checkout():
    printed = _printed(ROOT)
    expected = (
        rf"{re.escape(__version__)} \([0-9a-f]+(\+dirty)?\)\n" if (ROOT / ".git").exists() else f"{__version__}\n"
    )
    assert re.fullmatch(expected, printed)


def test_the_command_prints_the_version_alone_from_an_installed_package(tmp_path):
    shutil.copytree(ROOT / "autotune", tmp_path / "autotune", ignore=shutil.ignore_patterns("__pycache__"))
    assert _printed(tmp_path) == f"{__version__}\n"


def _printed(folder):
    """What the command prints if the package is imported from a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    code = "import sys; from autotune.cli.main import app; sys.argv = ['autotune', '--version']; app()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout
