"""Short names of the rows of a workload, for plots and for headings: labels, label."""

from collections import Counter
from collections.abc import Mapping, Sequence

from autotune.comparison.cell import Cell


def labels(cells: Sequence[Cell]) -> Mapping[str, str]:
    """Return a short name for each device class: its SKU if no other one shares it."""
    skus = Counter(sku for sku, _ in {(cell.sku, cell.device_class) for cell in cells})
    return {cell.device_class: cell.sku if skus[cell.sku] == 1 else cell.device_class for cell in cells}


def label(cell: Cell, names: Mapping[str, str]) -> str:
    """Return the short name of a cell: of its device class, or of its toolchain if these are the rows."""
    return str(cell.toolchain or "") or names[cell.device_class]
