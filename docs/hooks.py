"""Parts of pages that are generated from the code and the result files: commands, results, errors and floors.

A page asks for such a part by a line ``<!-- generated: NAME ARGUMENT... -->``; NAME is a key of :data:`PARTS`.
"""

import ast
import functools
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- generated: (\S+)(.*) -->$", re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)")
IMPORTS_TEST = ROOT / "tests" / "test_imports.py"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put each generated part in the place of its mark; MkDocs calls this for every page."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return MARK.sub(lambda match: PARTS[match[1]](*match[2].split()), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Remove the roles of names in docstrings, such as ``:func:``, of which Markdown knows nothing."""
    return ROLE.sub("", html)


def commands() -> str:
    """Describe each command with its arguments and options, as the command line itself has them."""
    import typer.main

    from autotune.cli.main import app

    return "\n".join(_command(("autotune", *path), command) for path, command in _commands(typer.main.get_command(app)))


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _command(path: tuple[str, ...], command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([*path, "[OPTIONS]", *(_placeholder(each) for each in arguments)])
    rows = [(_placeholder(each), each) for each in arguments]
    rows += [(f"{', '.join([*each.opts, *each.secondary_opts])}{_value(each)}", each) for each in options]
    lines = [f"## {' '.join(path)}", "", inspect.cleandoc(command.help or ""), "", "```text", usage, "```", ""]
    lines += ["| argument or option | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {_meaning(each)} |" for name, each in rows]
    return "\n".join([*lines, ""])


def _placeholder(argument: Any) -> str:
    name = (argument.metavar or argument.name).strip("{}[]")
    return name if argument.required else f"[{name}]"


def _value(option: Any) -> str:
    return "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"


def _meaning(parameter: Any) -> str:
    shown = parameter.default not in (None, False, True, ())
    text = _plain(parameter.help or "")
    return f"{text} Default: `{parameter.default}`." if shown and not parameter.required else text


def results() -> str:
    """Write the table of results of each device from the result files, each checked against its raw samples."""
    from autotune.programs.results_table import markdown, read_results

    return re.sub(r"^\*\*(.+?)\*\* \((.+)\), ms$", r"## \1\n\nDevice class \2, latencies in ms.",
                  markdown(read_results(ROOT / "studies")), flags=re.MULTILINE)  # fmt: skip


def default_studies(sku: str) -> str:
    """Write a row for each study of a device: its plan beside the best finalist off the shelf, its time and its aim.

    Off the shelf is every backend but the native engine.
    """
    from autotune.report import words

    lines = [
        "| model, batch | plan | best off the shelf | its time / the plan's | best of ONNX Runtime | compiled kernels "
        "known at the start | study took | building, checking, sampling | aim | reached |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for path in sorted((ROOT / "studies").glob(f"*/results/{sku}-b*.json"), key=_name_and_batch):
        document = json.loads(path.read_text())
        plan, seconds, start = document["plan"], document["seconds"], document["known_at_start"]
        best_of: dict[str, dict[str, Any]] = {}
        for entry in sorted(document["finals"], key=lambda entry: float(entry["latency_ms"])):
            best_of.setdefault(entry["backend"], entry)
        other = next(entry for backend, entry in best_of.items() if backend != "native")
        own_s = sum(document["split_s"][kind] for kind in ("building", "checking", "sampling"))
        aim_ms = AIMS_MS[document["name"], document["batch"]]
        onnx = best_of.get("onnxruntime")
        cells = [
            f"{document['name']}, {document['batch']}",
            _named(plan),
            _named(other),
            f"{other['latency_ms'] / plan['latency_ms']:.2f}",
            "–" if onnx is None else words.milliseconds(onnx["latency_ms"]),
            str(start["compiled_kernels"]),
            words.seconds(seconds),
            f"{own_s / seconds:.0%}",
            max(f"{aim_ms:.2f}", str(aim_ms), key=len),
            _reached(plan, aim_ms),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


AIMS_MS = {
    ("bert-base", 1): 0.35, ("bert-base", 32): 1.65, ("efficientnet-b0", 1): 0.439, ("efficientnet-b0", 32): 1.36,
    ("mobilenet-v2", 1): 0.265, ("mobilenet-v2", 32): 0.81, ("resnet50", 1): 0.25, ("resnet50", 32): 1.0,
    ("vit-b16", 1): 0.39, ("vit-b16", 32): 2.5,
}  # fmt: skip
"""The latencies that default studies on an H200 were to reach, set before they were measured."""


def _name_and_batch(path: Path) -> tuple[str, int]:
    return path.parents[1].name, int(path.stem.rpartition("-b")[2])


def _named(entry: dict[str, Any]) -> str:
    from autotune.records.configuration import Configuration
    from autotune.report import words

    precision = words.precision_of(Configuration.from_dict(entry["configuration"]))
    return f"{words.milliseconds(entry['latency_ms'])} ({entry['backend']}, {precision})"


def _reached(plan: dict[str, Any], aim_ms: float) -> str:
    """Compare the median with an aim, unrounded; for one that was missed also the interval."""
    above = plan["latency_ms"] / aim_ms - 1
    if above <= 0:
        return "yes"
    text = f"no, by {above:.1%}" if above >= 0.0005 else f"no, by {above:.2%}"
    return f"{text}; within the interval" if plan["interval_ms"][0] <= aim_ms else text


def engine_results() -> str:
    """Write a row for each study of the native engine: eager, then the native backend by where its kernels come from.

    A study whose finals did not end has no result file: its row is of single trials of the screening, with a star.
    """
    folder = ROOT / "studies" / "engine"
    lines = [
        "| model, batch | eager | torch's kernels | tuned | overlapped | aim | kernels of a call | device busy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for path in sorted([*folder.glob("*/results/*.json"), *folder.glob("*/trials/*.json")]):
        document = json.loads(path.read_text())
        ended = isinstance(document, dict)
        entries = document["finals"] if ended else document
        plan = document["plan"]["configuration"] if ended else None
        latencies = {each["configuration"].get("kernels", "eager"): _latency(each, plan) for each in entries}
        name, batch = (document["name"], document["batch"]) if ended else (document[0]["study"], document[0]["batch"])
        label = f"{name.removesuffix('-engine')}, {batch}"
        cells = [f"{label}{'' if ended else ' *'}", *(latencies[kernels] for kernels in ENGINE_COLUMNS)]
        if ended and document["plan"]["status"] == "tie":
            cells = [f"{cell} (tie)" if cell.startswith("**") else cell for cell in cells]
        explained = path.parents[1] / "explain" / path.name
        lines.append(f"| {' | '.join([*cells, f'{ENGINE_AIMS_MS[label]:.2f}', *_launches(explained)])} |")
    return "\n".join(lines)


ENGINE_COLUMNS = ("eager", "torch", "tuned", "overlapped")
ENGINE_AIMS_MS = {
    "resnet50, 1": 0.30, "resnet50, 32": 1.10, "bert-base, 1": 0.45, "bert-base, 32": 2.0, "vit-b16, 1": 0.45,
    "vit-b16, 32": 2.6,
}  # fmt: skip
"""The latencies that the engine was to reach, set before it was measured."""


def _latency(entry: dict[str, Any], plan: object) -> str:
    text = f"{entry['latency_ms']:.4g}"
    return f"**{text}**" if entry["configuration"] == plan else text


def _launches(explained: Path) -> tuple[str, str]:
    """Return the kernels of a call before and after, and the share of its time that the device is busy."""
    if not explained.exists():
        return "–", "–"
    document = json.loads(explained.read_text())
    before, after = document["before"], document["after"]
    kernels = f"{before['kernels_per_call']:.0f} → {after['kernels_per_call']:.0f}"
    return kernels, f"{after['gpu_utilisation']:.0%}"


def committed_plans() -> str:
    """Write the plans of ``studies/plans.zip`` as ``autotune compare`` shows them: a row a model, batch and device."""
    from autotune.report import words

    lines = [
        "| model, batch | device | plan | latency in ms | speedup | distance to the limit | beside the others |",
        "| --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for workload, cell in _committed().cells():
        if cell.plan is None:
            continue
        plan, limit = cell.plan, cell.limit
        distance = "–" if limit is None or limit.distance is None else f"{limit.distance:.1f}×, by {limit.by}"
        label = f"{plan.configuration.backend}, {words.precision_of(plan.configuration)}"
        figure = words.latency(plan.latency_ms, plan.interval_ms)
        beside = ", ".join(reason.name for reason in cell.reasons) or "yes"
        row = [
            f"{workload.name}, {workload.batch}",
            cell.sku,
            label,
            figure,
            words.speedup(plan.speedup),
            distance,
            beside,
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def committed_carried() -> str:
    """Write the carried plans of ``studies/plans.zip`` that were tried."""
    from autotune.report import words
    from autotune.report.carried import loss_words

    lines = [
        "| model, batch | plan of | timed on | its configuration | carried | tuned there | loss | remark |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for workload in _committed().workloads:
        for entry in workload.carried:
            if entry.carried.value is None:
                continue
            classes = [name.split("/", 1)[0] for name in (entry.from_class, entry.to_class)]
            label = f"{entry.configuration.backend}: {words.knobs(entry.configuration)}"
            figures = [words.figure(value or 0.0, entry.unit) for value in (entry.carried.value, entry.own.value)]
            short = entry.reason.replace(entry.from_class, classes[0]) or entry.verdict
            row = [f"{workload.name}, {workload.batch}", *classes, label, *figures, loss_words(entry.loss), short]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


@functools.cache
def _committed() -> Any:
    """Return the comparison of a new database into which the committed plans are merged."""
    from autotune.comparison.comparison import compare_store
    from autotune.database.exchange import merge_file
    from autotune.database.store import Store

    with tempfile.TemporaryDirectory() as folder, Store.open(str(Path(folder) / "plans.db"), create=True) as store:
        merge_file(store, ROOT / "studies" / "plans.zip")
        return compare_store(store)


def checks(*files: str) -> str:
    """Write what programs that measure the product printed, a column a file; a figure beyond its limit is bold."""
    documents = [json.loads((ROOT / file).read_text()) for file in files]
    names = list(dict.fromkeys(check["check"] for document in documents for check in document["checks"]))
    by_name = [{check["check"]: check for check in document["checks"]} for document in documents]
    heads = ["check", "limit", *(_machine(document["environment"]) for document in documents)]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name in names:
        limit = next(rows[name]["limit"] for rows in by_name if name in rows)
        cells = [_figure(rows[name]) if name in rows else "–" for rows in by_name]
        lines.append(f"| {' | '.join(_plain(cell) for cell in [name, limit, *cells])} |")
    return "\n".join(lines)


def _machine(environment: dict[str, Any]) -> str:
    name = environment["device_name"]
    return f"{name}, {environment['cores']} cores" if environment["device"] == "cpu" else name


def _figure(check: dict[str, Any]) -> str:
    return check["figure"] if check["passed"] else f"**{check['figure']}**"


def _plain(text: str) -> str:
    """Keep a text from being read as Markdown or HTML in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def flags() -> str:
    """List the flags of measurements, each with its meaning and its remedy."""
    from autotune.measure.flags import ALL_FLAGS

    rows = [f"| `{flag.name}` | {_plain(flag.meaning)} | {_plain(flag.remedy)} |" for flag in ALL_FLAGS]
    return "\n".join(["| flag | meaning | remedy |", "| --- | --- | --- |", *rows])


def conditions() -> str:
    """List every condition that is stored beside the samples of a measurement."""
    from autotune.measure.conditions import OBSERVED, RECORDED

    rows = [_condition("", entry) for entry in RECORDED]
    rows += [_condition(f"readings.{observer}.", entry) for observer, entries in OBSERVED.items() for entry in entries]
    return "\n".join(["| condition | unit | meaning | absent |", "| --- | --- | --- | --- |", *rows])


def _condition(prefix: str, entry: Any) -> str:
    cells = [f"`{prefix}{entry.name}`", entry.unit, entry.meaning, entry.absent]
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def programs() -> str:
    """List the programs that measure autotune itself."""
    from autotune.programs.catalogue import PROGRAMS, command_of

    rows = [f"| `{command_of(name)}` | {_plain(purpose)} |" for name, purpose in PROGRAMS.items()]
    return "\n".join(["| program | purpose |", "| --- | --- |", *rows])


def error_tree() -> str:
    """Return the tree of exceptions from the docstring of ``autotune.errors``."""
    module = ast.parse((ROOT / "autotune" / "errors.py").read_text())
    tree = (ast.get_docstring(module) or "").split("::", 1)[1].split("\n\n")[1]
    return f"```text\n{inspect.cleandoc(tree)}\n```"


def floors() -> str:
    """List the floors of the import rule, from the test that enforces it."""
    listed = _constant("FLOORS")
    rows = [f"| {number} | {', '.join(f'`{room}`' for room in floor)} |" for number, floor in enumerate(listed, 1)]
    return "\n".join(["| floor | modules and folders of `autotune/` |", "| ---: | --- |", *rows])


def renamed_modules() -> str:
    """List the old names of modules with their new names, from ``autotune.renamed``."""
    from autotune.renamed import NEW_NAMES

    rows = [f"| `{old}` | `{new}` |" for old, new in sorted(NEW_NAMES.items())]
    return "\n".join(["| old name | new name |", "| --- | --- |", *rows])


def _constant(name: str) -> Any:
    """Return the value of a constant of the test of imports, without importing the test."""
    for node in ast.parse(IMPORTS_TEST.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"{IMPORTS_TEST} has no constant {name}")


PARTS: dict[str, Callable[..., str]] = {
    "commands": commands,
    "results": results,
    "default-studies": default_studies,
    "engine-results": engine_results,
    "checks": checks,
    "committed-plans": committed_plans,
    "committed-carried": committed_carried,
    "flags": flags,
    "conditions": conditions,
    "programs": programs,
    "error-tree": error_tree,
    "floors": floors,
    "renamed-modules": renamed_modules,
}
