"""The frame that all programs share: list, arguments, document, table, exit code."""

import importlib
import json
from pathlib import Path

import pytest

from autotune.errors import DeviceError, WorkError
from autotune.programs import __main__ as programs
from autotune.programs import frame
from autotune.programs.catalogue import PROGRAMS
from autotune.programs.check_result import CheckResult
from autotune.programs.checks import names_among, run_check
from autotune.programs.document import Document, Row, rows_of

FOLDER = Path(programs.__file__).parent
PLACE = {"device": "cpu", "device_name": "a processor"}
GOOD = CheckResult(check="good", figure="1", limit="2", passed=True, raw={"list": [1, 2]})
BAD = CheckResult(check="bad", figure="3", limit="2", passed=False)


def run(body, *arguments):
    parser = frame.parser_of("selftest")
    frame.add_seed(parser)
    return frame.run_program("selftest", parser, body, arguments)


def test_the_list_names_every_program_with_one_line(capsys):
    assert programs.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PROGRAMS)
    for (name, description), line in zip(PROGRAMS.items(), lines, strict=True):
        assert line.split()[:3] == ["python", "-m", f"autotune.programs.{name}"] and line.endswith(description)


def test_every_module_that_runs_is_in_the_list():
    modules = {path.stem for path in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    folders = {path.parent.name for path in FOLDER.glob("*/__main__.py")}
    assert (modules - {"__main__"}) | folders == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_describes_itself_as_the_list_does(name, capsys):
    package = f"autotune.programs.{name}"
    module = importlib.import_module(f"{package}.main" if (FOLDER / name).is_dir() else package)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: python -m {package}" in text and PROGRAMS[name] in text


@pytest.mark.parametrize(("result", "code"), [(GOOD, 0), (BAD, 1)])
def test_the_exit_code_and_the_file_say_whether_all_passed(result, code, tmp_path, capsys):
    file = tmp_path / "document.json"
    rows = rows_of([GOOD, result])
    assert run(lambda run: run.report(rows, PLACE, seed=run.options.seed), "--seed", "7", "--json", str(file)) == code
    document = json.loads(file.read_text())
    assert list(document) == [
        "schema_version", "command", "quick", "seed", "environment", "seconds", "passed", "checks",
    ]  # fmt: skip
    assert document["command"] == f"python -m autotune.programs.selftest --seed 7 --json {file}"
    assert document["seed"] == 7 and document["passed"] is (code == 0)
    assert [row["check"] for row in document["checks"]] == ["good", result.check]
    shown = capsys.readouterr().out
    assert "cpu: a processor" in shown and ("FAIL" in shown) is (code == 1)


def test_markdown_is_printed_alone_and_failures_go_to_standard_error(capsys):
    assert run(lambda run: run.report(rows_of([GOOD, BAD]), PLACE, text="| a |\n")) == 1
    shown = capsys.readouterr()
    assert shown.out == "| a |\n" and shown.err == "FAIL bad: 3; limit: 2\n"


@pytest.mark.parametrize(("error", "code"), [(DeviceError("no such device"), 2), (WorkError("broke"), 1)])
def test_an_error_of_autotune_ends_with_its_message_and_exit_code(error, code, capsys):
    def body(run):
        raise error

    assert run(body) == code
    shown = capsys.readouterr()
    assert str(error) in shown.err and not shown.out


def test_a_secret_is_hidden_in_the_command(tmp_path):
    file = tmp_path / "document.json"

    def body(run):
        run.hide(str(tmp_path), "/somewhere else")
        return run.report(rows_of([GOOD]), PLACE)

    assert run(body, "--json", str(file)) == 0
    assert json.loads(file.read_text())["command"].endswith("--json '/somewhere else/document.json'")


def test_a_check_that_breaks_off_has_failed_and_says_why():
    def broken(subject):
        raise ZeroDivisionError("on purpose")

    (row,) = run_check("broken", broken, None)
    assert not row.result.passed and row.result.figure == "broke off: ZeroDivisionError: on purpose"


def test_a_check_without_a_result_has_failed():
    (row,) = run_check("empty", lambda subject: [], None)
    assert not row.result.passed


def test_the_seconds_of_a_check_stand_in_its_first_row():
    first, second = run_check("two", lambda subject: [GOOD, BAD], None)
    assert first.seconds is not None and second.seconds is None and first.group == second.group == "two"


def test_checks_run_in_their_own_order_whatever_is_requested_first():
    assert names_among(("faults", "known", "aa"), "check", "aa, faults") == ("faults", "aa")


def test_the_file_has_a_line_for_each_check_and_the_entries_of_the_program():
    rows = (Row(group="a", result=GOOD), Row(group="b", result=BAD, seconds=1.0))
    document = Document(command="x", rows=rows, environment=PLACE, seconds=1.234, more={"models": 3})
    text = document.as_json()
    assert json.loads(text) == document.as_dict() and document.as_dict()["models"] == 3
    assert sum(line.lstrip().startswith('{"group"') for line in text.splitlines()) == 2
