"""How commands end after errors and signals, and which stream gets their text."""

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import autotune
from autotune import __version__
from autotune.cli.main import Commands
from autotune.cli.output import nothing_on_stdout
from autotune.errors import DeviceError, StudyInterruptedError


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DeviceError("device x is not there", found="cpu"), 2, "error: device x is not there\n  found: cpu\n"),
        (StudyInterruptedError("stopped", run="the same command"), 1, "run next: the same command"),
        (KeyboardInterrupt(), 130, "the same command continues it"),
    ],
)
def test_errors_become_one_message_and_an_exit_code(error, code, says):
    app = typer.Typer(cls=Commands)

    @app.callback()
    def options():
        pass

    @app.command()
    def fail():
        raise error

    result = CliRunner().invoke(app, ["fail"])
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""


def test_what_libraries_print_does_not_reach_standard_output(capfd):
    with nothing_on_stdout():
        print("from Python")
        os.write(1, b"from C\n")
        os.system("echo from a child")
    print("the document")
    captured = capfd.readouterr()
    assert captured.out == "the document\n"
    assert {"from Python", "from C", "from a child"} <= set(captured.err.splitlines())


def test_a_reader_that_has_seen_enough_is_no_error(database):
    command = f"{sys.executable} -m autotune.cli.main plan show resnet50 --db {database} --json"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_version(autotune):
    assert autotune("--version").stdout.split()[0] == __version__


def test_the_package_runs_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "autotune", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(autotune.__version__)
