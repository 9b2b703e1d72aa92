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
from autotune.errors import RequestError
from autotune.records.plan import Plan

ONE_TOOLCHAIN = (
    "every plan was measured under one toolchain only; after an upgrade measure again with autotune tune STUDY_FILE "
    "--again, or merge the export of a host with other versions: autotune db merge FILE"
)


def refuse_beside(options: Mapping[str, object]) -> None:
    """Raise RequestError for the first option that has a value although the rows are toolchains."""
    for name, value in options.items():
        if value is not None:
            raise RequestError(
                f"toolchains were to be compared with {name} {value}", found="both --by toolchain and " + name,
                expected=f"one of them: {name} is about the present plans of devices",
                run="autotune compare --by toolchain",
            )  # fmt: skip


def with_changes(cells: Sequence[Cell], threshold: float) -> list[Cell]:
    """Return the cells of one device class, each with its toolchain: compared ones first, then the newest first.

    A compared cell has the change against the next older compared one of the same structure, constraints and serving
    format; ``threshold`` is a share, such as 0.03.
    """
    pairs = sorted(_planned(cells), key=lambda pair: (pair[1].created, pair[1].uid))
    names = _differing([plan for _, plan in pairs])
    older: dict[Group, Cell] = {}
    changed = []
    for cell, plan in pairs:
        versions = plan.measured_under.as_dict()
        entries = ToolchainEntries(versions={name: versions.get(name, "") for name in names})
        before = older.get(group_of(plan))
        if cell.state == "compared" and before is not None:
            entries = _against(entries, plan, before, threshold)
        # A comment of the shell: the command can be copied, but it takes the versions that are installed.
        command = f"{cell.command}  # with {entries}" if names else cell.command
        changed.append(replace(cell, toolchain=entries, command=command))
        if cell.state == "compared":
            older[group_of(plan)] = changed[-1]
    return sorted(reversed(changed), key=lambda cell: cell.state != "compared")


def newest_slower(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells that are slower than the next older one, of those that are the newest of their kind."""
    newest: dict[tuple[str, int, str, str, Group], tuple[Cell, Plan]] = {}
    for cell, plan in sorted(_planned(cells), key=lambda pair: (pair[1].created, pair[1].uid)):
        newest[plan.name, plan.batch, plan.objective.name, cell.device_class, group_of(plan)] = cell, plan
    changes = [(cell, cell.toolchain.change) for cell, _ in newest.values() if cell.toolchain is not None]
    return [cell for cell, change in changes if change is not None and change.judgement == "slower"]


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
