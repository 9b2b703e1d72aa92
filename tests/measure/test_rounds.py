import json
import random

import pytest

from autotune.measure.block import Block
from autotune.measure.finals import run_rounds
from autotune.measure.observers import Observers
from autotune.measure.rounds import RETAKES
from autotune.measure.timer import CpuTimer
from autotune.testing import FakeCall, FakeClock

SETS = [("a",), ("b",), ("c",)]


def race(durations_ms, rounds, **options):
    clock = FakeClock()
    finalists = {name: FakeCall(clock, *durations) for name, durations in durations_ms.items()}
    done = run_rounds(finalists, SETS, CpuTimer(clock), random.Random(1), rounds, clock=clock, **options)
    return done, finalists, clock


def test_every_finalist_runs_once_a_round_in_changing_order():
    turns = []
    done, finalists, _ = race({"a": [2.0], "b": [3.0], "c": [4.0]}, 12, announce=turns.append)
    assert [set(blocks) for blocks in done] == [{"a", "b", "c"}] * 12
    orders = [tuple(sorted(blocks, key=lambda name: blocks[name].position)) for blocks in done]
    assert len(set(orders)) > 1
    assert turns == [name for order in orders for name in order]
    assert all(finalist.prepared == 12 for finalist in finalists.values())


@pytest.mark.parametrize(
    ("call_ms", "samples", "grouped"),
    [(0.1, 5, 11), (0.5, 4, 3), (1.0, 5, 1), (1.7, 3, 1), (19.0, 3, 1), (20.0, 1, 1), (1000.0, 1, 1)],
)
def test_a_block_lasts_5_ms_from_3_to_30_samples(call_ms, samples, grouped):
    done, _, _ = race({"a": [call_ms]}, 1)
    block = done[0]["a"]
    assert block.samples_ms == pytest.approx([call_ms] * samples)
    assert block.grouped == grouped


def test_the_warm_call_is_not_kept():
    done, finalists, _ = race({"a": [19.0, 10.0, 11.0, 12.0]}, 2)
    assert [blocks["a"].samples_ms for blocks in done] == [(10.0, 11.0, 12.0)] * 2
    assert len(finalists["a"].calls) == 8
    assert done[0]["a"].latency_ms == 11.0


def test_inputs_rotate_on_from_round_to_round():
    done, _, _ = race({"a": [10.0]}, 3)
    assert [blocks["a"].input_sets for blocks in done] == [(1, 2, 0), (2, 0, 1), (0, 1, 2)]


def test_frozen_finalists_sit_out():
    done, finalists, _ = race({"a": [2.0], "b": [3.0]}, 2, frozen=["b"])
    assert [set(blocks) for blocks in done] == [{"a"}] * 2
    assert finalists["b"].calls == []
    with pytest.raises(ValueError, match="frozen"):
        race({"a": [2.0]}, 1, frozen={"a"})


def test_no_round_is_begun_that_would_end_too_late():
    done, _, clock = race({"a": [100.0], "b": [150.0]}, 50, limit_s=3.5)
    assert len(done) == 7 and clock.now_ns() == 3500 * 10**6
    assert len(race({"a": [5000.0]}, 50, limit_s=1.0)[0]) == 1


def test_the_least_rounds_run_however_late_but_not_beyond_the_longest_time():
    slow = {"a": [100.0], "b": [150.0]}
    assert len(race(slow, 50, limit_s=0.1, least=4)[0]) == 4
    assert len(race(slow, 50, limit_s=3.5, least=4)[0]) == 7
    assert len(race(slow, 3, limit_s=0.1, least=9)[0]) == 3
    assert len(race(slow, 50, limit_s=0.1, least=9, longest_s=2.5)[0]) == 5
    assert len(race(slow, 50, longest_s=0.1)[0]) == 1


def test_a_failing_finalist_was_announced():
    turns = []

    class Broken:
        def prepare(self):
            pass

        def __call__(self, *_):
            raise RuntimeError("no")

    clock = FakeClock()
    with pytest.raises(RuntimeError, match="no"):
        run_rounds({"b": Broken()}, SETS, CpuTimer(clock), random.Random(0), 1, clock=clock, announce=turns.append)
    assert turns == ["b"]


def test_a_block_survives_json_and_refuses_what_does_not_fit():
    block = race({"a": [10.0]}, 1)[0][0]["a"]
    assert Block.from_dict(json.loads(json.dumps(block.as_dict()))) == block
    with pytest.raises(ValueError, match="cpu_ms"):
        Block(samples_ms=(1.0, 2.0), cpu_ms=(1.0,))
    with pytest.raises(ValueError):
        Block(samples_ms=(0.0,))
    with pytest.raises(ValueError):
        Block(samples_ms=())


class Seen:
    """An observer that gives one reading a round, the last for ever."""

    name = "gpu"

    def __init__(self, *readings):
        self.readings, self.looks = list(readings), 0

    def before(self):
        self.looks += 1

    def during(self):
        pass

    def after(self):
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        return {"available": True, **reading}


