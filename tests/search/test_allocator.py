from autotune.records.configuration import Configuration
from autotune.search.allocator import Allocator
from autotune.search.history import OutcomeState, TrialOutcome


def feed(
    allocator: Allocator,
    backend: str,
    latencies_ms: list[float | None],
    *,
    build_s: float | None = None,
    start: int = 0,
) -> None:
    """One complete trial for each latency, a failed one for each ``None``."""
    for number, score in enumerate(latencies_ms, start):
        state: OutcomeState = "failed" if score is None else "complete"
        point = Configuration.of(backend, {"number": number})
        allocator.observe(TrialOutcome(configuration=point, state=state, score=score, build_s=build_s))


def test_backends_without_a_trial_go_first_in_the_order_named() -> None:
    allocator = Allocator(["eager", "inductor", "openvino"])
    feed(allocator, "eager", [1.0])
    assert allocator.ranked({}) == ("inductor", "openvino", "eager")
    assert allocator.ranked({"inductor": 1})[0] == "openvino"


def test_the_backend_near_the_best_is_preferred() -> None:
    allocator = Allocator(["slow", "fast"])
    feed(allocator, "slow", [4.0, 4.2, 4.4])
    feed(allocator, "fast", [1.0, 1.1, 1.2])
    assert allocator.ranked({})[0] == "fast"


def test_of_two_backends_alike_on_average_the_one_that_varies_promises_more() -> None:
    allocator = Allocator(["settled", "varied"])
    feed(allocator, "settled", [1.2] * 20)
    feed(allocator, "varied", [1.0, 1.44] * 10)
    assert allocator.ranked({})[0] == "varied"


def test_a_backend_that_always_fails_is_left() -> None:
    allocator = Allocator(["broken", "works"])
    feed(allocator, "broken", [None] * 4)
    feed(allocator, "works", [1.0, 1.5, 2.0, 1.2])
    assert allocator.ranked({})[0] == "works"


def test_a_cheap_build_wins_where_promises_are_alike() -> None:
    allocator = Allocator(["dear", "cheap"])
    feed(allocator, "dear", [1.0, 1.5, 2.0], build_s=90.0)
    feed(allocator, "cheap", [1.0, 1.5, 2.0], build_s=2.0)
    assert allocator.ranked({})[0] == "cheap"


def test_what_is_running_counts() -> None:
    allocator = Allocator(["left", "right"])
    feed(allocator, "left", [1.0, 1.5])
    feed(allocator, "right", [1.0, 1.5])
    assert allocator.ranked({}) == ("left", "right")
    assert allocator.ranked({"left": 1}) == ("right", "left")


def test_scores_do_not_depend_on_the_order_of_outcomes() -> None:
    values: list[float | None] = [0.1, 0.7, None, 1.3, 0.2, 0.3]
    one, other = Allocator(["a"]), Allocator(["a"])
    feed(one, "a", values, build_s=0.1)
    feed(other, "a", values[::-1], build_s=0.1)
    assert one.scores({}) == other.scores({})
