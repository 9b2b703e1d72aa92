"""Comparisons to write pages of: a plain one, and one in which every free text tries to become a tag."""

from collections.abc import Sequence
from dataclasses import replace

from autotune.comparison.comparison import DeviceComparison, compare_store
from autotune.comparison.prices import Prices
from autotune.database.store import Store
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.evidence import CarriedRecord, FinalistRecord, PlanEvidence
from autotune.records.objective import Metric, Objective
from autotune.testing.sample_records import sample_roofs
from tests.comparison.database import CPU, H200, L4, add, count_work, energy

A100 = Device(kind="cuda", name="NVIDIA A100", uuid="GPU-3", capability=(8, 0), power_limit_w=400)

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
MARKUP = "<b>&amp;</b>"
"""Tags and an entity that plotly reads in its texts."""
NAME = f"{SCRIPT}{IMAGE}{MARKUP}"
PRICES = Prices(
    currency="EUR", per_hour={"h200": 4.0, "l4": 0.8, "epyc": 0.1}, electricity_per_kwh=0.25, path="prices.toml"
)
FAST = Configuration.of("tensorrt", {"precision": "fp16", "layout": "nhwc", "level": 3})
SLOW = Configuration.of("tensorrt", {"precision": "fp16", "layout": "nchw", "level": 3})
H200_ROOFS = sample_roofs(H200, copy_gb_s=1000.0, matrix_tflops={"fp32": 50.0, "fp16": 300.0}, launch_us=10.0)
L4_ROOFS = sample_roofs(L4, copy_gb_s=300.0, matrix_tflops={"fp32": 15.0, "fp16": 60.0}, launch_us=10.0)


def plain(store: Store) -> DeviceComparison:
    """Two models on three devices: a compared workload, one with apart and missing cells, and one by energy.

    The roofs of the GPUs and the work of resnet50 are known.
    """
    add(store, H200, 0.5, configuration=FAST)
    add(store, L4, 2.0, configuration=SLOW)
    add(store, CPU, 40.0, configuration=FAST)
    add(store, H200, 1.0, name="bert-base")
    add(store, L4, 3.0, name="bert-base", flags=("busy_host",))
    add(store, H200, 0.5, batch=8, **energy(4.0))
    add(store, L4, 2.5, batch=8, **energy(1.0))
    for batch in (1, 8):
        count_work(store, batch=batch, flops=batch * 8 * 10**9, traffic_bytes=10**8)
    for roofs in (H200_ROOFS, L4_ROOFS):
        store.roofs.put(roofs)
    return compare_store(store, prices=PRICES)


def carried(store: Store) -> DeviceComparison:
    """The plan of the L4 loses 25% on the H200, that of the A100 fails there with tags, and others were not carried."""
    plan = add(store, H200, 0.5, configuration=FAST)
    add(store, L4, 2.0, configuration=SLOW)
    failing = Configuration.of("eager", {"layout": NAME})
    add(store, A100, 1.0, configuration=failing)
    rounds = [0.5 * (1 + 0.001 * (index % 5)) for index in range(12)]
    slower = [1.25 * value * (1 + 0.002 * (index % 3)) for index, value in enumerate(rounds)]
    records = (
        CarriedRecord(device_class=L4.device_class, plan="p", configuration=SLOW, trial="carried"),
        CarriedRecord(device_class=A100.device_class, plan="q", configuration=failing, failure=NAME),
    )
    evidence = replace(
        PlanEvidence.from_dict(plan.evidence.as_dict()),
        finalists=(_finalist(plan.evidence.trial, FAST, rounds), _finalist("carried", SLOW, slower)),
        carried=records, processes=tuple(index // 4 for index in range(12)), stored_keys=None,
    )  # fmt: skip
    store.plans.promote(replace(plan, evidence=evidence))
    return compare_store(store)


def _finalist(uid: str, configuration: Configuration, times_ms: Sequence[float]) -> FinalistRecord:
    return FinalistRecord(
        uid=uid, configuration=configuration, latency_ms=sorted(times_ms)[len(times_ms) // 2],
        interval_ms=(min(times_ms), max(times_ms)), samples_ms=tuple((value,) for value in times_ms),
    )  # fmt: skip


def hostile(store: Store) -> DeviceComparison:
    """Tags in every text that comes from a user or a model."""
    name = NAME
    objective = Objective(metrics=(Metric(function=f"x.py:{name}", at_most=1.0),))
    values = {"objective": objective, "name": name, "weights": name}
    split = replace(H200, mig_profile=MARKUP)
    add(store, H200, 0.5, configuration=Configuration.of("eager", {"layout": name}), **values)
    add(store, split, 2.0, configuration=Configuration.of("eager", {"layout": "x"}), serve_as="any", **values)
    add(store, L4, 2.5, flags=("busy_host",), **{**values, "serve_as": name})
    count_work(store, name, flops=10**9, traffic_bytes=10**8)
    for device in (H200, split):
        store.roofs.put(sample_roofs(device))
    prices = Prices(currency=name, per_hour={"h200": 4.0, name: 1.0}, path=name)
    comparison = compare_store(store, prices=prices)
    return replace(comparison, notes=(*comparison.notes, name))
