"""Whose files and whose code: the user's, Python's, an installed package's, autotune's."""

import json
import threading

import pytest
import torch

import autotune.backends.eager
from autotune.model.own_files import Initiator, described, initiator, is_installed, is_of_autotune, is_of_python, is_own


def test_each_file_is_of_one_owner():
    files = {
        "own": __file__,
        "python": json.__file__,
        "installed": torch.__file__,
        "autotune": autotune.backends.eager.__file__,
    }
    checks = {"own": is_own, "python": is_of_python, "installed": is_installed, "autotune": is_of_autotune}
    found = {owner: [name for name, check in checks.items() if check(file)] for owner, file in files.items()}
    assert found == {owner: [owner] for owner in files}
    assert not is_own("") and not is_own("<string>") and not is_own("<frozen importlib._bootstrap>")


def test_the_innermost_frame_that_decides_says_who_asks():
    assert initiator(()) is Initiator.USER
    assert json.loads("[1]", object_hook=None, parse_int=lambda _: initiator(())) == [Initiator.USER]
    here = (__file__, pytest.__file__)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(initiator(here)))
    thread.start()
    thread.join()
    answers.append(initiator(here, near=1))
    assert answers == [Initiator.THREAD, Initiator.NOBODY]


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("\n  first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError"),
        (Unprintable(), "Unprintable"),
        (ValueError("x" * 10_000), "ValueError: " + "x" * 500),
    ],
)
def test_an_error_is_described_by_its_first_line_and_the_users_own_place(error, text):
    def fails():
        raise error

    with pytest.raises(type(error)) as caught:
        fails()
    line = caught.traceback[-1].lineno + 1
    assert described(caught.value) == f"{text} ({__file__}, line {line})"
    assert described(RuntimeError("raised nowhere")) == "RuntimeError: raised nowhere"


def test_an_error_of_a_library_has_the_place_that_called_it():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert f"{__file__}, line {caught.traceback[0].lineno + 1}" in described(caught.value)
