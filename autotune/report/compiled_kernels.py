"""Compiled kernels as a table and as JSON."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.kernel import StoredKernel
from autotune.kernels.pack import SHOWN
from autotune.report.fitting_table import FittingTable


def compiled_document(kernels: Sequence[StoredKernel], packs: Sequence[str]) -> dict[str, object]:
    """Return the groups of kernels with their numbers, and the digests of the packs that they came in."""
    groups = [
        {
            "architecture": architecture, "kind": kind, "group": group, "abi": abi, "cuda": f"{cuda[0]}.{cuda[1]}",
            "kernels": count,
        }
        for (architecture, kind, group, abi, cuda), count in _groups(kernels)
    ]  # fmt: skip
    return {"kernels": len(kernels), "packs": list(packs), "groups": groups}


def compiled_table(kernels: Sequence[StoredKernel], packs: Sequence[str]) -> RenderableType:
    """Return a table with a row for each group of kernels, and a line with the packs."""
    if not kernels:
        return Text("no compiled kernels; to compile some: autotune kernels build --arch sm_90a")
    table = FittingTable(title=f"{len(kernels)} compiled kernels", title_justify="left")
    for column in ("architecture", "kind", "form"):
        table.add_column(column, no_wrap=True)
    for column in ("kernels", "ABI", "CUDA"):
        table.add_column(column, justify="right", no_wrap=True)
    for (architecture, kind, group, abi, cuda), count in _groups(kernels):
        table.add_row(architecture, kind, group, str(count), str(abi), f"{cuda[0]}.{cuda[1]}")
    names = ", ".join(digest[:SHOWN] for digest in packs)
    return Group(table, Text(f"packs: {names}")) if packs else table


def _groups(kernels: Sequence[StoredKernel]) -> list[tuple[tuple[str, str, str, int, tuple[int, int]], int]]:
    counts = Counter((one.architecture, one.kind, one.group, one.abi, one.cuda) for one in kernels)
    return sorted(counts.items())
