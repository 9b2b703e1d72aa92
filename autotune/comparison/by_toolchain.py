"""The toolchains that the plans of a device class were measured under, as rows: with_changes, newest_slower.

The rows are the plans of a database and its former plans. Their samples do not pair, so a change counts if the
intervals of both allow no other conclusion.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from autotune.comparison.cell import Cell, ToolchainEntries
from autotune.comparison.figures import compared_figure
from autotune.comparison.protocol import Group, group_of
from autotune.comparison.ratio import ratio_of
from autotune.comparison.same_model import SameModels
from autotune.errors import RequestError
from autotune.records.plan import Plan

ONE_TOOLCHAIN = (
    "every plan was measured under one toolchain only; after an upgrade measure again with autotune tune STUDY_FILE "
    "--again, or merge the export of a host with other versions: autotune db merge FILE"
)


def refuse_beside(options: Mapping[str, object]) -> None:
    """Raise RequestError for the first option that has a value although the rows are toolchains."""
    for name, value in options.items():
        given = name if value is True else f"{name} {value}"
        if value is not None:
            raise RequestError(
                f"toolchains were to be compared with {given}", found="both --by toolchain and " + name,
                expected=f"one of them: {name} is about the present plans of devices",
                run="autotune compare --by toolchain",
            )  # fmt: skip


def with_changes(cells: Sequence[Cell], threshold: float, same: SameModels) -> list[Cell]:
    """Return the cells of one device class, each with its toolchain: compared ones first, then the newest first.

    A compared cell has the change against the next older compared one of the same structure, constraints and serving
    format; ``threshold`` is a share, such as 0.03.
    """
    pairs = sorted(_planned(cells), key=lambda pair: (pair[1].created, pair[1].uid))
    names = _differing([plan for _, plan in pairs])
    newest = {group_of(plan, same): plan.uid for _, plan in pairs}
    older: dict[Group, Cell] = {}
    changed = []
    for cell, plan in pairs:
        versions = plan.measured_under.as_dict()
        group = group_of(plan, same)
        entries = ToolchainEntries(
            versions={name: versions.get(name, "") for name in names}, is_newest=newest[group] == plan.uid
        )
        before = older.get(group)
        if cell.state == "compared" and before is not None:
            entries = _against(entries, plan, before, threshold)
        # A comment of the shell: the command can be copied, but it takes the versions that are installed.
        command = f"{cell.command}  # with {entries}" if names else cell.command
        changed.append(replace(cell, toolchain=entries, command=command))
        if cell.state == "compared":
            older[group] = changed[-1]
    return sorted(reversed(changed), key=lambda cell: cell.state != "compared")


def newest_slower(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells that are slower than the next older one, of those that are the newest of their kind."""
    newest = [(cell, cell.toolchain) for cell in cells if cell.toolchain is not None and cell.toolchain.is_newest]
    return [cell for cell, row in newest if row.change is not None and row.change.judgement == "slower"]


def _against(entries: ToolchainEntries, plan: Plan, before: Cell, threshold: float) -> ToolchainEntries:
    if before.plan is None or before.toolchain is None:
        return entries
    change = ratio_of(compared_figure(plan), compared_figure(before.plan), threshold)
    return replace(entries, before=before.toolchain.versions, change=change)


def _planned(cells: Iterable[Cell]) -> list[tuple[Cell, Plan]]:
    return [(cell, cell.plan) for cell in cells if cell.plan is not None]


def _differing(plans: Sequence[Plan]) -> list[str]:
    """Return the entries in which the toolchains of some plans differ."""
    toolchains = [plan.measured_under.as_dict() for plan in plans]
    names = sorted({name for toolchain in toolchains for name in toolchain})
    return [name for name in names if len({toolchain.get(name) for toolchain in toolchains}) > 1]
