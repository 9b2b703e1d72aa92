"""The parts of pages that are made from the code and the result files, and the build of all pages."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import typer.main

from autotune.cli.main import app
from autotune.records.search_curve import SearchCurve
from autotune.report import words
from docs import hooks
from tests import test_imports
from tests.docs.pages import ROOT

STUDIES = ROOT / "studies"


def marks():
    return [
        (page.name, *match) for page in (ROOT / "docs").glob("*.md") for match in hooks.MARK.findall(page.read_text())
    ]


def test_every_mark_names_a_part_and_every_part_is_on_a_page():
    assert {name for _, name, _ in marks()} == set(hooks.PARTS)
    assert hooks.on_page_markdown("before\n\n<!-- generated: floors -->\n\nafter").startswith("before\n\n| floor |")
    with pytest.raises(KeyError):
        hooks.on_page_markdown("<!-- generated: nothing -->")


def leaves(group, path=("autotune",)):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_the_page_of_commands_has_every_command_argument_and_option():
    text = hooks.commands()
    sections = dict(re.findall(r"^## (autotune .+?)$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    commands = dict(leaves(typer.main.get_command(app)))
    assert list(sections) == list(commands)
    for name, command in commands.items():
        assert command.help.splitlines()[0] in sections[name]
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name} has no help"
            assert hooks._plain(parameter.help) in sections[name]
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar.strip("{}[]")]
            for spelling in names:
                assert re.search(rf"[`\[ ]{re.escape(spelling)}[`\], ]", sections[name]), f"{name}: {spelling}"


def test_the_page_of_results_has_a_row_for_each_file():
    text = hooks.results()
    files = [*STUDIES.glob("*/results/*.json"), *STUDIES.glob("*/results/*/*.json")]
    assert len(re.findall(r"^\| [\w-]+, \d+(?: [†‡])? \|", text, re.MULTILINE)) == len(files) > 10
    assert "## NVIDIA H200\n" in text


def test_default_studies_are_compared_with_the_best_off_the_shelf_and_with_their_aims():
    rows = {line.split(" | ")[0].strip("| "): line for line in hooks.default_studies("nvidia-h200").splitlines()[2:]}
    assert list(rows) == [f"{name}, {batch}" for name, batch in hooks.AIMS_MS]
    document = json.loads((STUDIES / "resnet50/results/nvidia-h200-b1.json").read_text())
    best_ms = {
        backend: min(entry["latency_ms"] for entry in document["finals"] if entry["backend"] == backend)
        for backend in ("inductor", "torchscript", "eager")
    }
    assert (
        f"{best_ms['inductor']:.4f} (inductor, fp16) | {best_ms['inductor'] / document['plan']['latency_ms']:.2f} |"
        in (rows["resnet50, 1"])
    )
    missed = document["plan"]["latency_ms"] / 0.25 - 1
    assert min(best_ms.values()) == best_ms["inductor"] and rows["resnet50, 1"].endswith(
        f"| 0.25 | no, by {missed:.1%} |"
    )


@pytest.mark.parametrize(
    ("interval_ms", "aim_ms", "text"),
    [
        ([0.9, 1.1], 1.0004, "yes"),
        ([0.9, 1.1], 0.9999, "no, by 0.01%; within the interval"),
        ([0.99, 1.1], 0.98, "no, by 2.0%"),
    ],
)
def test_an_aim_is_compared_with_the_unrounded_median(interval_ms, aim_ms, text):
    assert hooks._reached({"latency_ms": 1.0, "interval_ms": interval_ms}, aim_ms) == text


def test_figures_of_the_page_of_results_are_those_of_the_files():
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    documents = {
        (document["name"], document["batch"]): document
        for document in (json.loads(path.read_text()) for path in STUDIES.glob("*/results/nvidia-h200-b*.json"))
    }
    plans = {key: document["plan"]["latency_ms"] for key, document in documents.items()}
    for name, label in (("resnet50", "ResNet-50"), ("mobilenet-v2", "MobileNetV2")):
        assert f"**{label} at batch 1** takes {plans[name, 1]:.3f} ms" in page
    assert f"The plan takes {plans['mobilenet-v2', 32]:.3f} ms, earlier 0.664" in page
    assert f"with {documents['resnet50', 1]['baseline']['latency_ms']:.2f} ms here" in page
    kinds = ("building", "checking", "sampling")
    shares = [sum(d["split_s"][kind] for kind in kinds) / d["seconds"] for d in documents.values()]
    assert f"Building, checking and sampling are {100 * min(shares):.0f} to {max(shares):.0%} of that" in page
    took = sorted(document["seconds"] for document in documents.values())
    assert f"The studies took {words.seconds(took[0])} to {words.seconds(took[-1])}" in page
    gains = [SearchCurve.from_dict(document["curve"]).reached_s(0.9) for document in documents.values()]
    assert f"reached after {min(gains):.0f} to {max(gains):.0f} s" in page
    engine = " ".join((ROOT / "docs" / "native-engine.md").read_text().split())
    for name, label in LABELS.items():
        assert f"{plans[name, 1]:.3f} and {plans[name, 32]:.3f} ms for {label}" in engine


LABELS = {
    "resnet50": "ResNet-50", "vit-b16": "ViT-B/16", "bert-base": "BERT-base", "mobilenet-v2": "MobileNetV2",
    "efficientnet-b0": "EfficientNet-B0",
}  # fmt: skip


def test_the_rows_of_the_engine_are_those_of_its_files():
    text = hooks.engine_results()
    assert len(text.splitlines()) - 2 == len([*STUDIES.glob("engine/*/results/*"), *STUDIES.glob("engine/*/trials/*")])
    document = json.loads((STUDIES / "engine/resnet50/results/nvidia-h200-b1.json").read_text())
    (row,) = [line for line in text.splitlines() if line.startswith("| resnet50, 1 |")]
    assert f"**{document['plan']['latency_ms']:.4f}**" in row
    assert f"{document['baseline']['latency_ms']:.3f}" in row
    (star,) = [line for line in text.splitlines() if line.startswith("| bert-base, 32 * |")]
    assert "**" not in star, "a row without finals has no plan"


def test_a_check_that_missed_its_limit_is_bold(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    rows = [
        {"check": "a", "figure": "1 | 2", "limit": "<= 3", "passed": True},
        {"check": "b", "figure": "5", "limit": "4", "passed": False},
    ]
    environment = {"device": "cpu", "device_name": "A CPU", "cores": 2}
    (tmp_path / "one.json").write_text(json.dumps({"environment": environment, "checks": rows}))
    (tmp_path / "two.json").write_text(json.dumps({"environment": environment, "checks": rows[1:]}))
    assert hooks.checks("one.json", "two.json").splitlines() == [
        "| check | limit | A CPU, 2 cores | A CPU, 2 cores |",
        "| --- | --- | --- | --- |",
        "| a | &lt;= 3 | 1 \\| 2 | – |",
        "| b | 4 | **5** | **5** |",
    ]


def test_the_floors_are_those_of_the_test_of_imports():
    rows = [re.findall(r"`(\w+)`", line) for line in hooks.floors().splitlines()[2:]]
    assert rows == test_imports.FLOORS


def test_flags_conditions_and_programs_are_listed_whole():
    from autotune.measure.conditions import OBSERVED, RECORDED
    from autotune.measure.flags import FLAGS
    from autotune.programs.catalogue import PROGRAMS

    assert re.findall(r"^\| `(\w+)` ", hooks.flags(), re.MULTILINE) == list(FLAGS)
    listed = re.findall(r"^\| `([\w.]+)` ", hooks.conditions(), re.MULTILINE)
    names = [f"readings.{observer}.{entry.name}" for observer, entries in OBSERVED.items() for entry in entries]
    assert listed == [*(entry.name for entry in RECORDED), *names]
    assert all(f"`python -m autotune.programs.{name}`" in hooks.programs() for name in PROGRAMS)


def built(folder, site):
    """Build a copy of the documentation strictly; returns the exit code and the output."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    code, output = built(ROOT, tmp_path / "site")
    assert (code, "WARNING" in output) == (0, False), output
    page = (tmp_path / "site" / "python-api" / "index.html").read_text()
    for name in ("optimize", "load", "tune", "measure", "from_study", "OptimizedModel", "Measured", "Objective"):
        assert re.search(rf'id="autotune[\w.]*\.{name}"', page), name
    assert not re.search(r":\w+:<code>", page), "a role of a name is shown as text"
    assert "generated:" not in (tmp_path / "site" / "results" / "index.html").read_text()


@pytest.mark.slow
def test_broken_links_and_anchors_stop_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "hooks.py", tmp_path / "docs")
    settings = (ROOT / "mkdocs.yml").read_text().partition("nav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{settings}nav: [index.md, other.md]\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[good](other.md#other)\n")
    assert built(tmp_path, tmp_path / "site")[0] == 0
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[one](nowhere.md), [two](other.md#no-such-heading)\n")
    code, output = built(tmp_path, tmp_path / "site")
    assert code != 0
    assert "nowhere.md" in output
    assert "no-such-heading" in output
