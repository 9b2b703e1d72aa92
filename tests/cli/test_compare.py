"""The commands ``autotune compare`` and ``autotune prices check``."""

import json

import pytest
from typer.testing import CliRunner

from autotune.cli.main import app
from autotune.database.store import Store
from autotune.testing.sample_records import digest, sample_roofs
from tests.comparison.database import CPU, H200, L4, add, count_work, measured


@pytest.fixture
def database(tmp_path):
    path = str(tmp_path / "a.db")
    with Store.open(path, create=True) as store:
        for device, latency_ms in ((H200, 0.5), (L4, 2.0), (CPU, 40.0)):
            add(store, device, latency_ms)
        add(store, H200, 0.4, name="bert-base")
    return path


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text('currency = "EUR"\n[devices.h200]\nper_hour = 4\n[devices.l4]\nper_hour = 0.8\n')
    return str(path)


def run(database, *arguments, code=0):
    result = CliRunner().invoke(app, [*arguments, "--db", database])
    assert result.exit_code == code, result.output
    return result.output


def test_the_table_has_winners_costs_break_even_and_commands_for_missing_cells(database, prices):
    text = run(database, "compare", "--prices", prices)
    assert "latency: best nvidia-h200/whole/700w, 4.00 times better than the next" in text
    assert "EUR per million" in text and "break-even: nvidia-h200/whole/700w costs as much as" in text
    assert "not tuned: autotune tune STUDY_FILE --batch 1 with bert-base's study file on a host with nvidia-l4" in text
    assert "not measurable" in text and "no price for amd-epyc-2c" in text


def test_models_devices_and_batch_are_chosen(database):
    document = json.loads(run(database, "compare", "resnet50", "--devices", "H200,L4", "--batch", "1", "--json"))
    (workload,) = document["workloads"]
    assert [cell["device"] for cell in workload["cells"]] == ["nvidia-h200", "nvidia-l4"]
    assert workload["winners"]["latency"]["margin"] == pytest.approx(4.0)


def test_cpu_is_the_one_of_this_machine_even_if_nothing_was_measured_on_it(database):
    document = json.loads(run(database, "compare", "resnet50", "--devices", "H200,CPU", "--json"))
    assert [cell["state"] for cell in document["workloads"][0]["cells"]] == ["compared", "missing"]


def test_a_bound_of_latency_has_a_table_and_a_part_of_the_document(database):
    document = json.loads(run(database, "compare", "resnet50", "--at", "p50<=1ms", "--json"))
    held = {entry["device_class"]: entry["batch"] for entry in document["within_bound"]["devices"]}
    assert held == {H200.device_class: 1, L4.device_class: None, CPU.device_class: None}
    assert "no plan holds p50 <= 1 ms: the nearest takes 2 ms" in run(
        database, "compare", "resnet50", "--at", "p50<=1ms"
    )


def test_a_slower_plan_fails_a_build_only_if_asked(database, tmp_path):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(run(database, "compare", "--json"))
    assert "undecided" in run(database, "compare", "--baseline", str(baseline), "--fail-above", "3%")
    with Store.open(database) as store:
        add(store, H200, 0.7)
    assert "slower" in run(database, "compare", "--baseline", str(baseline))
    assert "more than 3.0%: 1 plans" in run(
        database, "compare", "--baseline", str(baseline), "--fail-above", "3%", code=1
    )
    document = json.loads(run(database, "compare", "--baseline", str(baseline), "--json"))
    assert document["changes"][0]["judgement"] == "slower"


@pytest.fixture
def upgraded(tmp_path):
    """A database with plans of two versions of torch on a GPU, of which the newer is slower."""
    path = str(tmp_path / "upgraded.db")
    with Store.open(path, create=True) as store:
        measured(store, H200, 1.0, "2.11.0", 1)
        measured(store, H200, 1.2, "2.13.0", 2)
        measured(store, L4, 2.0, "2.13.0", 2)
    return path


def test_toolchains_of_a_device_class_are_compared(upgraded, tmp_path):
    text = run(upgraded, "compare", "--by", "toolchain")
    assert f"resnet50, batch 1, latency_p50, {H200.device_class}" in text
    assert "torch 2.11.0 → 2.13.0: slower, factor 1.200 [1.153 – 1.249]" in text
    assert [line.split()[2] for line in text.splitlines() if "torch 2.1" in line and "│" in line] == [
        "2.13.0",
        "2.11.0",
    ]
    assert "No two rows can be compared" in text and "best" not in text
    document = json.loads(run(upgraded, "compare", "--by", "toolchain", "--json"))
    assert document["workloads"][0]["cells"][0]["toolchain"]["judgement"] == "slower"


