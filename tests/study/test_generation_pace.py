from autotune.execute.answers import BuildAnswer
from autotune.execute.step_result import StepResult
from autotune.records.configuration import Configuration
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.trial import Failure, Trial
from autotune.study.generation_pace import LAST, GenerationPace

SPACE = SearchSpace(backend="a", parameters=(Parameter(name="deep", choices=(False, True), build_cost=(1.0, 3.0)),))
PLAIN, DEEP = (Configuration.of("a", {"deep": deep}) for deep in (False, True))


def built(build_s: float, starting_s: float = 0.0, *waits_s: float) -> StepResult[BuildAnswer]:
    """A build; it starts, works for a second, and waits for the device before it works on."""
    spans, now_s = [("starting", 0.0, starting_s)], starting_s
    for wait_s in waits_s:
        spans += [("build", now_s, now_s + 1), ("queued", now_s + 1, now_s + 1 + wait_s)]
        now_s += 1 + wait_s
    seconds = starting_s + build_s + sum(waits_s)
    answer = BuildAnswer(build_s=build_s, kernels="")
    return StepResult(value=answer, failure=None, spans=(*spans, ("build", now_s, seconds)), seconds=seconds)


def seasoned() -> GenerationPace:
    """After builds of 10 and 20 s, one of which took 5 s to start, and timings of 2 and 4 s."""
    pace = GenerationPace()
    for build_s in (20.0, 10.0):
        pace.note_build(Trial(uid="", number=0, configuration=PLAIN, state="pruned", build_s=build_s))
    pace.note_builds([built(10.0), built(20.0, 5.0)])
    pace.note_timing(2.0)
    pace.note_timing(4.0)
    return pace


def fits_from(pace: GenerationPace, builds_s: list[float], *, looks: bool = False) -> float:
    """The least budget that builds fit into, in steps of half a second."""
    return next(half / 2 for half in range(1000) if pace.fits(builds_s, half / 2, looks=looks))


def test_everything_fits_before_anything_is_known() -> None:
    assert GenerationPace().build_s(DEEP, SPACE) == 0.0
    assert GenerationPace().fits([0.0] * 9, 0.0, looks=True)


def test_builds_run_side_by_side_and_timings_one_after_the_other() -> None:
    pace = seasoned()
    builds_s = [pace.build_s(PLAIN, SPACE), pace.build_s(DEEP, SPACE)]
    assert builds_s == [20.0, 60.0]
    assert fits_from(pace, builds_s[:1]) == 20.0 + 5.0 + 3.0
    assert fits_from(pace, [20.0, 5.0, 5.0]) == 34.0
    assert fits_from(pace, builds_s) == 71.0


def test_the_longest_look_for_candidates_counts_once_and_only_for_those_that_want_kernels() -> None:
    pace = seasoned()
    pace.note_look(4.0)
    pace.note_look(1.0)
    assert fits_from(pace, [20.0], looks=True) == 20.0 + 5.0 + 3.0 + 4.0
    assert fits_from(pace, [20.0]) == 28.0 and fits_from(pace, [0.0]) == 3.0


def test_slow_starts_of_the_first_builds_do_not_count_for_the_last() -> None:
    pace = seasoned()
    pace.note_builds([built(10.0, 35.0)])
    for _ in range(LAST - 1):
        pace.note_builds([built(20.0, 1.0)])
    assert fits_from(pace, [20.0]) == 20.0 + 35.0 + 3.0
    pace.note_builds([built(20.0, 2.0)])
    assert fits_from(pace, [20.0]) == 25.0


def test_waits_for_the_device_beside_a_tuning_of_kernels_do_not_count() -> None:
    pace = seasoned()
    pace.note_builds([built(20.0, 5.0, 30.0, 20.0)])
    assert fits_from(pace, [20.0]) == 20.0 + 5.0 + 3.0


def test_builds_that_failed_do_not_say_how_long_others_take() -> None:
    pace = seasoned()
    failure = Failure(stage="build", kind="timeout", detail="")
    failed: StepResult[BuildAnswer] = StepResult(value=None, failure=failure, spans=(), seconds=900.0)
    pace.note_builds([built(10.0, 900.0), failed])
    pace.note_builds([])
    assert fits_from(pace, [20.0]) == 28.0
