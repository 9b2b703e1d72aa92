import dataclasses

import pytest
from typer.testing import CliRunner

from autotune.cli.main import app
from autotune.database.store import Store
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from tests.database import records

A100 = Device(kind="cuda", name="NVIDIA A100", uuid="GPU-2", capability=(8, 0), power_limit_w=400)


def finalist(configuration, latency_ms, *, baseline=False):
    """A finalist whose rounds have their median at its latency."""
    samples = [[latency_ms * (1 + step / 1000)] for step in range(-10, 11)]
    return {
        "backend": configuration.backend,
        "configuration": configuration.as_dict(),
        "latency_ms": latency_ms,
        "interval_ms": [latency_ms * 0.995, latency_ms * 1.005],
        "signal_error": 0.0 if baseline else 1e-3,
        "build_s": 1.5,
        "is_baseline": baseline,
        "is_default": True,
        "samples_ms": samples,
    }


@pytest.fixture
def database(tmp_path):
    """A database with a study of one complete and one failed trial, and plans for two devices and two batches."""
    return fill(tmp_path / "autotune.db")


def fill(file):
    """Make such a database in a file, and return its path."""
    path = str(file)
    eager = Configuration.of("eager", {"precision": "fp32"})
    fast = Configuration.of("inductor", {"precision": "fp16", "freezing": True})
    with Store.open(path) as store:
        study = records.begin(store)
        records.tried(store, study)
        broken = store.trials.claim(study.uid, records.configuration(1), records.TOOLCHAIN.digest)
        store.trials.finish(records.failed(broken, log_tail="the linker said no\n"))
        evidence = {"finalists": [finalist(fast, 1.0), finalist(eager, 2.0, baseline=True)]}
        plan = records.plan(configuration=fast, evidence=evidence)
        store.plans.promote(plan)
        store.plans.promote(records.plan("p32", records.workload(batch=32), evidence=evidence, latency_ms=8.0))
        store.plans.promote(
            dataclasses.replace(
                plan,
                uid="pa",
                device=A100,
                latency_ms=4.0,
                interval_ms=(3.9, 4.2),
                baseline_latency_ms=6.0,
                speedup=1.5,
            )
        )
    return path


@pytest.fixture
def autotune(tmp_path, monkeypatch):
    """Run a command line; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.stderr
        return result

    return run
