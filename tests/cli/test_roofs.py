"""The commands that measure the roofs of this machine, and list those in the database."""

import json

import pytest

from autotune.database.store import Store
from autotune.execute import roofs
from autotune.execute.roofs import Sizes
from autotune.records.roofs import Roofs
from autotune.testing.sample_records import OTHER_DEVICE, sample_roof, sample_roofs


def test_roofs_are_measured_kept_and_listed(autotune, tmp_path, monkeypatch):
    monkeypatch.setitem(roofs.SIZES, "cpu", Sizes(buffer_bytes=1 << 20, matrix_rows=64))
    monkeypatch.setattr(roofs, "SAMPLING_S", 0.1)
    database = tmp_path / "a.db"
    result = autotune("roofs", "measure", "--device", "cpu", "--db", database, "--json")
    assert result.exit_code == 0, result.stderr
    measured = Roofs.from_dict(json.loads(result.stdout))
    listed = autotune("roofs", "list", "--db", database, "--device", "cpu")
    assert measured.device_class in listed.stdout and "GB/s" in listed.stdout and "TFLOP/s" in listed.stdout
    assert "no tf32: only GPUs have it" in listed.stdout
    assert json.loads(autotune("roofs", "list", "--db", database, "--json").stdout) == [measured.as_dict()]


def test_flags_are_shown_with_their_meaning(autotune, tmp_path):
    with Store.open(str(tmp_path / "a.db")) as store:
        store.roofs.put(sample_roofs())
        busy = sample_roofs(OTHER_DEVICE).as_dict() | {"launch_us": sample_roof(9.0, ("busy_host",)).as_dict()}
        store.roofs.put(Roofs.from_dict(busy))
    text = autotune("roofs", "list", "--db", tmp_path / "a.db").stdout
    assert "busy_host" in text and "Other processes used more than 10%" in text
    assert "9 µs [8.1 – 9.9]" in text and "2048×2048" in text and "700 TFLOP/s [630 – 770]" in text
    h200 = autotune("roofs", "list", "--db", tmp_path / "a.db", "--device", "h200").stdout
    assert "nvidia-h200" in h200 and "nvidia-h100" not in h200


def test_without_roofs_the_command_that_measures_them_is_shown(autotune, tmp_path):
    Store.open(str(tmp_path / "a.db")).close()
    assert "autotune roofs measure" in autotune("roofs", "list", "--db", tmp_path / "a.db").stdout
    assert json.loads(autotune("roofs", "list", "--db", tmp_path / "a.db", "--json").stdout) == []


@pytest.mark.parametrize("command", [("measure", "--device", "npu"), ("list", "--device", "nvidia")])
def test_a_device_that_is_not_one_is_refused(autotune, tmp_path, command):
    with Store.open(str(tmp_path / "a.db")) as store:
        store.roofs.put(sample_roofs())
        store.roofs.put(sample_roofs(OTHER_DEVICE))
    result = autotune("roofs", *command, "--db", tmp_path / "a.db")
    assert result.exit_code == 2 and command[-1] in result.stderr
