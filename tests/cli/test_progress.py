"""The display while a study works: plain lines in a pipe, live lines on a terminal of any width."""

import io

import pytest
from rich.console import Console

from autotune.cli.progress import TuneProgress
from autotune.cli.tune import _earlier
from autotune.database.store import Store
from autotune.execute.finals import LIMIT_S
from autotune.records.configuration import Configuration
from autotune.records.trial import Trial
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from tests.database import records

EAGER = Configuration.of("eager", {"precision": "fp32", "channels_last": False, "form": "module", "threads": 2})
FAST = Configuration.of("torchscript", {"precision": "fp32", "optimize": True, "threads": 2})


def request():
    return StudyRequest(name="toy", batch=2, device=discovery.cpu(), factory="toy.py:toy", trials=4, budget_s=100.0)


def trial(number, configuration, latency_ms, **values):
    state = values.pop("state", "complete")
    return Trial(
        uid=str(number), number=number, configuration=configuration, state=state, latency_ms=latency_ms, build_s=0.5,
        signal_error=0.0, **values,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def long_finals(monkeypatch):
    """The finals of users, not the short ones of tests."""
    monkeypatch.setitem(LIMIT_S, "cpu", 75.0)


class Clock:
    now_s = 50.0

    def __call__(self):
        return self.now_s


def progress(*, width=80, terminal=False, earlier=lambda *_: ((), 0.0), clock=None):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False)
    return TuneProgress(console, request(), earlier, clock or Clock()), console


def told(shown):
    return f"{shown.figures()}\n{shown.doing()}"


def test_the_live_lines_say_share_end_best_and_what_runs():
    clock = Clock()
    shown, _ = progress(clock=clock)
    shown.event("capture", name="toy", batch=2)
    clock.now_s += 3
    assert told(shown) == "0%\n3 s: capturing the model"
    shown.event("captured", workload=None)
    shown.event("trial_started", number=0, configuration=EAGER)
    clock.now_s += 6
    assert told(shown).startswith("6%; about 3 min left\n6 s: trial 0, building: eager (fp32")
    shown.event("trial_timing", number=0, configuration=EAGER)
    assert "0 s: trial 0, checking and timing: eager" in told(shown)
    shown.event("trial_finished", trial=trial(0, EAGER, 4.0), best_ms=4.0)
    assert told(shown).startswith("25%; about 100 s left; best 4.000 ms, 1.00×\n0 s: choosing the next trial")
    shown.event("trial_started", number=1, configuration=FAST)
    shown.event("trial_started", number=2, configuration=FAST)
    shown.event("trial_timing", number=2, configuration=FAST)
    assert "trial 2 of 2, checking and timing: torchscript" in told(shown)
    shown.event("trial_finished", trial=trial(2, FAST, 1.0), best_ms=1.0)
    assert "best 1.000 ms, 4.00×" in told(shown) and "trial 1, building" in told(shown)
    shown.event("trial_left_out", trial=trial(1, FAST, None, state="running"), text="left out")
    shown.event("trial_finished", trial=trial(3, FAST, 0.5, state="pruned"), best_ms=1.0)
    assert "best 1.000 ms" in told(shown)  # a trial that was not timed to its end is no best
    shown.event("finals_started", count=3)
    assert told(shown) == "100%; about 80 s left; best 1.000 ms, 4.00×\n0 s: finals of 3 configurations"
    clock.now_s += 200
    shown.event("finals_round", rounds=12, elapsed_s=200.0)
    assert told(shown) == "100%; about 50 s left; best 1.000 ms, 4.00×\n200 s: finals: 12 rounds"


def test_a_best_without_its_baseline_has_no_speedup():
    shown, _ = progress()
    shown.event("trial_started", number=0, configuration=FAST)
    shown.event("trial_finished", trial=trial(0, FAST, 1.0), best_ms=1.0)
    assert shown.figures().endswith("best 1.000 ms")


def test_earlier_runs_of_the_study_count():
    earlier = [trial(0, EAGER, 4.0), trial(1, FAST, 2.0), trial(2, FAST, 2.0, reused=True)]
    shown, _ = progress(earlier=lambda *_: (earlier, 10.0))
    shown.event("trial_started", number=3, configuration=FAST)
    assert shown.figures() == "50%; about 3 min left; best 2.000 ms, 2.00×"


def test_the_earlier_runs_are_those_of_the_study_with_this_running_trial(tmp_path):
    with Store.open(str(tmp_path / "autotune.db")) as store:
        study = records.begin(store)
        records.tried(store, study)
        store.studies.add_active_time(study.uid, 12.5)
        running = store.trials.claim(study.uid, records.configuration(1), records.TOOLCHAIN.digest)
        asked = StudyRequest(name=study.name, batch=study.batch, device=discovery.cpu(), factory="x:y")
        trials, spent_s = _earlier(store, asked, running.number, running.configuration)
        assert ([one.number for one in trials], spent_s) == ([0], 12.5)
        assert _earlier(store, asked, running.number, records.configuration(7)) == ([], 0.0)


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_the_live_lines_fit_every_width(width):
    shown, console = progress(width=width, terminal=True)
    shown.event("trial_started", number=0, configuration=FAST)
    shown.event("trial_finished", trial=trial(0, EAGER, 4.0), best_ms=4.0)
    shown.event("trial_started", number=1, configuration=FAST)
    console.file.seek(0)
    console.file.truncate()
    console.print(shown)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2 and all(len(line.rstrip()) <= width for line in lines)
    assert ("━" in lines[0]) == (width >= 60)
    if width >= 40:
        assert "25%; about 80 s left" in lines[0]


def test_the_live_lines_fit_where_characters_get_longer():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="autotune-readable", write_through=True)
    console = Console(file=file, width=44, force_terminal=True, color_system=None, highlight=False)
    shown = TuneProgress(console, request(), now=Clock())
    shown.event("trial_started", number=0, configuration=FAST)
    shown.event("trial_finished", trial=trial(0, EAGER, 4.0), best_ms=4.0)
    shown.event("trial_started", number=1, configuration=FAST)
    console.print(shown)
    _, figures, doing = file.buffer.getvalue().decode("ascii").splitlines()
    assert max(len(figures.rstrip()), len(doing.rstrip())) <= 44
    assert "; best 4.000 ms, 1.00x" in figures and doing.startswith("0 s: trial 1, building: torchscript")


def test_in_a_pipe_there_are_plain_lines_alone():
    shown, console = progress(width=20)
    with shown:
        shown.event("trial_started", number=0, configuration=FAST)
        shown.event("trial_finished", trial=trial(0, FAST, 1.0), best_ms=1.0)
        shown.event("message", text="a message")
        shown.event("finished", outcome=None)
    first, *rest = console.file.getvalue().splitlines()
    assert first.startswith("toy, batch 2, on ") and first.endswith("at most 4 trials and 100.0 s of search")
    line = "trial 0: torchscript (fp32, optimize=yes, threads=2): 1.000 ms, signal error 0, built in 0.5 s"
    assert rest == [line, "a message"]
