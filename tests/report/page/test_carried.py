"""The table of carried plans."""

from autotune.comparison.carried import CarriedPlan
from autotune.comparison.figures import Figure
from autotune.report.page.carried import COLUMNS, CarriedSection, carried_section
from tests.report.page.comparisons import SLOW


def carried(state="measured", **changes):
    values = {
        "from_class": "nvidia-l4/whole/72w", "to_class": "nvidia-h200/whole/700w", "unit": "ms",
        "own": Figure(value=0.5, interval=(0.49, 0.51)), "carried": Figure(value=0.56, interval=(0.55, 0.57)),
        "loss": Figure(value=0.12, interval=(0.111, 0.129)), "configuration": SLOW, "verdict": "slower",
    }  # fmt: skip
    return CarriedPlan(**{"state": state, **values, **changes})


def texts(plan):
    (row,) = carried_section([plan]).rows
    return {column.title: (entry.text, entry.below) for column, entry in zip(COLUMNS, row.entries, strict=True)}


def test_a_measured_plan_has_both_figures_and_its_loss():
    assert texts(carried()) == {
        "timed on": ("nvidia-h200/whole/700w", ""),
        "configuration": ("tensorrt", "fp16, layout=nchw, level=3"),
        "carried plan [95% interval]": ("0.5600 ms", "[0.5500 – 0.5700]"),
        "plan tuned there [95% interval]": ("0.5000 ms", "[0.4900 – 0.5100]"),
        "loss [95% interval]": ("+12.0%", "[+11.1% – +12.9%]"),
        "result": ("slower", ""),
    }


def test_a_throughput_is_shown_as_one():
    own = Figure(value=0.5, interval=(0.4, 0.625))
    shown = texts(carried(unit="ms/item", own=own))["plan tuned there [95% interval]"]
    assert shown == ("2,000.0 items/s", "[1,600.0 – 2,500.0]")


def test_a_plan_that_was_only_screened_has_no_interval():
    reason = "too slow in screening to be timed in the finals"
    shown = texts(carried("outclassed", carried=Figure(value=5.0), loss=Figure(value=9.0), reason=reason))
    assert shown["carried plan [95% interval]"] == ("5.000 ms", "")
    assert shown["loss [95% interval]"] == ("+900.0%", "") and shown["result"] == ("slower", reason)


def test_a_plan_that_failed_says_why_and_has_no_figure():
    reason = "build: error: no such kernel"
    failed = carried("failed", carried=Figure(note=reason), loss=Figure(note=reason), reason=reason, verdict="")
    shown = texts(failed)
    assert shown["loss [95% interval]"] == shown["carried plan [95% interval]"] == ("not measured", "")
    assert shown["result"] == ("failed", reason)
    (row,) = carried_section([failed]).rows
    assert [entry.title for entry in row.entries if entry.is_absent] == [reason, reason]


def test_plans_that_were_not_carried_are_named_beside_others_only():
    missing = carried("missing", carried=Figure(), loss=Figure(), verdict="", command="autotune tune --carry l4")
    assert carried_section([missing]) == CarriedSection() == carried_section([])
    section = carried_section([missing, carried()])
    assert len(section.rows) == 1 and [entry.command for entry in section.missing] == ["autotune tune --carry l4"]
