"""The turns of loads and builds outside a study, and what sets them."""

import threading
from contextlib import nullcontext

import pytest

from autotune.runtime.turn import alone, computes_by, computing, shared_turn, takes_turn_by
from tests.turns import RecordedTurns


@pytest.mark.parametrize("part", [alone, computing])
def test_outside_a_study_nothing_is_waited_for(part):
    with part(), part():
        pass
    assert shared_turn() is None


def test_the_turns_of_a_load_are_not_those_of_a_build():
    of_load, of_build = RecordedTurns(), RecordedTurns()
    with takes_turn_by(of_load), computes_by(of_build):
        with alone():
            assert (of_load.depth, of_build.depth) == (1, 0)
        with computing():
            assert (of_load.depth, of_build.depth) == (0, 1)
    with alone(), computing():
        assert (of_load.depth, of_build.depth) == (0, 0)


def test_the_turns_end_with_their_context_also_after_an_error():
    with pytest.raises(ValueError, match="no kernel"), computes_by(RecordedTurns()):
        raise ValueError("no kernel")
    assert shared_turn() is None


def test_another_thread_has_turns_only_if_they_are_handed_to_it():
    turns, depths = RecordedTurns(), []

    def compute(turn):
        with computing():
            depths.append(turns.depth)
        with turn() if turn else nullcontext():
            depths.append(turns.depth)

    with computes_by(turns):
        thread = threading.Thread(target=compute, args=(shared_turn(),))
        thread.start()
        thread.join()
    assert depths == [0, 1]
