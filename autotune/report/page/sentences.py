"""The sentences of the page: the winners of a workload, and the subject of the whole comparison."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from autotune.comparison.comparison import ComparedWorkload, DeviceComparison, Winner
from autotune.comparison.prices import Prices

SUPERLATIVES = {
    "latency": "the fastest",
    "throughput": "the one with the highest throughput",
    "energy": "the one that needs the least energy",
    "memory": "the one that needs the least memory",
    "cost": "the cheapest",
}
"""The first place by each quantity, in the order of the sentences."""


def winners(workload: ComparedWorkload) -> Iterator[str]:
    """Yield a sentence for each quantity that has a winner or a tie; a single one if there is none."""
    first = workload.winners
    if not first:
        number = len(workload.compared)
        yield "No device class can be compared." if number == 0 else "There is no other device class to compare with."
    for quantity, superlative in SUPERLATIVES.items():
        # With one request at a time throughput only repeats the order of the latencies.
        if quantity in first and not (quantity == "throughput" and _same_classes(first, "latency", quantity)):
            yield _first_place(first[quantity], superlative)


def _same_classes(first: Mapping[str, Winner], quantity: str, other: str) -> bool:
    return quantity in first and first[quantity].device_classes == first[other].device_classes


def _first_place(winner: Winner, superlative: str) -> str:
    names = listed(winner.device_classes)
    margin = "" if winner.margin is None else f", {winner.margin:.2f} times better than the next"
    if not winner.is_tie:
        return f"{names} is {superlative}{margin}."
    return f"{names} tie for {superlative}: their intervals overlap{margin}."


def break_evens(workload: ComparedWorkload, prices: Prices | None) -> Iterator[str]:
    """Yield a sentence for each device class that would cost as much as the cheapest at another price."""
    for entry in workload.break_evens(prices):
        currency = "" if prices is None else prices.currency
        yield f"{entry.device_class} would cost as much as {entry.against} at {entry.per_hour:.4g} {currency} an hour."


def subject(comparison: DeviceComparison) -> str:
    """Return the number of workloads, models and device classes, and the names of the latter."""
    workloads, classes = comparison.workloads, comparison.device_classes
    models = {workload.name for workload in workloads}
    different = {(workload.name, workload.batch, workload.objective) for workload in workloads}
    return (
        f"{counted(len(different), 'workload')} of {counted(len(models), 'model')} on "
        f"{counted(len(classes), 'device class', 'device classes')}: {listed(_short(classes)) or 'none'}."
    )


def _short(classes: Sequence[str]) -> list[str]:
    """Return the SKU of each device class, and the whole class if several share the SKU."""
    skus = Counter(name.split("/", 1)[0] for name in classes)
    return [name.split("/", 1)[0] if skus[name.split("/", 1)[0]] == 1 else name for name in classes]


def priced(prices: Prices | None) -> str:
    """Return the source of the costs, empty without prices."""
    if prices is None:
        return ""
    devices = ", ".join(f"{name} {price:g}" for name, price in prices.per_hour.items())
    electricity = prices.electricity_per_kwh
    energy = "the energy left out" if electricity is None else f"electricity at {electricity:g} per kWh"
    return f"Prices per hour in {prices.currency}, from {prices.path or 'Python'}: {devices}; {energy}."


def listed(names: Sequence[str]) -> str:
    """Join names with commas and a last "and"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def counted(number: int, singular: str, plural: str = "") -> str:
    """Write a number with its noun."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
