"""The comparison in Python: autotune.compare."""

from collections.abc import Sequence
from pathlib import Path

from autotune.comparison.by_toolchain import refuse_beside
from autotune.comparison.comparison import DeviceComparison, compare_store
from autotune.comparison.prices import read_prices
from autotune.comparison.selection import RowSubject, Selection, row_subject
from autotune.comparison.supplied_roofs import read_supplied_roofs
from autotune.database.store import Store
from autotune.runtime import discovery


def compare(
    models: str | Sequence[str] = (),
    *,
    devices: str | Sequence[str] = (),
    batch: int | None = None,
    prices: str | Path | None = None,
    roofs: str | Path | None = None,
    by: RowSubject = "device",
    db: str | None = None,
) -> DeviceComparison:
    """Compare the plans of a tuning database by device class, as ``autotune compare`` does.

    ``models`` are names of studies, ``devices`` parts of SKU names (``cpu`` is this machine's); empty ones admit all.
    ``prices`` is a TOML file of prices per hour (see :mod:`autotune.comparison.prices`), ``roofs`` one of roofs of
    devices without measurements, which get predicted rows (see :mod:`autotune.comparison.supplied_roofs`). ``db`` is a
    path or a URL; otherwise ``AUTOTUNE_DB``, or SQLite in the user's data folder. ``by="weights"`` has a row for each
    weights of a model, ``by="toolchain"`` one for each toolchain that a device class was measured under, with the
    change against the older one.

    A notebook shows the result as a table; ``to_frame()`` makes it a pandas frame. Raises RequestError for an unknown
    name or a file that cannot be used, DatabaseError if the database cannot be read.
    """
    if by == "toolchain":
        refuse_beside({"roofs": roofs})
    names = [devices] if isinstance(devices, str) else list(devices)
    selection = Selection(
        models=(models,) if isinstance(models, str) else tuple(models), batch=batch, by=row_subject(by),
        **in_classes(names),
    )  # fmt: skip
    known_prices = None if prices is None else read_prices(Path(prices))
    supplied = None if roofs is None else read_supplied_roofs(Path(roofs))
    with Store.open(db) as store:
        return compare_store(store, selection, known_prices, supplied)


def in_classes(devices: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the devices and ``here`` of a selection: names of devices of this machine become their classes."""
    local = [(name, discovery.local(name)) for name in devices]
    here = {name: device.device_class for name, device in local if device is not None}
    return {"devices": tuple(here.get(name, name) for name in devices), "here": tuple(here.values())}
