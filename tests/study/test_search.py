from autotune.records.configuration import Configuration
from autotune.study.search import ABANDON_FACTOR, Pace

EXACT, REDUCED, DEFAULT = (Configuration.of("a", {"precision": each}) for each in ("fp32", "bf16", "default"))


def test_nothing_is_hopeless_before_anything_was_timed():
    assert all(Pace().hopeless_ms(each) is None for each in (EXACT, REDUCED, DEFAULT))


def test_full_precision_is_held_against_full_precision_and_all_else_against_the_best():
    pace = Pace()
    pace.hear(REDUCED, 7.0)
    assert pace.hopeless_ms(EXACT) is None and pace.hopeless_ms(REDUCED) == ABANDON_FACTOR * 7.0
    pace.hear(EXACT, 27.0)
    pace.hear(EXACT, 40.0)
    assert pace.hopeless_ms(EXACT) == ABANDON_FACTOR * 27.0
    assert pace.hopeless_ms(REDUCED) == pace.hopeless_ms(DEFAULT) == ABANDON_FACTOR * 7.0
    pace.hear(EXACT, 5.0)
    assert pace.best_ms == 5.0 and pace.hopeless_ms(REDUCED) == ABANDON_FACTOR * 5.0
