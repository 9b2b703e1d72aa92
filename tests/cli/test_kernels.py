import json
import os
import signal
import subprocess
import sys

import pytest

from autotune.database.store import Store
from tests.database import records


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_torchs_calls_are_tuned_on_this_cpu_kept_and_listed(autotune, cache):
    command = (
        "kernels",
        "tune",
        16,
        32,
        64,
        "--dtype",
        "fp32",
        "--epilogue",
        "gelu",
        "--device",
        "cpu",
        "--db",
        "k.db",
    )
    first = autotune(*command)
    assert first.exit_code == 0, first.stderr
    for word in ("16×32×64 fp32, bias, gelu", "addmm_activation", "TFLOP/s", "vs best library", "2 timed now"):
        assert word in first.stdout
    assert "torch (form=addmm):" in first.stderr
    second = autotune(*command, "--json")
    document = json.loads(second.stdout)
    assert document["cached"] is True and document["measured"] == 0
    assert document["saved"] == 0.0 and document["best_us"] == document["library_us"]
    assert [one["kind"] for one in document["candidates"]] == ["torch", "torch"]
    best = next(one for one in document["candidates"] if one["median_us"] == document["best_us"])
    final = document["final"]  # none, if one of the two is clearly the best
    if final is not None:
        assert first.stderr.count("final: torch") == 2 and "final µs" in first.stdout
        assert final["best"] == document["candidates"][0]["configuration"]
        assert [one["final_us"] for one in document["candidates"]] == [one["median_us"] for one in final["finalists"]]
    assert best["interval_us"][0] <= best["median_us"] <= best["interval_us"][1]
    assert best["tflops"] == pytest.approx(2 * 16 * 32 * 64 / best["median_us"] / 1e6)
    assert best["roofline_share"] is None and best["library_ratio"] == 1.0
    listed = json.loads(autotune("kernels", "list", "--device", "cpu", "--db", "k.db", "--json").stdout)
    assert [(row["problem"]["m"], row["best_us"], row["trials"]) for row in listed] == [(16, document["best_us"], 2)]
    assert listed[0]["final"] == final
    table = autotune("kernels", "list", "--db", "k.db").stdout
    assert "16×32×64 fp32" in table and "0.0%" in table and ("search" if final is None else "final") in table


@pytest.mark.parametrize(("dtype", "options"), [("fp16", ["--residual"]), ("bf16", ["--epilogue", "silu"])])
def test_tiny_unaligned_problems_are_left_to_the_libraries(autotune, cache, dtype, options):
    found = autotune(
        "kernels", "tune", 1, 3, 5, "--dtype", dtype, "--device", "cpu", "--db", "k.db", "--json", *options
    )
    assert found.exit_code == 0, found.stderr
    assert {one["kind"] for one in json.loads(found.stdout)["candidates"]} == {"torch"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 8, 8), "m must be a whole number of at least 1"),
        (("--", -4, 8, 8), "m must be a whole number of at least 1"),
        ((8, 8, 8, "--dtype", "fp8"), "expected: one of fp16, bf16, fp32"),
        ((8, 8, 8, "--epilogue", "swish"), "expected: one of none, bias, relu"),
        ((8, 8, 8, "--budget", "soon"), "such as 90s"),
        ((8, 8, 8, "--builds", "0"), "expected: at least 1"),
        ((8, 8, 8, "--device", "tpu"), "expected: auto, cpu, cuda or cuda:N"),
        ((10**7, 10**7, 8, "--device", "cpu"), "GiB"),
        ((8, 8), "Missing argument 'K'"),
        (("eight", 8, 8), "not a valid int"),
    ],
)
def test_a_wrong_request_is_one_message_and_exit_code_2(autotune, cache, arguments, says):
    found = autotune("kernels", "tune", "--db", "k.db", *arguments)
    assert found.exit_code == 2
    assert says in found.stderr and found.stdout == ""


def test_listing_makes_no_database_and_knows_its_devices(autotune, tmp_path):
    missing = autotune("kernels", "list", "--db", "nowhere.db")
    assert missing.exit_code == 2 and not (tmp_path / "nowhere.db").exists()
    with Store.open(str(tmp_path / "k.db")) as store:
        store.kernels.add([records.kernel()])
    assert json.loads(autotune("kernels", "list", "--db", "k.db", "--device", "no-such", "--json").stdout) == []
    (row,) = json.loads(autotune("kernels", "list", "--db", "k.db", "--json").stdout)
    assert (row["best_us"], row["library_us"], row["saved"]) == (10.0, None, None)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(autotune, tmp_path, cache):
    asked = ["kernels", "tune", "2048", "2048", "2048", "--dtype", "fp32", "--epilogue", "gelu", "--device", "cpu"]
    command = [sys.executable, "-m", "autotune.cli.main", *asked, "--db", str(tmp_path / "k.db"), "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for line in running.stderr:
        if line.startswith("torch (form="):
            break  # the next candidate takes seconds
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 1 and out == ""
    assert "finished trials are kept" in err and "run next: the same command" in err and "Traceback" not in err
    (listed,) = json.loads(autotune("kernels", "list", "--db", "k.db", "--json").stdout)
    assert (listed["trials"], listed["failed"]) == (1, 0)
