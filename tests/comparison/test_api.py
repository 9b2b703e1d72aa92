"""``autotune.compare``."""

import pytest

import autotune
from autotune.database.store import Store
from autotune.errors import RequestError
from tests.comparison.database import CPU, H200, L4, add, count_work


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
