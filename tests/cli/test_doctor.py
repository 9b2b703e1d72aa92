import json

from autotune import registry


def test_doctor_proves_backends_and_makes_no_database(autotune, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "names", lambda: ("eager",))
    database = tmp_path / "autotune.db"
    result = autotune("doctor", "--device", "cpu", "--db", database, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (eager,) = document["backends"]
    assert (eager["backend"], eager["works"], eager["device"], eager["reason"]) == ("eager", True, "cpu", "")
    assert document["devices"][-1]["kind"] == "cpu"
    assert "torch" in document["toolchain"]
    assert document["database"] == {"location": str(database), "state": "not there yet; the first study makes it"}
    assert not database.exists()


def test_doctor_fails_where_nothing_works(autotune, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "names", lambda: ())
    monkeypatch.setattr(registry, "broken", lambda: {"extra": "importing extra raised ImportError: no extra"})
    result = autotune("doctor", "--device", "cpu", "--db", tmp_path / "a.db")
    assert result.exit_code == 1
    assert "importing extra raised ImportError" in " ".join(result.stdout.split())


def test_a_device_that_is_not_there(autotune):
    result = autotune("doctor", "--device", "cuda:99", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cuda:99 is not there" in result.stderr
