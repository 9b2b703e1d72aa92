from pathlib import Path

import pytest

from autotune.errors import RequestError
from autotune.programs.reliability import security_page
from autotune.programs.reliability.attempt import Attempt, Case
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.refused_records import CASES as RECORDS


def test_the_short_form_holds(tmp_path: Path) -> None:
    quick = Campaign(folder=tmp_path, databases={}, quick=True)
    (outcome,) = security_page.refused(quick)
    assert outcome.passed, outcome.figure
    assert len(outcome.raw["cases"]) == 10


def test_what_is_tested_nowhere_else_holds(tmp_path: Path) -> None:
    own = [case for case in RECORDS if case.name in ("a plan pointing at another digest", "an archive with a symlink")]
    outcome = security_page.present(own, tmp_path)
    assert len(own) == 2 and outcome.passed, outcome.figure


def run(on: Attempt) -> None:
    import pickle

    pickle.loads(on.pickled())
    raise RequestError("too late", found="it ran")


def write(on: Attempt) -> None:
    (on.folder.parent / "x").write_text("")
    raise RequestError("too late", found="it is written")


def change(on: Attempt) -> None:
    on.outside.write_text("")
    raise RequestError("too late", found="it is changed")


def terse(on: Attempt) -> None:
    raise RequestError("no")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda on: None, "was not refused"),
        (lambda on: {}["x"], "KeyError"),
        (terse, "does not say what was found"),
        (run, "its payload ran"),
        (write, "written outside"),
        (change, "written outside"),
    ],
)
def test_what_is_taken_in_or_runs_or_writes_is_found_out(tmp_path: Path, bad, says: str) -> None:  # type: ignore[no-untyped-def]
    outcome = security_page.present([Case("bad", bad)], tmp_path)
    assert not outcome.passed and says in outcome.figure
