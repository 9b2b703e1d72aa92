"""A plan looked up among a million."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

from sqlalchemy import insert, text

from autotune.database.location import locate
from autotune.database.rows import plan_values
from autotune.database.schema import PlanTable
from autotune.database.store import Store
from autotune.measure.percentiles import summary
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.places import own_database
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.evidence import PlanEvidence
from autotune.records.objective import Objective
from autotune.records.plan import Plan

__all__ = ["check", "first_query_ms"]

WARM_MS = 1.0
COLD_MS = 20.0
AT_ONCE = 10_000
OBJECTIVE = Objective()
PLAN = Plan(
    uid="0",
    name="model",
    batch=1,
    structure="",
    weights=sha256(b"weights").hexdigest(),
    device=Device(kind="cuda", name="NVIDIA H200", uuid="reliability", capability=(9, 0), power_limit_w=700),
    toolchain=Toolchain.of({"torch": "2.11.0"}),
    objective=OBJECTIVE,
    serve_as="any",
    configuration=Configuration.of("eager", {"level": 1}),
    status="promoted",
    artifact=None,
    latency_ms=1.0,
    interval_ms=(0.9, 1.1),
    baseline_latency_ms=2.0,
    speedup=2.0,
    signal_error=1e-3,
    evidence=PlanEvidence.from_dict({"finalists": []}),
    created="2026-01-01T00:00:00+00:00",
)


def check(campaign: Campaign) -> list[CheckResult]:
    """Both the first look-up of a process and every further one are quick."""
    return [outcome for kind in campaign.databases for outcome in _times(campaign, kind)]


def _times(campaign: Campaign, kind: str) -> Iterator[CheckResult]:
    count, random_numbers = campaign.pick(1_000_000, 20_000), random.Random(campaign.seed)
    with own_database(campaign, kind, "plans") as url:
        with Store.open(url) as store:
            _fill(store, count)
            numbers = [random_numbers.randrange(count) for _ in range(campaign.pick(20_000, 1_500))]
            warm_up = len(numbers) // 10
            warm = [_look_up_ms(store, number) for number in numbers][warm_up:]
        cold = [_in_a_process(url, random_numbers.randrange(count)) for _ in range(campaign.pick(40, 3))]
    p99 = summary(warm).p99
    assert p99 is not None, "the short form too looks up often enough to back a p99"
    yield CheckResult(
        check=f"look-up among {count:,} plans, {kind}",
        figure=f"p99 {p99:.2f} ms of {len(warm):,}",
        limit=f"p99 <= {WARM_MS:g} ms",
        passed=p99 <= WARM_MS,
        raw={"plans": count, **summary(warm).as_dict()},
    )
    yield CheckResult(
        check=f"first look-up of a process, {kind}",
        figure=f"{max(cold):.1f} ms at most in {len(cold)} processes (open, query and close; imports are done)",
        limit=f"<= {COLD_MS:g} ms",
        passed=max(cold) <= COLD_MS,
        raw={"first_ms": [rounded(duration_ms) for duration_ms in cold]},
    )


def _uid(number: int) -> str:
    return f"{number:08d}"


def _structure(number: int) -> str:
    return _uid(number) + sha256(str(number).encode()).hexdigest()[8:]  # sorted, so that a million are soon inserted


def _fill(store: Store, count: int) -> None:
    values = plan_values(PLAN)
    for start in range(0, count, AT_ONCE):
        rows: list[dict[str, object]] = []
        for number in range(start, min(start + AT_ONCE, count)):
            own = {"uid": _uid(number), "name": f"model{number % 1000}", "structure": _structure(number)}
            rows.append({**values, **own, "record": {**values["record"], **own}})
        with store.transactions.writing() as session:
            session.connection().execute(insert(PlanTable), rows)
    with store.transactions.writing() as session:
        session.execute(text("ANALYZE plan"))


def _look_up_ms(store: Store, number: int) -> float:
    structure = _structure(number)
    started = time.perf_counter_ns()
    plan = store.plans.find(replace(PLAN.key, structure=structure, objective=OBJECTIVE))
    elapsed = time.perf_counter_ns() - started
    if plan is None or plan.uid != _uid(number):
        raise RuntimeError(f"plan {number} was asked for, and the answer is {plan}")
    return elapsed / 1e6


def first_query_ms() -> None:
    """Run one look-up as this process's first; the standard input holds the URL and the number of the plan."""
    url, number = json.load(sys.stdin)
    locate(url).url.get_dialect().import_dbapi()  # as the other imports, before the clock starts
    started = time.perf_counter_ns()
    with Store.open(url, create=False) as store:
        _look_up_ms(store, number)
    sys.stdout.write(str((time.perf_counter_ns() - started) / 1e6))


def _in_a_process(url: str, number: int) -> float:
    program = "from autotune.programs.reliability import look_up; look_up.first_query_ms()"
    ran = subprocess.run(  # not as arguments, which every user of the host can see: the URL has a password
        [sys.executable, "-c", program], input=json.dumps([url, number]), capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise RuntimeError(f"a look-up failed: {ran.stderr[-2000:]}")
    return float(ran.stdout)
