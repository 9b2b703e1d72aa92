"""The data of the plots."""

import json

import pytest

from autotune.comparison.cell import Cell
from autotune.report.page.labels import labels
from autotune.report.page.plots import as_script, pareto_front


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 3), (2, 2), (3, 1)], [0, 1, 2]),
        ([(1, 1), (2, 2)], [0]),
        ([(2, 1), (1, 1), (1, 2)], [1]),
        ([(1, 1), (1, 1)], [0, 1]),
    ],
)
def test_no_point_of_the_front_is_beaten_in_both(points, front):
    assert pareto_front(points) == front


def test_json_in_a_script_element_cannot_end_it():
    data = {"name": "</script><!--<script>&\u2028"}
    text = as_script(data)
    assert not set(text) & set("<>&\u2028") and json.loads(text) == data
    with pytest.raises(ValueError):
        as_script(float("nan"))


def test_a_device_class_is_named_by_its_sku_unless_another_shares_it():
    classes = ("h200/whole/700w", "h200/1g.10gb/700w", "l4/whole/72w", "l4/whole/72w")
    names = labels([Cell(device_class=name, state="compared", command="") for name in classes])
    assert names == {classes[0]: classes[0], classes[1]: classes[1], "l4/whole/72w": "l4"}
