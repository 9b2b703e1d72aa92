"""Comparisons to write pages of: a plain one, and one in which every free text tries to become a tag."""

from dataclasses import replace

from autotune.comparison.comparison import DeviceComparison, compare_store
from autotune.comparison.prices import Prices
from autotune.database.store import Store
from autotune.records.configuration import Configuration
from autotune.records.objective import Metric, Objective
from tests.comparison.database import CPU, H200, L4, add, energy

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


def plain(store: Store) -> DeviceComparison:
    """Two models on three devices: a compared workload, one with apart and missing cells, and one by energy."""
    add(store, H200, 0.5, configuration=FAST)
    add(store, L4, 2.0, configuration=SLOW)
    add(store, CPU, 40.0, configuration=FAST)
    add(store, H200, 1.0, name="bert-base")
    add(store, L4, 3.0, name="bert-base", flags=("busy_host",))
    add(store, H200, 0.5, batch=8, **energy(4.0))
    add(store, L4, 2.5, batch=8, **energy(1.0))
    return compare_store(store, prices=PRICES)


def hostile(store: Store) -> DeviceComparison:
    """Tags in every text that comes from a user or a model."""
    name = NAME
    objective = Objective(metrics=(Metric(function=f"x.py:{name}", at_most=1.0),))
    values = {"objective": objective, "name": name, "weights": name}
    split = replace(H200, mig_profile=MARKUP)
    add(store, H200, 0.5, configuration=Configuration.of("eager", {"layout": name}), **values)
    add(store, split, 2.0, configuration=Configuration.of("eager", {"layout": "x"}), serve_as="any", **values)
    add(store, L4, 2.5, flags=("busy_host",), **{**values, "serve_as": name})
    prices = Prices(currency=name, per_hour={"h200": 4.0, name: 1.0}, path=name)
    comparison = compare_store(store, prices=prices)
    return replace(comparison, notes=(*comparison.notes, name))
