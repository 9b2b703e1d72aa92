import pytest

from autotune.errors import RequestError
from autotune.programs import busy_host
from autotune.programs.busy_host import accepted, main

QUIET = {"status": "tie", "reason": "", "plan": "a", "speedup": 3.0, "tied_with": ["b"], "seconds": 1.0}


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ({**QUIET, "plan": "b"}, 0),
        ({**QUIET, "plan": None, "status": "undecided"}, 0),
        ({**QUIET, "plan": "c"}, 1),
        ({**QUIET, "plan": "eager", "status": "baseline"}, 1),
    ],
)
def test_a_run_under_load_is_right_with_a_quiet_winner_or_undecided(monkeypatch, tmp_path, run, code):
    runs = iter([QUIET, run])
    monkeypatch.setattr(busy_host, "tuned", lambda study: next(runs))
    file = tmp_path / "found.json"
    assert main(["study.yaml", "--quiet", "1", "--busy", "1", "--json", str(file)]) == code
    again = iter([run])
    monkeypatch.setattr(busy_host, "tuned", lambda study: next(again))
    assert main(["study.yaml", "--quiet", "0", "--busy", "1", "--known", str(file)]) == code


def test_what_a_quiet_run_could_not_tell_from_its_plan_is_accepted():
    assert accepted([QUIET, {**QUIET, "plan": "c", "tied_with": []}]) == {"a", "b", "c"}
    assert accepted([{**QUIET, "plan": None, "tied_with": []}]) == set()


def test_a_study_is_tuned_by_the_users_own_command(tmp_path):
    (tmp_path / "toy.py").write_text("import torch\n\n\ndef make():\n    return torch.nn.Linear(64, 64)\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: toy\nmodel: {factory: toy.py:make}\ninputs: [{name: input, shape: [batch, 64]}]\n"
        "batch: [1]\ndevice: cpu\n"
        "space: {backends: [eager, torchscript]}\nsearch: {trials: 3, budget: 20s}\n"
    )
    run = busy_host.tuned(study)
    assert (run["plan"] is None) == (run["status"] == "undecided") and len(run["finalists"]) >= 2


def test_a_request_that_is_wrong_ends_the_program_with_its_message(tmp_path):
    with pytest.raises(RequestError, match="ended with 2"):
        busy_host.tuned(tmp_path / "nothing.yaml")
