"""The page as a file: what it holds, how it is escaped, and how it is written."""

import base64
import gzip
import hashlib
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from autotune.cli.main import app
from autotune.comparison.comparison import DeviceComparison, compare_store
from autotune.comparison.roofline import Ceilings
from autotune.comparison.selection import Selection
from autotune.comparison.supplied_roofs import SuppliedRoofs
from autotune.database.store import Store
from autotune.errors import RequestError, WorkError
from autotune.records.objective import Objective
from autotune.report.page.page import write_page
from autotune.testing.sample_records import sample_roofs
from tests.comparison.database import CPU, H200, L4, add, count_work, measured
from tests.report.page import comparisons
from tests.report.page.comparisons import NAME, SCRIPT


class Parsed(HTMLParser):
    """The tags of a page with their attributes, its texts, and its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        (self.scripts if self.tags and self.cdata_elem == "script" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(params=["plain", "hostile", "carried"])
def parsed(pages, request):
    return Parsed(pages[request.param].read_text(encoding="utf-8"))


@pytest.fixture
def store(tmp_path):
    with Store.open(str(tmp_path / "a.db"), create=True) as opened:
        yield opened


def written(comparison, path):
    write_page(comparison, path)
    return Parsed(path.read_text(encoding="utf-8"))


def test_it_refers_to_nothing_outside(pages, parsed):
    for tag, attributes in parsed.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "audio", "video")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, attributes)
            if name in ("src", "href", "action", "srcset", "poster"):
                assert value.startswith(("#", "data:")), (tag, attributes)
    for path in pages.values():
        assert "://" not in path.read_text(encoding="utf-8") and "@import" not in path.read_text(encoding="utf-8")


def test_it_has_three_scripts_and_a_policy_that_admits_two_texts(parsed):
    scripts = [attributes.get("type") for tag, attributes in parsed.tags if tag == "script"]
    assert scripts == ["application/json", None, "application/gzip"]
    data, own, packed = parsed.scripts
    drawing = gzip.decompress(base64.b64decode(packed)).decode()
    assert drawing == get_plotlyjs() and "MIT" in drawing[:300]
    assert json.loads(data)
    (policy,) = (tags["content"] for _, tags in parsed.tags if tags.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (own, drawing)]
    assert re.search("script-src ([^;]*)", policy)[1] == " ".join(f"'sha256-{digest}'" for digest in digests)


def test_hostile_text_is_escaped_wherever_it_stands(pages):
    text = pages["hostile"].read_text(encoding="utf-8")
    assert SCRIPT not in text and "<img" not in text
    parsed = Parsed(text)
    name = NAME
    assert parsed.text.count(name) > 10
    assert f"from {name}" in parsed.text, "the path of the prices"
    assert f"it is served as {name}, the others as any" in parsed.text
    assert any(name == value for tag, attributes in parsed.tags if tag == "option" for value in attributes.values())
    assert name in json.loads(parsed.scripts[0])["w1"]["scatter"]["currency"]


def test_a_row_says_everything_about_its_device(store, tmp_path):
    text = written(comparisons.plain(store), tmp_path / "a.html").text
    for part in (
        "3 workloads of 2 models on 3 device classes",
        "The newest plan is of 2026-01-01 00:00 UTC.",
        "Prices per hour in EUR, from prices.toml: h200 4, l4 0.8, epyc 0.1; electricity at 0.25 per kWh.",
        "nvidia-h200/whole/700w is the fastest, 4.00 times better than the next.",
        "nvidia-l4/whole/72w is the one that needs the least energy, 4.00 times better than the next.",
        "1.500 ms",  # the baseline
        "0.5000 ms [0.4900 – 0.5100]",
        "2,000.0 [1,960.8 – 2,040.8]",
        "yes signal error 1.0e-03 ≤ 0.02",
        "not measurable on a CPU",
        "apart: busy host",
        "not tuned: bert-base at batch 1 has no plan for it",
        "autotune reproduce resnet50",
        "autotune tune STUDY_FILE --batch",
        "Parameters of the plans: 1 of 4 differ",
        "Not drawn: nvidia-l4/whole/72w (busy host), amd-epyc-2c/avx2 (not tuned).",
        "nvidia-h200, fp16: 16 TFLOP/s at 160 operations per byte; 8.3× the limit, by bandwidth",
        "amd-epyc-2c: limit not known: no roofs of amd-epyc-2c were measured",
    ):
        assert part in text, part


def test_carried_plans_are_a_table_with_their_loss(pages):
    text = Parsed(pages["carried"].read_text(encoding="utf-8")).text
    for part in (
        "Carried plans Each row is the plan of one device class",
        "nvidia-l4 /whole/72w nvidia-h200/whole/700w tensorrt fp16, layout=nchw, level=3",
        "+25.2% [+25.",
        f"not measured 0.5000 ms [0.4900 – 0.5100] not measured failed {NAME}",
        "Plans that were not carried: 4",
        "nvidia-h200/whole/700w on nvidia-l4/whole/72w: autotune tune STUDY_FILE",
    ):
        assert part in text, part
    assert "Carried plans" not in Parsed(pages["plain"].read_text(encoding="utf-8")).text, "none was tried"


def test_limits_and_predicted_rows_are_marked_as_what_they_are(store, tmp_path):
    add(store, H200, 0.5, configuration=comparisons.FAST)
    add(store, L4, 2.0)
    count_work(store, flops=3 * 10**10, traffic_bytes=10**8)
    roofs = sample_roofs(H200, copy_gb_s=1000.0, matrix_tflops={"fp16": 300.0}, launch_us=10.0)
    store.roofs.put(roofs)
    supplied = SuppliedRoofs(by_sku={"nvidia-a100": Ceilings(bandwidth_gb_s=1e3, tflops={"fp16": 3e2}, launch_us=10.0)})
    text = written(compare_store(store, supplied_roofs=supplied), tmp_path / "a.html").text
    for part in (
        "4.5× by compute",
        "unknown",
        "nvidia-a100 predicted: a limit, no measurement",
        "at least 0.1100 ms; predicted:",
        "Not drawn: nvidia-a100 (predicted).",
        "no roofs of nvidia-l4 were measured",
    ):
        assert part in text, part


def test_rows_that_are_toolchains_have_their_change_and_a_command_that_names_the_versions(store, tmp_path):
    measured(store, H200, 1.0, "2.11.0", 1)
    measured(store, H200, 1.5, "2.13.0", 2)
    measured(store, L4, 2.0, "2.13.0", 2)
    parsed = written(compare_store(store, Selection(by="toolchain")), tmp_path / "page.html")
    assert "1 workload of 1 model on 2 device classes" in parsed.text
    assert "torch 2.11.0 → 2.13.0: slower, factor 1.500 [1.441 – 1.561]." in parsed.text
    assert "No two rows can be compared." in parsed.text
    assert "newest toolchain" in parsed.text and "slower factor 1.500" in parsed.text
    assert "# with torch 2.11.0" in parsed.text and "1.500× slower [1.441 – 1.561]" in parsed.text
    bars = json.loads(parsed.scripts[0])["w1"]["bars"]
    assert [bar["name"] for bar in bars] == ["torch 2.13.0", "torch 2.11.0"]
    measured(store, H200, 1.5, NAME, 3)
    hostile = written(compare_store(store, Selection(by="toolchain")), tmp_path / "page.html")
    assert len(hostile.scripts) == len(parsed.scripts) and NAME in hostile.text


def test_a_figure_that_is_absent_says_why_and_is_never_zero_or_blank(store, tmp_path):
    parsed = written(comparisons.plain(store), tmp_path / "a.html")
    absent = [attributes for tag, attributes in parsed.tags if tag == "td" and "absent" in attributes.get("class", "")]
    titles = {attributes.get("title") for attributes in absent}
    assert "not measured: a study with the objective energy measures it" in titles
    assert "not measurable here: no energy counter is read on a CPU" in titles
    assert not any("data-number" in attributes for attributes in absent)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert not re.search(r'class="(number|text)[^"]*"><span></span>', text)


def test_constraints_that_a_plan_breaks_are_said_to_be_broken(store, tmp_path):
    add(store, H200, 0.5, signal_error=0.5)
    add(store, L4, 0.5, signal_error=0.04, objective=Objective(signal_error_by_output=(("logits", 0.05),)))
    text = written(compare_store(store), tmp_path / "a.html").text
    assert "no signal error 5.0e-01 is not ≤ 0.02" in text and "yes signal error 4.0e-02 ≤ 0.05" in text


def test_without_prices_there_is_neither_a_cost_nor_its_plot(store, tmp_path):
    add(store, H200, 0.5)
    add(store, L4, 0.5)
    parsed = written(compare_store(store), tmp_path / "a.html")
    plots = json.loads(parsed.scripts[0])
    assert set(plots["w1"]) == {"bars"} and "per million" not in parsed.text
    assert "no costs: give a file of your prices with --prices" in parsed.text
    assert "tie for the fastest: their intervals overlap." in parsed.text


def test_an_empty_comparison_is_a_page_that_says_how_to_begin(tmp_path):
    parsed = written(DeviceComparison(device_classes=(), workloads=()), tmp_path / "a.html")
    assert "There is no plan to compare. Create one with autotune tune STUDY_FILE" in parsed.text
    assert parsed.scripts[0] == "{}", "and no plotly.js, as there is nothing to draw"


def test_only_cells_apart_draw_nothing(store, tmp_path):
    add(store, CPU, 40.0, flags=("busy_host",))
    parsed = written(compare_store(store), tmp_path / "a.html")
    assert "No device class can be compared." in parsed.text and parsed.scripts[0] == "{}"


def test_it_is_written_whole_or_not_at_all(store, tmp_path):
    comparison = compare_store(store)
    with pytest.raises(WorkError, match="No such file or directory"):
        write_page(comparison, tmp_path / "no" / "a.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(WorkError, match=r"folder\.html"):
        write_page(comparison, tmp_path / "folder.html")
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    (tmp_path / "a.html").write_text("an earlier page")
    write_page(comparison, tmp_path / "a.html")
    assert "an earlier page" not in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch, store, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RequestError, match=rf"no {library}\n(.*\n)*.*pip install .*plotly.*jinja2.*\[report\]"):
        write_page(compare_store(store), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_the_command_writes_the_page_beside_its_other_output(store, tmp_path):
    add(store, H200, 0.5)
    add(store, L4, 2.0)
    path = tmp_path / "a.html"
    result = CliRunner().invoke(app, ["compare", "--db", str(tmp_path / "a.db"), "--html", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["workloads"][0]["name"] == "resnet50"
    assert f"page: {path}" in result.stderr.replace("\n", "")
    assert "nvidia-h200/whole/700w is the fastest" in Parsed(path.read_text(encoding="utf-8")).text


def test_the_same_comparison_is_the_same_page(store, tmp_path):
    comparison = comparisons.plain(store)
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    write_page(comparison, first)
    write_page(replace(comparison), second)
    assert first.read_bytes() == second.read_bytes()