def test_a_plan_that_an_upgrade_made_slower_fails_a_build_only_if_asked(upgraded):
    arguments = ("compare", "--by", "toolchain", "--fail-above")
    assert "slower than under the toolchain before by more than 3.0%: 1 plans" in run(
        upgraded, *arguments, "3%", code=1
    )
    assert "undecided" in run(upgraded, *arguments, "20%")
    run(upgraded, *arguments, "3%", "--devices", "L4")


def test_weights_may_have_rows_of_their_own(database):
    with Store.open(database) as store:
        add(store, H200, 0.6, weights=digest("other"))
    document = json.loads(run(database, "compare", "resnet50", "--by", "weights", "--json"))
    cells = [cell for cell in document["workloads"][0]["cells"] if cell["device"] == "nvidia-h200"]
    assert len({cell["plan"]["weights"] for cell in cells}) == 2 == len(cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "colour"), "device, weights, toolchain"),
        (("--by", "toolchain", "--at", "p99<=1ms"), "both --by toolchain and --at"),
        (("--by", "toolchain", "--baseline", "b.json"), "both --by toolchain and --baseline"),
        (("--by", "toolchain", "--roofs", "r.toml"), "both --by toolchain and --roofs"),
        (("--fail-above", "3%"), "no --baseline"),
        (("--at", "p98<=1ms"), "p99<=10ms"),
        (("--devices", "h300"), "nvidia-h200"),
        (("--prices", "none.toml"), "No such file"),
        (("resnet",), "resnet50"),
    ],
)
def test_a_wrong_request_is_refused_with_what_to_do(database, arguments, message):
    result = CliRunner().invoke(app, ["compare", *arguments, "--db", database])
    assert result.exit_code != 0 and message in (result.output + str(result.exception))


def test_an_empty_database_has_nothing_to_compare(tmp_path):
    path = str(tmp_path / "empty.db")
    Store.open(path, create=True).close()
    assert "no plan to compare" in run(path, "compare")


def test_prices_are_checked_against_the_devices_of_the_database(database, prices, tmp_path):
    assert "no price" in run(database, "prices", "check", prices)
    other = tmp_path / "other.toml"
    other.write_text('currency = "EUR"\n[devices.h300]\nper_hour = 4\n')
    assert "h300 fits no device of the database" in run(database, "prices", "check", str(other), code=1)
    document = json.loads(run(database, "prices", "check", prices, "--json"))
    assert document["priced"][H200.device_class] == 4.0 and document["unknown"] == {}


def test_limits_and_predicted_rows_are_marked(database, tmp_path):
    path = tmp_path / "roofs.toml"
    path.write_text("[devices.a100]\nbandwidth_gb_s = 1555\ntflops = {fp32 = 19.5}\nlaunch_us = 6\n")
    assert "no limits: autotune roofs measure measures those of a device" in run(database, "compare")
    with Store.open(database) as store:
        count_work(store, flops=10**9, traffic_bytes=10**8)
        store.roofs.put(sample_roofs(H200, copy_gb_s=1000.0, launch_us=10.0))
    text = run(database, "compare", "resnet50", "--roofs", str(path))
    assert "4.5× the limit, by bandwidth" in text and "no roofs of nvidia-l4 were measured" in text
    assert "predicted: the limit by roofs that the user supplied: it is no measurement (a100)" in text
    (line,) = (line for line in text.splitlines() if " a100 " in line and "│" in line)
    assert line.count("predicted") == 2 and "at least 0.07" in line
    document = json.loads(run(database, "compare", "resnet50", "--roofs", str(path), "--json"))
    (workload,) = document["workloads"]
    assert [cell["state"] for cell in workload["cells"]] == ["compared"] * 3 + ["predicted"]
    assert workload["cells"][0]["limit"]["distance"] == pytest.approx(0.5 / 0.11)
    assert document["supplied_roofs"]["devices"]["a100"]["launch_us"] == 6.0
    assert "a100" not in json.dumps(workload["winners"])
    path.write_text("[devices]")
    assert "the roofs in" in run(database, "compare", "--roofs", str(path), code=2)
