from autotune.records.configuration import Configuration
from autotune.study.pace import ABANDON_FACTOR, Pace

EXACT, REDUCED, DEFAULT = (Configuration.of("a", {"precision": each}) for each in ("fp32", "bf16", "default"))


def test_no_candidate_is_abandoned_before_anything_was_timed():
    assert all(Pace().abandon_ms(each) is None for each in (EXACT, REDUCED, DEFAULT))


def test_full_precision_is_held_against_full_precision_and_all_else_against_the_best():
    pace = Pace()
    pace.note(REDUCED, 7.0)
    assert pace.abandon_ms(EXACT) is None and pace.abandon_ms(REDUCED) == ABANDON_FACTOR * 7.0
    pace.note(EXACT, 27.0)
    pace.note(EXACT, 40.0)
    assert pace.abandon_ms(EXACT) == ABANDON_FACTOR * 27.0
    assert pace.abandon_ms(REDUCED) == pace.abandon_ms(DEFAULT) == ABANDON_FACTOR * 7.0
    pace.note(EXACT, 5.0)
    assert pace.best_ms == 5.0 and pace.abandon_ms(REDUCED) == ABANDON_FACTOR * 5.0
