"""``autotune.compare``."""

import pytest

import autotune
from autotune.database.store import Store
from autotune.errors import RequestError
from tests.comparison.database import CPU, H200, L4, add, count_work, measured


@pytest.fixture
def database(tmp_path):
    path = str(tmp_path / "a.db")
    with Store.open(path, create=True) as store:
        for device, latency_ms in ((H200, 0.5), (L4, 2.0), (CPU, 40.0)):
            add(store, device, latency_ms)
    return path


def test_a_comparison_in_python_is_that_of_the_command(database, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('currency = "EUR"\n[devices.h200]\nper_hour = 4\n')
    comparison = autotune.compare("resnet50", devices=["h200", "L4"], prices=prices, db=database)
    (workload,) = comparison.workloads
    assert [cell.sku for cell in workload.cells] == ["nvidia-h200", "nvidia-l4"]
    assert comparison.to_frame().cost.notna().tolist() == [True, False]


def test_the_cpu_of_this_machine_is_named_by_cpu(database):
    (workload,) = autotune.compare(devices=("h200", "CPU"), db=database).workloads
    assert [cell.state for cell in workload.cells] == ["compared", "missing"]


def test_an_unknown_device_is_refused(database):
    with pytest.raises(RequestError, match="nvidia-h200"):
        autotune.compare(devices="h300", db=database)


def test_roofs_of_the_users_add_predicted_rows(store, tmp_path):
    add(store, H200, 0.5)
    count_work(store, flops=10**9, traffic_bytes=10**6)
    path = tmp_path / "roofs.toml"
    path.write_text("[devices.a100]\nbandwidth_gb_s = 1555\ntflops = {fp32 = 19.5}\nlaunch_us = 6\n")
    comparison = autotune.compare(roofs=path, db=store.location)
    assert [cell.state for _, cell in comparison.cells()] == ["compared", "predicted"]
    assert comparison.supplied_roofs.path == str(path)


def test_rows_may_be_toolchains_which_no_roofs_predict(store, tmp_path):
    measured(store, H200, 1.0, "2.11.0", 1)
    measured(store, H200, 1.5, "2.13.0", 2)
    frame = autotune.compare(by="toolchain", db=store.location).to_frame()
    assert frame.toolchain.tolist() == ["torch 2.13.0", "torch 2.11.0"] and frame.judgement.tolist() == ["slower", ""]
    assert frame.change[0] == pytest.approx(1.5) and frame.change_low[0] < 1.5 < frame.change_high[0]
    text = autotune.compare(by="toolchain", db=store.location)._repr_html_()
    assert "torch 2.11.0" in text and "judgement" not in autotune.compare(db=store.location)._repr_html_()
    with pytest.raises(RequestError, match="roofs"):
        autotune.compare(by="toolchain", roofs=tmp_path / "roofs.toml", db=store.location)
    with pytest.raises(RequestError, match="device, weights, toolchain"):
        autotune.compare(by="colour", db=store.location)
