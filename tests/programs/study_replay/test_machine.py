"""The simulated host: cores that steps share, the lock of its device, and work in strands."""

import pytest

from autotune.execute.session import QUEUED
from autotune.programs.study_replay.machine import Machine, MachineStage


def build(seconds, cores=1.0, hold="none"):
    return MachineStage(name="build", seconds=seconds, cores=cores, hold=hold)


def test_steps_that_fit_beside_each_other_take_their_own_time():
    machine = Machine(4)
    short, long = machine.add([build(2.0, cores=2.0)]), machine.add([build(5.0, cores=2.0)])
    machine.wait(lambda: long.done)
    assert (short.end_s, long.end_s, machine.crowded_s) == (2.0, 5.0, 0.0)


def test_steps_that_want_more_cores_than_there_are_slow_down_together():
    machine = Machine(4)
    steps = [machine.add([build(3.0, cores=4.0)]), machine.add([build(6.0, cores=4.0)])]
    sleeping = machine.add([MachineStage(name="between", seconds=1.0, cores=0.0)])
    machine.wait(lambda: all(step.done for step in steps))
    assert sleeping.end_s == pytest.approx(1.0), "a step without a core is not slowed down"
    assert [step.end_s for step in steps] == pytest.approx([6.0, 9.0])
    assert machine.crowded_s == pytest.approx(6.0)


def test_shared_holders_run_together_and_the_first_to_wait_is_next():
    machine = Machine(16)
    steps = [
        machine.add([build(seconds, hold=hold)])
        for seconds, hold in ((4.0, "shared"), (2.0, "shared"), (1.0, "exclusive"), (3.0, "shared"))
    ]
    machine.wait(lambda: all(step.done for step in steps))
    assert [step.end_s for step in steps] == [4.0, 2.0, 5.0, 8.0], "the last must not overtake the exclusive one"
    assert steps[2].spans == [(QUEUED, 0.0, 4.0), ("build", 4.0, 5.0)]


def test_a_lock_is_held_from_stage_to_stage_and_given_back_before_the_end():
    machine = Machine(16)
    turn = machine.add(
        [
            MachineStage(name="check", seconds=1.0, hold="exclusive"),
            MachineStage(name="measure", seconds=2.0, hold="exclusive"),
            MachineStage(name="ending", seconds=5.0),
        ]
    )  # fmt: skip
    other = machine.add([MachineStage(name="check", seconds=1.0, hold="exclusive")])
    machine.wait(lambda: turn.done)
    assert other.end_s == 4.0 and turn.end_s == 8.0


def test_the_device_is_idle_while_something_is_built_and_nothing_has_it_alone():
    machine = Machine(16)
    building = machine.add([MachineStage(name="starting", seconds=1.0), build(9.0, hold="shared")])
    machine.wait(lambda: building.done)
    assert machine.idle_s == 10.0
    machine.sleep(5.0)
    assert machine.idle_s == 10.0
    machine.add([build(4.0)])
    machine.run([MachineStage(name="measure", seconds=3.0, hold="exclusive")])
    assert machine.idle_s == 10.0
    machine.sleep(2.0)
    assert machine.idle_s == 11.0 and machine() == 20.0


def test_a_strand_works_beside_the_caller_in_simulated_time():
    machine, moments = Machine(16), []

    def work():
        for _ in range(3):
            machine.run([build(2.0)])
            moments.append(machine())
        return "done"

    strand = machine.spawn(work)
    machine.run([build(3.0)])
    assert moments == [2.0] and machine() == 3.0
    assert strand.result() == "done" and moments == [2.0, 4.0, 6.0]


def test_the_error_of_a_strand_is_raised_where_time_passes():
    machine = Machine(16)

    def work():
        machine.run([build(1.0)])
        raise KeyError("lost")

    machine.spawn(work)
    with pytest.raises(KeyError, match="lost"):
        machine.sleep(2.0)


def test_a_wait_that_nothing_ends_is_an_error():
    with pytest.raises(RuntimeError, match="no step"):
        Machine(16).wait(lambda: False)


def test_a_step_takes_more_stages_in_its_last_one_and_can_end_in_it():
    machine = Machine(4)
    kept = MachineStage(name="idle", seconds=3.0, cores=0.0, hold="exclusive")
    first = machine.add([build(1.0, hold="exclusive")])
    turn = machine.add([build(2.0, hold="exclusive"), kept])
    other = machine.add([build(1.0, hold="exclusive")])
    machine.wait(lambda: turn.stage is kept)
    machine.sleep(1.0)
    turn.insert(build(2.0, hold="exclusive"))
    machine.wait(lambda: turn.stage is kept)
    assert machine() == pytest.approx(6.0) and turn.begun_s == first.end_s and not other.done
    turn.end()
    turn.end()
    machine.wait(lambda: other.done)
    assert (turn.end_s, other.end_s) == (pytest.approx(6.0), pytest.approx(7.0))
    assert [name for name, _, _ in turn.spans] == [QUEUED, "build", "idle", "build", "idle"]