FOREIGN = {"other_processes": [{"pid": 1, "sm_percent": 50}]}


def observed(*readings, rounds=3):
    seen, slept = Seen(*readings), []
    clock = FakeClock()
    finalists = {name: FakeCall(clock, 2.0) for name in ("a", "b")}
    done = run_rounds(
        finalists, SETS, CpuTimer(clock), random.Random(1), rounds, clock=clock, sleep=slept.append,
        observers=Observers([seen], clock),
    )  # fmt: skip
    return done, seen, slept


def test_a_disturbed_round_is_repeated_whole_so_that_pairs_stay_pairs():
    done, seen, slept = observed({}, FOREIGN, {})
    assert len(done) == 3 and seen.looks == 4 and len(slept) == 1
    assert all(block.flags == () and set(blocks) == {"a", "b"} for blocks in done for block in blocks.values())


def test_what_stays_disturbed_is_kept_with_its_flag_after_a_bounded_number_of_retakes():
    done, seen, slept = observed(FOREIGN, rounds=5)
    assert len(done) == 5 and len(slept) == RETAKES and seen.looks == 5 + RETAKES
    assert all(block.flags == ("shared_device",) for blocks in done for block in blocks.values())
    assert done[0]["a"].readings["gpu"]["other_processes"] == FOREIGN["other_processes"]


def test_throttling_is_flagged_and_not_taken_again():
    done, seen, slept = observed({"throttle_reasons": ["sw_power_cap"]}, rounds=2)
    assert len(done) == 2 and not slept and seen.looks == 2
    assert done[1]["b"].flags == ("throttled",)


def test_a_meter_takes_one_figure_a_block_and_a_tail_equal_blocks():
    def meter(name, finalist):
        return {"a": 3.0, "b": 5.0}[name]

    done, _, _ = race({"a": [0.5], "b": [30.0]}, 2, meter=meter, samples=7)
    assert {name: block.figures for name, block in done[0].items()} == {"a": (3.0,), "b": (5.0,)}
    assert {len(block.samples_ms) for blocks in done for block in blocks.values()} == {7}
    assert done[0]["b"].compared == (5.0,)


class Busy:
    """An observer that sees others on so many of the first rounds, and nobody after them."""

    name = "host"

    def __init__(self, rounds):
        self.left = rounds

    def before(self): ...

    def during(self): ...

    def after(self):
        self.left -= 1
        return {"available": True, "device": "cpu", "competing_share": 0.5 if self.left >= 0 else 0.0}


class Struck(FakeCall):
    """Loses its core in every call but each so many-th."""

    def __init__(self, clock, duration_ms, escapes):
        super().__init__(clock, duration_ms)
        self._time, self._escapes = clock, escapes

    def __call__(self, *inputs):
        struck = not self._escapes or len(self.calls) % self._escapes
        self._time.advance(0.0, switches=int(bool(struck)))
        return super().__call__(*inputs)


def busy_race(finalists, rounds, busy_rounds, clock, **options):
    observers = Observers([Busy(busy_rounds)], clock)
    return run_rounds(
        finalists, SETS, CpuTimer(clock), random.Random(1), rounds, clock=clock, observers=observers,
        sleep=lambda seconds: clock.advance(1e3 * seconds), **options,
    )  # fmt: skip


def test_a_round_without_an_undisturbed_sample_is_taken_again():
    clock = FakeClock()
    done = busy_race({"a": Struck(clock, 2.0, 0), "b": FakeCall(clock, 2.0)}, 3, 1, clock)
    assert [block.shared for blocks in done for block in blocks.values()] == [False] * 6
    assert all(blocks["a"].undisturbed_ms == blocks["a"].samples_ms for blocks in done)


def test_rounds_are_not_taken_again_where_that_does_not_help():
    clock = FakeClock()
    call = Struck(clock, 2.0, 0)
    done = busy_race({"a": call, "b": FakeCall(clock, 2.0)}, 4, 99, clock)
    assert len(done) == 4 and all(blocks["a"].shared and not blocks["a"].undisturbed_ms for blocks in done)
    assert all(blocks["b"].undisturbed_ms for blocks in done)
    assert call.prepared <= 4 + 4  # one retake a round shows that it does not help, and there are six


def test_a_block_on_shared_cores_lasts_until_some_samples_escaped_but_not_for_ever():
    clock = FakeClock()
    some, none = Struck(clock, 2.0, 5), Struck(clock, 2.0, 0)
    done = busy_race({"some": some, "none": none}, 2, 99, clock)
    assert len(done[1]["some"].undisturbed_ms) >= 3
    assert 50 <= sum(done[1]["none"].samples_ms) <= 52


def test_a_late_round_is_not_taken_again():
    clock = FakeClock()
    call = Struck(clock, 100.0, 0)
    busy_race({"a": call}, 1, 99, clock, limit_s=0.1)
    assert call.prepared == 1
