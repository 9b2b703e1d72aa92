"""What a plan for a serving format costs."""

from dataclasses import replace

import pytest

from autotune.records.configuration import Configuration
from autotune.records.evidence import FinalistRecord, PlanEvidence
from autotune.report.served import served_lines, todays_lines
from autotune.testing.sample_records import PLAN


def plan_with(eager_ms, serve_as="torchscript"):
    eager = Configuration.of("eager", {"precision": "fp32", "form": "module"})
    finalists = (
        FinalistRecord(configuration=PLAN.configuration, latency_ms=2.0, interval_ms=(1.9, 2.1)),
        FinalistRecord(configuration=eager, latency_ms=eager_ms, interval_ms=(1.0, 9.0), is_unserved=True),
    )
    return replace(PLAN, serve_as=serve_as, latency_ms=2.0, evidence=PlanEvidence(finalists=finalists))


@pytest.mark.parametrize(("eager_ms", "text"), [(3.0, "the plan is 1.50× as fast"), (1.0, "slower: the plan is 0.50×")])
def test_it_says_so_if_the_plan_is_slower_than_todays_way(eager_ms, text):
    (line,) = todays_lines(plan_with(eager_ms))
    assert line.startswith("today: eager (") and "no torchscript file" in line and text in line


def test_it_compares_with_the_best_plan_in_any_format_if_one_is_known():
    plan = plan_with(3.0)
    assert "unknown; the same study with serve_as: any" in served_lines(plan, None)[1]
    assert "unknown" in served_lines(plan, plan)[1], "the plan itself is the fastest that is known"
    free = replace(PLAN, uid="f" * 32, latency_ms=0.5)
    assert "4.00× as fast as this plan" in served_lines(plan, free)[1] and "ffffffff" in served_lines(plan, free)[1]


def test_a_plan_that_may_have_any_format_has_no_such_lines():
    assert served_lines(plan_with(3.0, serve_as="any"), None) == []
