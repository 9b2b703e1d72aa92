from hypothesis import given
from hypothesis import strategies as st

from autotune.execute.timing import TimeSplit

SPANS = st.lists(
    st.tuples(
        st.sampled_from(["build", "check", "measure", "wait", "load", "starting", "queued", "idle"]),
        st.floats(0, 100),
        st.floats(0, 100),
    )
)


def test_a_moment_counts_once_and_sampling_comes_first():
    split = TimeSplit()
    split.add([("build", 0.0, 10.0), ("measure", 5.0, 8.0), ("check", 4.0, 6.0), ("load", 10.0, 12.0)])
    split.add([("wait", 7.0, 13.0)])
    assert split.seconds(0.0, 14.0) == {
        "building": 6.0, "checking": 1.0, "sampling": 3.0, "waiting": 3.0, "other": 1.0,
    }  # fmt: skip


def test_waiting_is_no_work_unless_something_else_went_on():
    split = TimeSplit()
    split.add([("build", 0.0, 10.0), ("wait", 5.0, 16.0)])
    assert split.worked_s(0.0, 20.0) == 14.0 and split.worked_s(12.0, 14.0) == 0.0


def test_other_time_is_divided_by_what_the_steps_did_then():
    split = TimeSplit()
    split.add([("starting", 0.0, 4.0), ("load", 4.0, 8.0), ("measure", 8.0, 10.0), ("idle", 10.0, 12.0)])
    split.add([("build", 0.0, 1.0), ("queued", 3.0, 9.5), ("load", 10.0, 10.5)])
    assert split.seconds(0.0, 14.0)["other"] == 11.0
    assert split.other_seconds(0.0, 14.0) == {"loading": 4.5, "starting": 3.0, "queued": 0.0, "between": 3.5}
    assert split.other_seconds(3.0, 5.0) == {"loading": 1.0, "starting": 1.0, "queued": 0.0, "between": 0.0}


@given(SPANS)
def test_the_parts_add_up_to_the_whole(spans):
    split = TimeSplit()
    split.add([(name, min(a, b), max(a, b)) for name, a, b in spans])
    seconds = split.seconds(0.0, 100.0)
    assert all(value >= 0 for value in seconds.values())
    assert abs(sum(seconds.values()) - 100.0) < 1e-6
    other = split.other_seconds(0.0, 100.0)
    assert all(value >= -1e-9 for value in other.values())
    assert abs(sum(other.values()) - seconds["other"]) < 1e-6
