"""The commands ``autotune compare`` and ``autotune prices check``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import Batch, Db, Json, errors, open_store, print_json, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from autotune.comparison.bound import WithinBound
    from autotune.comparison.comparison import DeviceComparison
    from autotune.comparison.prices import Prices
    from autotune.comparison.regression import Change
    from autotune.comparison.selection import Selection

app = typer.Typer(help="Check a file of prices.", no_args_is_help=True)

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names of studies; without them, all.")]
Devices = Annotated[
    str | None, typer.Option("--devices", metavar="A,B", help="Words of SKU names; cpu is the CPU of this machine.")
]
PricesFile = Annotated[Path | None, typer.Option("--prices", metavar="FILE", help="Your prices per hour, a TOML file.")]
RoofsFile = Annotated[
    Path | None,
    typer.Option("--roofs", metavar="FILE", help="Roofs of devices without measurements: adds predicted rows."),
]
At = Annotated[
    str | None,
    typer.Option("--at", metavar="BOUND", help="Also the most that each device serves within p99<=10ms, say."),
]
By = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="SUBJECT",
        help="A row for each device, for each weights of a model, or for each toolchain of a device class, with the "
        "change against the older one: device, weights, toolchain.",
    ),
]
Baseline = Annotated[
    Path | None, typer.Option("--baseline", metavar="FILE", help="An earlier output of --json to compare with.")
]
FailAbove = Annotated[
    str | None,
    typer.Option("--fail-above", metavar="SHARE", help="Exit with 1 if a plan became slower by more, such as 3%."),
]
Carried = Annotated[
    bool,
    typer.Option("--carried", help="Also what a plan loses on another device, against the one tuned there."),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page for a browser, which needs no network.")
]


def compare(
    models: Models = None,
    devices: Devices = None,
    batch: Batch = None,
    prices: PricesFile = None,
    roofs: RoofsFile = None,
    at: At = None,
    by: By = "device",
    baseline: Baseline = None,
    fail_above: FailAbove = None,
    carried: Carried = False,
    html: Html = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Compare devices: for each model, batch and objective one row per device class, with the winners.

    Only figures that were measured under the same protocol and constraints stand side by side; others are grey, with
    the reason. With --baseline the plans of now are compared with an earlier output of --json, with --by toolchain each
    plan with the one that was measured under the toolchain before.
    """
    from autotune.comparison.bound import parse_bound, within_bound
    from autotune.comparison.comparison import compare_store
    from autotune.comparison.regression import changes, read_baseline
    from autotune.comparison.supplied_roofs import read_supplied_roofs
    from autotune.report.carried import carried_tables
    from autotune.report.comparison import bound_table, changes_table
    from autotune.report.toolchains import tables_of

    selection = _selection(models, batch, devices, by)
    _refuse_beside_toolchains(
        selection, {"--baseline": baseline, "--at": at, "--roofs": roofs, "--carried": carried or None}
    )
    if html is not None:
        _require_page()
    known_prices, bound = _prices(prices), None if at is None else parse_bound(at)
    threshold = _share(fail_above, has_older=baseline is not None or selection.by == "toolchain")
    supplied = None if roofs is None else read_supplied_roofs(roofs)
    before = None if baseline is None else read_baseline(baseline)
    with open_store(db) as store:
        comparison = compare_store(store, selection, known_prices, supplied, threshold)
        held = None if bound is None else within_bound(comparison, bound, store)
    changed = None if before is None else changes(comparison, before, threshold, selection)
    if html is not None:
        _write_page(comparison, html)
    if json:
        print_json(_document(comparison, at, held, changed))
    else:
        show(tables_of(comparison))
        if carried:
            show(carried_tables(comparison))
        if bound is not None and held is not None:
            show(bound_table(held, bound, comparison))
        if changed is not None:
            show(changes_table(changed, threshold))
    slower = _slower(comparison, changed)
    if fail_above is not None and slower:
        older = "under the toolchain before" if selection.by == "toolchain" else "the baseline"
        errors().print(f"slower than {older} by more than {threshold:.1%}: {slower} plans")
        raise typer.Exit(1)


def _slower(comparison: "DeviceComparison", changed: "Sequence[Change] | None") -> int:
    """Return the number of plans that became slower: against a baseline, or than under the toolchain before."""
    if changed is not None:
        return sum(change.judgement == "slower" for change in changed)
    from autotune.comparison.by_toolchain import newest_slower

    return len(newest_slower(cell for _, cell in comparison.cells()))


def _document(
    comparison: "DeviceComparison",
    at: str | None,
    held: "Sequence[WithinBound] | None",
    changed: "Sequence[Change] | None",
) -> dict[str, object]:
    document = comparison.as_dict()
    if held is not None:
        document["within_bound"] = {"bound": at, "devices": [entry.as_dict() for entry in held]}
    if changed is not None:
        document["changes"] = [change.as_dict() for change in changed]
    return document


@app.command("check")
def check_prices(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of prices.")], db: Db = None, json: Json = False
) -> None:
    """Say which prices of a file fit no device of the database, and which devices have no price."""
    from autotune.comparison.prices import read_prices, unknown_names
    from autotune.report.comparison import prices_view

    prices = read_prices(file)
    with open_store(db) as store:
        classes = sorted({plan.device.device_class for plan in store.plans.list()})
    unknown = unknown_names(prices, classes)
    priced = {name: prices.of(name) for name in classes}
    if json:
        print_json({**prices.as_dict(), "unknown": unknown, "priced": priced})
    else:
        show(prices_view(prices, priced, unknown))
    if unknown:
        raise typer.Exit(1)


def _selection(models: list[str] | None, batch: int | None, devices: str | None, by: str) -> "Selection":
    from autotune.comparison.api import in_classes
    from autotune.comparison.selection import Selection, row_subject
    from autotune.errors import RequestError

    parts = [part.strip() for part in (devices or "").split(",") if part.strip()]
    if devices is not None and not parts:
        raise RequestError(
            f"--devices {devices!r} names no device", expected="words of SKU names, such as H200,cpu; without it, all"
        )
    return Selection(models=tuple(models or ()), batch=batch, by=row_subject(by), **in_classes(parts))


def _refuse_beside_toolchains(selection: "Selection", options: "Mapping[str, object]") -> None:
    from autotune.comparison.by_toolchain import refuse_beside

    if selection.by == "toolchain":
        refuse_beside(options)


def _prices(path: Path | None) -> "Prices | None":
    from autotune.comparison.prices import read_prices

    return None if path is None else read_prices(path)


def _require_page() -> None:
    from autotune.report.page.page import require_libraries

    require_libraries()


def _write_page(comparison: "DeviceComparison", path: Path) -> None:
    from autotune.report.page.page import write_page

    write_page(comparison, path)
    errors().print(f"page: {path}", markup=False)


def _share(text: str | None, *, has_older: bool) -> float:
    """Return a share such as ``3%`` or ``0.03`` as a number; RequestError for another text, or if nothing is older."""
    from autotune.comparison.ratio import THRESHOLD
    from autotune.errors import RequestError

    if text is None:
        return THRESHOLD
    if not has_older:
        raise RequestError(
            f"--fail-above {text} was given", found="no --baseline, and no --by toolchain",
            expected="figures to fail against: an earlier comparison, or those of the toolchain before",
            run="autotune compare --json > baseline.json",
        )  # fmt: skip
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise RequestError(f"--fail-above {text} cannot be used", expected="a share such as 3% or 0.03")
    return share
