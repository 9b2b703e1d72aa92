"""Programs whose output has narrow encodings, closed pipes, full disks or no descriptor at all."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.standard_streams import READABLE, readable
from tests.cli.conftest import fill

ROOT = Path(__file__).parents[1]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
NARROW = [ASCII, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:strict"}]

PROGRAM = """
import sys
from autotune import standard_streams

def program():
    print("a × b → c … − ≥ 3 µs │ 日本")
    print("warning: 2 – 3 ‖y‖", file=sys.stderr)
    return int(sys.argv[1])

standard_streams.run(program)
""".encode("ascii", "backslashreplace").decode()
WORK = """
import sys
from pathlib import Path
from autotune import standard_streams

def program():
    for number in range(5000):
        print(number, flush=True)
        print(number, file=sys.stderr, flush=True)
    Path(sys.argv[2]).write_text("done")
    if sys.argv[1] == "text":
        sys.exit("it failed")
    return int(sys.argv[1])

standard_streams.run(program)
"""


def shell(command, *arguments, **variables):
    """Run a bash command in which ``$0`` is Python; the arguments follow."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    call = ["bash", "-c", command, sys.executable, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, env=environment, cwd=ROOT, timeout=120, check=False)


@pytest.mark.parametrize("variables", NARROW)
def test_text_is_readable_in_every_encoding(variables):
    ran = shell('"$0" -c "$1" 3', PROGRAM, **variables)
    assert ran.returncode == 3
    if variables["PYTHONIOENCODING"] == "latin-1":
        assert ran.stdout.decode("latin-1") == "a × b -> c ... - >= 3 µs | \\u65e5\\u672c\n"
    else:
        assert ran.stdout.decode("ascii") == "a x b -> c ... - >= 3 us | \\u65e5\\u672c\n"
    assert ran.stderr.decode("ascii") == "warning: 2 - 3 ||y||\n"


def test_utf_8_stays_as_it_is_and_lone_surrogates_are_escaped():
    assert readable("× → 日本 é", "utf-8") == "× → 日本 é"
    assert readable("file\udcff", "utf-8") == "file\\udcff"
    assert readable("é", "ascii") == "\\xe9"


def test_whatever_the_package_writes_has_a_readable_form():
    """A character that a string of ours holds and the table lacks would come out as a backslash escape."""
    lacking = {}
    for top in ("autotune", "backends", "search_spaces"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lacking |= {each: path.name for each in node.value if ord(each) > 127 and each not in READABLE}
    assert set(lacking) <= {"é"}, lacking  # in the names of authors
    assert all(form.isascii() and form for form in READABLE.values())


READERS = ["| true", "| head -1", "2>&1 | head -1", "2> >(true) | true", ">&-", "2>&-", ">&- 2>&- <&-"]


@pytest.mark.parametrize(("answer", "code"), [("0", 0), ("1", 1), ("2", 2), ("text", 1)])
@pytest.mark.parametrize("reader", READERS)
def test_the_work_goes_on_whoever_reads_it(tmp_path, answer, code, reader):
    ran = shell(f'set -o pipefail; "$0" -c "$1" "$2" "$3" {reader}', WORK, answer, tmp_path / "result")
    assert (ran.returncode, (tmp_path / "result").read_text()) == (code, "done")
    assert b"Traceback" not in ran.stderr and b"Exception ignored" not in ran.stderr and b"Broken" not in ran.stderr


def test_a_full_disk_loses_the_answer_and_says_so(tmp_path):
    ran = shell('"$0" -c "$1" 0 "$2" > /dev/full 2> "$3"', WORK, tmp_path / "result", tmp_path / "errors")
    errors = (tmp_path / "errors").read_text()
    assert ran.returncode == 1 and (tmp_path / "result").exists()
    assert errors.count("error: ") == 1 and "No space left on device" in errors and "Traceback" not in errors
    assert shell('"$0" -c "$1" 2 "$2" > /dev/full', WORK, tmp_path / "result").returncode == 2
    lost_messages = shell('"$0" -c "$1" 0 "$2" 2> /dev/full', WORK, tmp_path / "result")
    assert lost_messages.returncode == 0 and lost_messages.stdout.splitlines()[-1] == b"4999"


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    program = """
import os, sys
from autotune import standard_streams

def program():
    with open(sys.argv[1], "w") as file:
        os.write(1, b"of a library")
        file.write("ours")

standard_streams.run(program)
"""
    assert shell('"$0" -c "$1" "$2" >&- 2>&-', program, tmp_path / "file").returncode == 0
    assert (tmp_path / "file").read_text() == "ours"


COMMANDS = ["--help", "tune --help", "plan list", "plan show resnet50", "compare resnet50", "trials resnet50 --failed"]


@pytest.mark.parametrize("command", [*COMMANDS, "plan show nothing", "tune", "doctor --quick"])
def test_commands_print_ascii_where_nothing_else_is_known(tmp_path, command):
    database = fill(tmp_path / "data" / "autotune.db")
    ran = shell(f'"$0" -m autotune.cli.main {command} 2>&1', **ASCII, AUTOTUNE_DB=database)
    assert ran.returncode == (2 if command in ("plan show nothing", "tune") else 0), ran.stdout
    text = ran.stdout.decode("ascii")
    assert "Traceback" not in text and "\\u" not in text and "\\x" not in text and text.strip()


def test_a_name_that_the_locale_cannot_hold_is_one_error(tmp_path):
    database = fill(tmp_path / "autotune.db")
    ran = shell('"$0" -m autotune.cli.main plan show $(printf "r\\xc3\\xa9s")', **ASCII, AUTOTUNE_DB=database)
    assert b"cannot be encoded" in ran.stderr
    assert ran.returncode == 2 and ran.stderr.startswith(b"error: ") and b"Traceback" not in ran.stderr


PROGRAMS = [
    *("report.table", "report.agreement", "report.kernel_search", "measure.selftest", "reliability"),
    *("programs.random_models", "programs.identity_pairs", "kernel_recording", "kernel_comparison"),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_too_are_readable(program):
    ran = shell(f'"$0" -m autotune.{program} --help 2>&1', **ASCII)
    assert b"Traceback" not in ran.stdout
    ran.stdout.decode("ascii")


def test_json_is_whole_or_the_command_fails(tmp_path):
    database = fill(tmp_path / "data" / "autotune.db")
    listed = shell('"$0" -m autotune.cli.main plan list --json', **ASCII, AUTOTUNE_DB=database)
    assert len(json.loads(listed.stdout)) == 3
    assert shell('"$0" -m autotune.cli.main plan list --json > /dev/full', AUTOTUNE_DB=database).returncode == 1
