"""What pages say agrees with the code: links, commands, programs, extras, names and messages."""

import ast
import importlib.util
import re
import shlex

import pytest
import typer.main

from autotune.cli.main import app
from autotune.errors import StudyFileError
from autotune.model.inputs import DISTRIBUTIONS, DTYPES
from autotune.records.objective import OBJECTIVES
from autotune.study.file import SearchEntry, StudyFile, parse_study
from tests.docs.pages import PAGES, ROOT, blocks, prose, shell_commands

DOCS = ROOT / "docs"
SHELL = ("source", "curl")
PROGRAMS = {page: shell_commands(page) for page in PAGES}
COMMANDS = sorted({(page.name, command) for page, commands in PROGRAMS.items() for command in commands})


def extras():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def test_pages_are_there():
    assert len(PAGES) > 15
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page)):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        if not block.startswith("--8<--"):
            compile(block, page.name, "exec")


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_shell_lines_name_programs_that_exist(page, command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), command
    elif words[0] == "autotune":
        check_autotune(words[1:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), command
    elif words[0] == "python":
        script = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in script for word in words[2:] if word.startswith("--")), command
    elif words[:2] == ["pip", "install"]:
        check_pip(words[2:])
    else:
        assert words[0] in SHELL, f"{page}: say in this test how to check {command!r}"


def check_autotune(words):
    """Parse a command line as the command would, without running it."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0].startswith("--"):
            assert words[0] in command.get_params(None)[0].opts or words[0] == "--version"
            return
        command, words = command.commands[words[0]], words[1:]
    command.make_context("autotune", list(words))


def check_pip(words):
    for word in words:
        for names in re.findall(r"\[([\w,]+)\]", word):
            assert set(names.split(",")) <= extras(), word


def test_no_page_and_no_message_installs_the_package_from_pypi():
    sources = [path for top in ("autotune", "backends", "search_spaces") for path in (ROOT / top).rglob("*.py")]
    wrong = [
        path for path in [*PAGES, *sources] if re.search(r"pip install[^\n`]*autotune-inference", path.read_text())
    ]
    assert not wrong


def test_an_unknown_command_and_an_unknown_option_are_seen():
    with pytest.raises(KeyError):
        check_autotune(["tunes", "study.yaml"])
    with pytest.raises(Exception, match="No such option"):
        check_autotune(["plan", "show", "resnet50", "--batches", "1"])


def test_the_study_file_of_the_page_is_one():
    (text,) = blocks(DOCS / "study-files.md", "yaml")
    study = parse_study(text, ROOT / "studies" / "resnet50" / "study.yaml")
    assert study.batch == (1, 32)
    with pytest.raises(StudyFileError):
        parse_study(text.replace("serve_as", "server"), ROOT / "studies" / "resnet50" / "study.yaml")


def test_the_page_of_study_files_has_every_key_distribution_and_type():
    page = prose(DOCS / "study-files.md")
    for name in [*StudyFile.model_fields, *SearchEntry.model_fields, *DISTRIBUTIONS, *DTYPES]:
        assert f"`{name}`" in page, name


def test_the_page_of_objectives_has_every_objective():
    page = prose(DOCS / "objectives.md")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)[: len(OBJECTIVES)] == list(OBJECTIVES)


def texts_in_the_code():
    """Every text of the code; the values that an f-string puts in are written as an ellipsis."""
    for top in ("autotune", "backends", "search_spaces"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code():
    page = (DOCS / "troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    fragments = [fragment for row in rows for fragment in re.findall(r"`([^`]+)`", row)]
    code = "\n".join(texts_in_the_code())
    assert len(fragments) > 50
    missing = [fragment for fragment in fragments if fragment not in code]
    assert not missing, f"messages that no code has: {missing}"
