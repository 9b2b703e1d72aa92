"""Whether plans have become slower than an earlier comparison says: read_baseline, changes, Change.

The samples of two comparisons do not pair, so a change counts if the intervals of both allow no other conclusion.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autotune.comparison.comparison import SCHEMA, ComparedWorkload, DeviceComparison
from autotune.comparison.figures import Figure
from autotune.comparison.ratio import ratio_of
from autotune.comparison.selection import Selection
from autotune.errors import RequestError
from autotune.records.objective import Objective

Judgement = Literal["slower", "faster", "same", "undecided", "gone", "new"]
Key = tuple[str, int, str, str, str, str]
"""Name, batch, objective, device class, constraints and serving format of a cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The change of a cell against the baseline, in the quantity that its objective compares.

    ``ratio`` is above 1 if it has become worse, with the least and the largest ratio that both intervals allow;
    ``None`` if one of the comparisons lacks the cell.
    """

    name: str
    batch: int
    objective: str
    device_class: str
    judgement: Judgement
    ratio: float | None = None
    interval: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name, "batch": self.batch, "objective": self.objective, "device_class": self.device_class,
            "judgement": self.judgement, "ratio": self.ratio,
            "interval": None if self.interval is None else list(self.interval),
        }  # fmt: skip


def read_baseline(path: Path) -> dict[Key, Figure]:
    """Read what ``autotune compare --json`` printed; RequestError if a file holds something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise _refused(path, f"a comparison of schema {data['schema']!r}")
        if data.get("by") == "toolchain":
            raise _refused(path, "a comparison by toolchain, which has several plans of a device class")
        _refuse_units(path, data)
        return dict(_stored_figures(data))
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    except json.JSONDecodeError as error:
        raise _refused(path, f"no JSON: {error}") from error
    except KeyError as error:
        raise _refused(path, f"no entry {error}") from error
    except (TypeError, AttributeError) as error:
        raise _refused(path, f"an entry of another kind: {error}".split("\n")[0]) from error
    except ValueError as error:
        raise _refused(path, str(error).split("\n")[0]) from error


def _refuse_units(path: Path, data: Mapping[str, Any]) -> None:
    """Raise RequestError for figures in another unit than those of this version."""
    latency = data["quantities"]["latency"]["unit"]
    for cell in (cell for workload in data["workloads"] for cell in workload["cells"] if cell["plan"] is not None):
        figures = cell["plan"]["objective"]
        unit, name = (latency, "latency_p50") if figures is None else (figures["unit"], figures["name"])
        if unit != Objective(name=name).unit:
            raise _refused(path, f"{name} in {unit}; this version compares it in {Objective(name=name).unit}")


def changes(
    comparison: DeviceComparison,
    baseline: Mapping[Key, Figure],
    threshold: float,
    selection: Selection | None = None,
) -> list[Change]:
    """Return the change of every cell that one of the two has, worst first; ``threshold`` is a share, such as 0.03.

    Rows of the baseline that the ``selection`` does not admit are left out.
    """
    admitted = selection or Selection()
    baseline = {
        key: figure for key, figure in baseline.items()
        if (not admitted.models or key[0] in admitted.models) and admitted.batch in (None, key[1])
        and (not admitted.devices or key[3] in comparison.device_classes)
    }  # fmt: skip
    now = {key: figure for workload in comparison.workloads for key, figure in _figures(workload)}
    judged = []
    for key in [*now, *(key for key in baseline if key not in now)]:
        name, batch, objective, device_class, *_ = key
        place = {"name": name, "batch": batch, "objective": objective, "device_class": device_class}
        if key not in baseline or key not in now:
            judged.append(Change(**place, judgement="new" if key in now else "gone"))  # type: ignore[arg-type]
        else:
            judged.append(_change(place, baseline[key], now[key], threshold))
    return sorted(judged, key=lambda change: -(change.ratio or 0.0))


def _change(place: Mapping[str, Any], before: Figure, now: Figure, threshold: float) -> Change:
    ratio = ratio_of(now, before, threshold)
    return Change(**place, judgement=ratio.judgement, ratio=ratio.value, interval=ratio.interval)


def _figures(workload: ComparedWorkload) -> Iterator[tuple[Key, Figure]]:
    for cell in workload.cells:
        entry = cell.as_dict()
        if entry["plan"] is not None:
            yield _key({**workload.as_dict(), **entry}), _compared(entry)


def _stored_figures(data: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for workload in data["workloads"]:
        for cell in workload["cells"]:
            if cell["plan"] is not None:
                yield _key({**workload, **cell}), _compared(cell)


def _key(entry: Mapping[str, Any]) -> Key:
    constraints = json.dumps(entry["plan"]["constraints"], sort_keys=True)
    return (
        entry["name"], entry["batch"], entry["objective"], entry["device_class"], constraints, entry["plan"]["serve_as"]
    )  # fmt: skip


def _compared(cell: Mapping[str, Any]) -> Figure:
    """Return the value that the objective minimises, or the latency if that is not there."""
    stored = cell["plan"]["objective"] or cell["figures"]["latency"]
    if stored["interval"] is None:
        place = f"{cell['plan']['backend']} plan on {cell['device_class']}"
        raise ValueError(f"a {place} without an interval, which no comparison writes")
    low, high = stored["interval"]
    return Figure(value=float(stored["value"]), interval=(float(low), float(high)))


def _refused(path: Path, found: str) -> RequestError:
    return RequestError(
        f"{path} is no baseline to compare with", found=found, expected="the output of autotune compare --json",
        run="autotune compare --json > baseline.json",
    )  # fmt: skip
