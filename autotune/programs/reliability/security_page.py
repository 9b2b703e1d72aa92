"""The promise that every case of the security page is refused; each case has a tripwire."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from autotune.errors import AutotuneError
from autotune.programs.check_result import CheckResult
from autotune.programs.reliability.attempt import Attempt, Case
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.refused_models import CASES as MODELS
from autotune.programs.reliability.refused_records import CASES as RECORDS

LONGEST_MESSAGE = 2000
"""A clear message fits a screen."""


class CaseRow(TypedDict):
    """The message that refused a case, and everything that is wrong with its refusal."""

    case: str
    message: str
    wrong: str


def refused(campaign: Campaign) -> list[CheckResult]:
    """Present every case on models, artifacts, plans and configuration (in the short form every fifth)."""
    return [present((*MODELS, *RECORDS)[:: campaign.pick(1, 5)], campaign.folder / "security-page")]


def present(cases: Sequence[Case], root: Path) -> CheckResult:
    """Present each case in a folder of its own; every change outside it is detected."""
    rows = [_present(case, root / f"{number}") for number, case in enumerate(cases)]
    wrong = [row for row in rows if row["wrong"]]
    return CheckResult(
        check="cases of the security page",
        figure=f"{len(rows) - len(wrong)} of {len(rows)} refused with a clear message, nothing run or written outside"
        + "".join(f"; {row['case']}: {row['wrong']}" for row in wrong),
        limit="all of them",
        passed=not wrong,
        raw={"cases": rows},
    )


def _present(case: Case, around: Path) -> CaseRow:
    folder, tripwire, outside = around / "folder", around / "tripwire", around / "outside"
    folder.mkdir(parents=True)
    outside.write_text("nobody's business")
    before = _content(around)
    message, wrong = "", "was not refused"
    try:
        case.present(Attempt(folder=folder, outside=outside, tripwire=tripwire))
    except AutotuneError as error:
        message = str(error).replace(str(around), "")
        wrong = "" if error.found or error.expected else "the message does not say what was found or expected"
        if len(message) > LONGEST_MESSAGE:
            wrong = f"a message of {len(message)} characters"
    except Exception as error:  # the program's border: any other error is no clear message
        wrong = f"{type(error).__name__}: {error}"
    if tripwire.exists():
        wrong = "its payload ran"
    elif _content(around) != before:
        wrong = "something was written outside its folder"
    return {"case": case.name, "message": message, "wrong": wrong}


def _content(around: Path) -> dict[str, str]:
    """Return digests and modes of everything around a case's own folder."""
    content = {}
    for path in sorted(around.iterdir()):
        if path.name != "folder":
            kind = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            content[path.name] = f"{kind} {os.lstat(path).st_mode:o}"
    return content
