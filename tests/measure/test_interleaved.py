"""Callables take turns, each with its own number of grouped calls."""

from autotune.measure.interleaved import WARM_UP_CALLS, interleaved
from autotune.measure.timer import Sample


class Recorded:
    """A timer of known times, which records the order of its calls."""

    kind, l2 = "cpu", "steady"

    def __init__(self):
        self.order = []

    def grouping(self, typical_ms):
        return int(10 / typical_ms)

    def time_call(self, function, inputs, grouped=1):
        self.order.append((function(*inputs), grouped))
        return Sample(wall_ms={"a": 1.0, "b": 5.0}[function()])


def test_calls_alternate_and_short_ones_are_grouped():
    timer = Recorded()
    blocks = interleaved({"a": lambda: "a", "b": lambda: "b"}, timer, rounds=3, samples=2)
    assert blocks == {"a": [[1.0, 1.0]] * 3, "b": [[5.0, 5.0]] * 3}
    warm, timed = timer.order[: 2 * WARM_UP_CALLS], timer.order[2 * WARM_UP_CALLS :]
    assert warm == [("a", 1)] * WARM_UP_CALLS + [("b", 1)] * WARM_UP_CALLS
    first, second = [("a", 10)] * 2, [("b", 2)] * 2
    assert timed == [*first, *second, *second, *first, *first, *second]
