"""The rows of a comparison in a notebook: a pandas frame, and an HTML table."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.comparison.cell import Cell
from autotune.comparison.figures import QUANTITIES
from autotune.errors import RequestError

if TYPE_CHECKING:
    import pandas

PLACE = ("model", "batch", "objective", "device", "device_class", "state", "reasons", "backend", "status", "speedup")
LIMIT = ("limit_ms", "limit_by", "distance")
CHANGE = ("toolchain", "change", "judgement")
"""The columns of rows that are toolchains: the entries that differ, the ratio to the older row, and its judgement."""
FIGURES = tuple(f"{name}{part}" for name in (*QUANTITIES, "change") for part in ("", "_low", "_high"))
COLUMNS = (*PLACE, *FIGURES, *LIMIT, "toolchain", "judgement", "command")


def row_of(name: str, batch: int, objective: str, cell: Cell) -> dict[str, object]:
    """Return a cell with the place it has in a comparison, by :data:`COLUMNS`; an absent figure is NaN."""
    plan = cell.plan
    values: dict[str, object] = {
        "model": name, "batch": batch, "objective": objective, "device": cell.sku,
        "device_class": cell.device_class, "state": cell.state,
        "reasons": "; ".join(reason.name for reason in cell.reasons),
        "backend": None if plan is None else plan.configuration.backend,
        "status": None if plan is None else plan.status,
        "speedup": float("nan") if plan is None else plan.speedup,
        "limit_ms": _number(None if cell.limit is None else cell.limit.ms),
        "limit_by": None if cell.limit is None else cell.limit.by,
        "distance": _number(None if cell.limit is None else cell.limit.distance),
        "command": cell.command,
        **_change(cell),
    }  # fmt: skip
    for quantity in QUANTITIES:
        figure = cell.figure(quantity)
        low, high = figure.interval or (float("nan"), float("nan"))
        values |= {quantity: _number(figure.value), f"{quantity}_low": low, f"{quantity}_high": high}
    return values


def _change(cell: Cell) -> dict[str, object]:
    change = None if cell.toolchain is None else cell.toolchain.change
    low, high = (None, None) if change is None else change.interval
    return {
        "toolchain": str(cell.toolchain or ""),
        "judgement": "" if change is None else change.judgement,
        "change": _number(None if change is None else change.value),
        "change_low": _number(low),
        "change_high": _number(high),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def frame_of(rows: Sequence[Mapping[str, object]], units: Mapping[str, str]) -> "pandas.DataFrame":
    """Return the rows as a frame with the units in ``frame.attrs``; RequestError if pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise RequestError(
            "a comparison was to become a pandas frame", found="no pandas", expected="pandas", run="pip install pandas"
        ) from error
    frame = pandas.DataFrame(list(rows), columns=list(COLUMNS))
    frame.attrs["units"] = dict(units)
    return frame


def html_of(rows: Sequence[Mapping[str, object]], units: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the rows as an HTML table with the notes below; all text is escaped."""
    columns = (*PLACE, *(CHANGE if any(row["toolchain"] for row in rows) else ()), *QUANTITIES, *LIMIT)
    heads = (f"{column.replace('_', ' ')}{f' ({units[column]})' if column in units else ''}" for column in columns)
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(_html_cell(row[column]) for column in columns)}</tr>" for row in rows)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _html_cell(value: object) -> str:
    if isinstance(value, float):
        return f"<td>{'–' if value != value else f'{value:.4g}'}</td>"
    return f"<td>{html.escape('' if value is None else str(value))}</td>"
