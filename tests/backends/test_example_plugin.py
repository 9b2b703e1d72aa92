"""The example of the page "Adding a backend" keeps every promise, and is found as an installed package is."""

import pytest

from autotune import registry
from autotune.testing.backend_conformance import BackendConformance, RunnerConformance
from tests.backends.example_plugin import BACKEND

MODULE = "tests.backends.example_plugin"


class TestExampleBackend(BackendConformance):
    backend = BACKEND
    module = MODULE


class TestExampleRunner(RunnerConformance):
    backend = BACKEND
    module = MODULE


def test_an_entry_point_offers_it(tmp_path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[autotune.backends]\nexample = {MODULE}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    try:
        assert registry.backend("example") is BACKEND and registry.build_modules(["example"]) == ["torch.export"]
    finally:
        monkeypatch.undo()
        registry.refresh()
