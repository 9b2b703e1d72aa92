from itertools import product

import pytest

from autotune.report.places import OWN, grouped, places_words


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([f"encoder.layer.{n}.attention" for n in range(12)], [("encoder.layer.{0..11}.attention", 12)]),
        (["layer.0.a", "layer.2.a", "layer.5.a"], [("layer.{0,2,5}.a", 3)]),
        (["layer.3.a"], [("layer.3.a", 1)]),
        (["layer.3.a", "layer.3.a"], [("layer.3.a", 2)]),
        ([f"s.{a}.l.{b}" for a, b in product(range(2), range(3))], [("s.{0..1}.l.{0..2}", 6)]),
        (["s.0.l.0", "s.0.l.1", "s.1.l.0"], [("s.*.l.*", 3)]),
        (["s.0.l.0.k", "s.1.l.1.k"], [("s.*.l.*.k", 2)]),
        (["a.0", "b", "a.1"], [("a.{0..1}", 2), ("b", 1)]),
        (["", ""], [(OWN, 2)]),
        (["layer.10.a", "layer.9.a"], [("layer.{9..10}.a", 2)]),
        ([], []),
    ],
)
def test_places_that_differ_in_numbers_alone_are_one_group(paths, expected):
    assert grouped(paths) == expected
    assert sum(count for _, count in grouped(paths)) == len(paths)


def test_many_groups_end_with_how_many_places_are_left():
    assert places_words(["a.0", "a.1", "b", "c", "c"], most=2) == "a.{0..1} ×2, b, and 2 more"
    assert places_words(["a.0", "b"], most=2) == "a.0, b"
    assert places_words([]) == ""
