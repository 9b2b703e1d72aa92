import json
import subprocess
import sys
import time

from autotune import registry


def test_doctor_proves_backends_and_makes_no_database(autotune, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "names", lambda: ("eager",))
    database = tmp_path / "autotune.db"
    result = autotune("doctor", "--device", "cpu", "--db", database, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (eager,) = document["backends"]
    assert (eager["backend"], eager["works"], eager["device"], eager["reason"]) == ("eager", True, "cpu", "")
    assert document["proved"] and eager["proved"] and eager["found"]
    assert "eager on cpu: works (" in result.stderr
    assert document["devices"][-1]["kind"] == "cpu"
    assert "torch" in document["toolchain"]
    assert document["database"] == {
        "location": str(database),
        "state": "does not exist yet; the first study creates it",
    }
    assert not database.exists()


def test_doctor_fails_where_nothing_works(autotune, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "names", lambda: ())
    monkeypatch.setattr(registry, "broken", lambda: {"extra": "importing extra raised ImportError: no extra"})
    for options in ((), ("--quick",)):
        result = autotune("doctor", "--device", "cpu", "--db", tmp_path / "a.db", *options)
        assert result.exit_code == 1
        assert "importing extra raised ImportError" in " ".join(result.stdout.split())


def test_quick_says_what_is_found_and_that_nothing_is_proved(autotune, tmp_path):
    shown = autotune("doctor", "--quick", "--device", "cpu", "--db", tmp_path / "a.db")
    assert shown.exit_code == 0 and shown.stderr == ""
    text = " ".join(shown.stdout.split())
    assert "nothing was built or proved" in text and "available" in text and "works" not in text
    document = json.loads(autotune("doctor", "--quick", "--device", "cpu", "--db", tmp_path / "a.db", "--json").stdout)
    assert document["proved"] is False and len(document["backends"]) == len(registry.names())
    assert all(one["found"] and not one["proved"] and one["works"] is None for one in document["backends"])
    assert {"devices", "toolchain", "database"} < set(document)


def test_quick_imports_no_library_of_a_backend(tmp_path):
    """It has to answer within 5 s: the import of torch alone may take that long on a host whose disk is cold."""
    code = "import sys; from autotune.cli.doctor import examine; examine(None, sys.argv[1], quick=True)"
    begin = time.monotonic()
    command = [sys.executable, "-c", f"{code}; print(*sys.modules)", str(tmp_path / "a.db")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    taken_s = time.monotonic() - begin
    assert not {"torch", "onnxruntime", "openvino", "tensorrt", "triton"} & set(ran.stdout.split())
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert taken_s < 2 * (time.monotonic() - begin)


def test_a_device_that_is_not_there(autotune):
    for options in ((), ("--quick",)):
        result = autotune("doctor", "--device", "cuda:99", "--json", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "cuda:99 is not there" in result.stderr
