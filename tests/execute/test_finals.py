"""How processes follow one another in the finals; the processes themselves are played."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from autotune.execute import finals as module
from autotune.execute.notices import Notices
from autotune.execute.timing import TimeSplit
from autotune.measure.block import Block
from autotune.measure.finals import Finals
from autotune.records.objective import Objective

LOAD_S = 10.0


class Process:
    """Loads for ten seconds of the played clock and then answers with rounds whose noise hides every difference."""

    pid, turn, spans, waited_s = 1, None, (), 0.0

    def __init__(self, stage, request):
        self.stage, self.request = stage, request
        self.ready, self.finished, self.asked = False, False, []

    def begin_order(self):
        pass

    def begin_part(self):
        pass

    def receive(self, limit_s, order_limit_s):
        if not self.ready:
            self.stage.now_s += LOAD_S + self.stage.wait_s
            self.waited_s += self.stage.wait_s
            return {"ready": True}
        draw = self.stage.rng.lognormal
        names = sorted(set(self.request["artifacts"]) - set(self.asked[-1]["frozen"]))
        rounds = [
            {name: Block(samples_ms=(float(draw(0, 0.2)),), readings=self.stage.readings).as_dict() for name in names}
            for _ in range(self.asked[-1]["rounds"])
        ]
        return {"rounds": rounds}

    def send(self, message):
        if "rounds" in message:
            self.asked.append(message)

    def finish(self):
        self.finished = True


class Stage:
    """A device, a server and a clock for played processes."""

    def __init__(self, kind):
        self.readings, self.wait_s = {}, 0.0
        self.now_s, self.rng, self.processes = 0.0, np.random.default_rng(1), []
        self.server = SimpleNamespace(start=self.start, closed=False)
        self.executor = SimpleNamespace(
            device=SimpleNamespace(kind=kind, as_dict=dict), model="", server=self.server, split=TimeSplit()
        )

    def start(self, step, request, first):
        self.processes.append(Process(self, request))
        return self.processes[-1]

    def race(self, limit_s):
        names = ("eager", "a")
        drive = module._Drive(
            executor=self.executor, artifacts=dict.fromkeys(names, ""), seed=0, objective=Objective(), concurrency={},
            finals=Finals(names, baselines=["eager"], processes=module.PROCESSES["cuda"]), protocol="finals",
        )  # fmt: skip
        return drive, module._race(drive, limit_s, lambda rounds, elapsed_s: None)


@pytest.fixture(params=["cuda", "cpu"])
def stage(request, monkeypatch):
    stage = Stage(request.param)
    monkeypatch.setattr(module, "PROCESSES", {"cuda": 3, "cpu": 3})
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: stage.now_s))
    return stage


def test_each_further_look_has_a_process_that_ran_none_before(stage):
    drive, verdict = stage.race(1000.0)
    assert verdict.rounds == 100 and not verdict.settled
    assert Counter(drive.process_of_round) == {0: 7, 1: 7, 2: 6, 3: 20, 4: 20, 5: 20, 6: 20}
    assert drive.process_of_round == sorted(drive.process_of_round)
    assert [len(process.asked) for process in stage.processes] == [1] * 7
    assert [process.request["seed"] for process in stage.processes] == list(range(7))
    assert [process.finished for process in stage.processes] == [True] * 6 + [False]


@pytest.fixture
def in_time(monkeypatch):
    """No time is added where the finals cannot decide."""
    monkeypatch.setattr(module, "EXTENSIONS", 0)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("wait_s", [0.0, 25.0])
def test_no_process_begins_to_load_that_would_be_ready_when_the_time_is_up(stage, wait_s):
    stage.wait_s = wait_s
    drive, verdict = stage.race(6.5 * LOAD_S)
    loaded = len(stage.processes)
    assert verdict.status == "undecided"
    assert drive.now() == loaded * LOAD_S <= 6.5 * LOAD_S or wait_s
    if stage.executor.device.kind == "cpu":
        assert drive.waited_s == loaded * wait_s and stage.now_s == loaded * (LOAD_S + wait_s)
    assert drive.process_of_round == [0] * 7 + [1] * 7 + [2] * 6 + [p for p in range(3, loaded) for _ in range(20)]
    # Three that load side by side on a GPU take thirty seconds here, and so may the next.
    assert loaded == {"cuda": 4, "cpu": 6}[stage.executor.device.kind] or wait_s


def test_finals_that_cannot_decide_get_their_time_once_more(stage):
    _, verdict = stage.race(3.5 * LOAD_S)
    assert verdict.rounds > 20 and 3.5 * LOAD_S < stage.now_s <= 7 * LOAD_S


@pytest.mark.usefixtures("in_time")
def test_processes_are_asked_for_rounds_enough_for_a_winner_whatever_the_time(stage):
    stage.race(0.5 * LOAD_S)
    orders = [process.asked[0] for process in stage.processes]
    assert [order["least"] for order in orders] == [3, 1, 1]  # seven for one candidate; the played ones run all asked
    assert all(0 < order["longest_s"] <= module.LONGEST_S for order in orders) and orders[-1]["limit_s"] == 0.0


@pytest.mark.usefixtures("in_time")
def test_a_process_of_somebody_else_on_the_device_is_told_once(stage):
    foreign = {
        "gpu": {"available": True, "other_processes": [{"pid": 2**22 + 1, "used_bytes": None, "sm_percent": 30}]}
    }
    said = []
    stage.server.notices = Notices(said.append)
    stage.executor.device.name = "NVIDIA H200"
    stage.readings = foreign
    stage.race(0.5 * LOAD_S)
    (told,) = said
    assert told.startswith(f"process {2**22 + 1} is on NVIDIA H200 too (up to 30% of its cores)")


@pytest.mark.usefixtures("in_time")
def test_the_processes_to_the_first_look_run_however_short_the_time(stage):
    drive, _ = stage.race(0.5 * LOAD_S)
    assert drive.process_of_round == [0] * 7 + [1] * 7 + [2] * 6 and len(stage.processes) == 3
